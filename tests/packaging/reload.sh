#!/usr/bin/env bash
# reload.sh shared PREFIX: the library can be unloaded and loaded again.
set -euo pipefail
prefix=$2
"$CC" -std=c11 "$(dirname "$0")/reload.c" -I"$prefix/include" -ldl -o "$prefix/reload"
"$prefix/reload" "$prefix/lib/libgroupnorm.so"
