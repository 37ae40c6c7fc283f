#!/usr/bin/env bash
# pkg_config.sh static|shared PREFIX: builds and runs the consumers with what pkg-config says, whether or
# not they ask for a static link.
set -euo pipefail
kind=$1 prefix=$2
if [[ $kind == shared ]]; then # where no directory was given by its whole path, the tree can be moved
  rm -rf "$prefix.moved"
  cp -a "$prefix" "$prefix.moved"
  prefix+=.moved
fi
consumer=$(dirname "$0")/consumer
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig LD_LIBRARY_PATH=$prefix/lib

for static in '' --static; do
  read -ra flags < <(pkg-config --cflags --libs $static groupnorm)
  "$CXX" -std=c++20 "$consumer/consumer.cpp" "${flags[@]}" -o "$prefix/consumer_cpp"
  "$CC" -std=c11 "$consumer/consumer.c" "${flags[@]}" -o "$prefix/consumer_c"
  "$prefix/consumer_cpp"
  "$prefix/consumer_c"
done
