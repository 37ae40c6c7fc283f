#!/usr/bin/env bash
# pkg_config.sh static|shared PREFIX: builds and runs the consumers with what pkg-config says.
set -euo pipefail
kind=$1 prefix=$2
consumer=$(dirname "$0")/consumer
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig LD_LIBRARY_PATH=$prefix/lib

options=(--cflags --libs groupnorm)
if [[ $kind == static ]]; then options+=(--static); fi
read -ra flags < <(pkg-config "${options[@]}")

"$CXX" -std=c++20 "$consumer/consumer.cpp" "${flags[@]}" -o "$prefix/consumer_cpp"
"$CC" -std=c11 "$consumer/consumer.c" "${flags[@]}" -o "$prefix/consumer_c"
"$prefix/consumer_cpp"
"$prefix/consumer_c"
