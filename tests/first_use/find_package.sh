#!/usr/bin/env bash
# find_package.sh PREFIX [CMAKE OPTION...]: from find_package to a running program (first.cpp), beside an
# installed copy in PREFIX; then the same program by pkg-config where PREFIX has its file.
set -euo pipefail
prefix=$(realpath "$1")
source=$(realpath "$(dirname "$0")")
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT

cmake -S "$source" -B build -DCMAKE_PREFIX_PATH="$prefix" "${@:2}" >log || { cat log; exit 1; }
cmake --build build >log || { cat log; exit 1; }
LD_LIBRARY_PATH=$(dirname "$(find "$prefix" -name 'libgroupnorm.*' | head -1)")
export LD_LIBRARY_PATH
[[ $(build/first) == 2.6456 ]]

pc=$(find "$prefix" -name groupnorm.pc)
[[ -n $pc ]] || exit 0
export PKG_CONFIG_PATH=${pc%/*}
# shellcheck disable=SC2046
${CXX:-c++} -std=c++20 "$source/first.cpp" $(pkg-config --cflags --libs groupnorm) -o by_pkg_config
[[ $(./by_pkg_config) == 2.6456 ]]
