#!/usr/bin/env bash
# abi.sh shared PREFIX: the library exports the functions of cmake/exports.txt, no more and no fewer. Weak
# symbols, of inline functions, are whatever a compiler makes of them. A name may be added to the file;
# one that goes, or whose arguments change, is another ABI: GROUPNORM_ABI_VERSION and the minor version.
set -euo pipefail
prefix=$2
listed=$(dirname "$0")/../../cmake/exports.txt
nm -DC --defined-only "$prefix/lib/libgroupnorm.so" | sed -n 's/^[0-9a-f]* [TDBR] //p' | LC_ALL=C sort -u |
  diff "$listed" - || { echo "cmake/exports.txt (<) is not what the library exports (>)"; exit 1; }
