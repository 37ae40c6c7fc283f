#!/usr/bin/env bash
# targets.sh SOURCE HIGHWAY: which instruction sets are compiled and listed, by Highway's policy and the
# compiler's baseline. Only the list is compiled: a set that is in one and not in the other refuses to.
set -euo pipefail
source=$1 highway=$2
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# listed NAMESPACES OPTION...
listed() {
  "$CXX" "${@:2}" -std=c++20 -DGROUPNORM_BUILDING -I "$source/include" -I "$source/src" -I "$highway" -w \
    -c "$source/src/kernels/targets.cpp" -o "$dir/targets.o"
  local found
  found=$(nm "$dir/targets.o" | grep -o 'N_[A-Z0-9_]*4kF32' | sed 's/4kF32//' | sort -u | tr '\n' ' ')
  if [[ $found != "$1 " ]]; then
    echo "error: ${*:2}: '$found', not '$1 '"
    exit 1
  fi
  echo "${*:2}: $found"
}

all="N_AVX2 N_AVX3 N_SCALAR N_SSE4"
listed "$all" -march=x86-64
listed "$all" -march=x86-64 -DHWY_COMPILE_ALL_ATTAINABLE
listed N_SCALAR -march=x86-64 -DHWY_COMPILE_ONLY_STATIC
listed N_SCALAR -march=x86-64 -DHWY_COMPILE_ONLY_EMU128
listed "$all" -march=core2
listed "N_AVX2 N_AVX3 N_SSE4" -march=nehalem
listed N_AVX2 -march=x86-64-v3 -DHWY_COMPILE_ONLY_STATIC
listed "$all" -march=sapphirerapids -DHWY_COMPILE_ALL_ATTAINABLE
listed N_AVX3 -march=sapphirerapids
