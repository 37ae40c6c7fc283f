#!/usr/bin/env bash
# exports.sh static|shared PREFIX: the library shows gn_* and groupnorm::, and nothing else. A static
# library also holds copies of the standard library's templates; those are weak and clash with nobody.
# exports.sh ort FILE: the library for ONNX Runtime shows one function, and needs the C library alone.
set -euo pipefail
kind=$1 prefix=$2
if [ "$kind" = ort ]; then
  names=$(nm -D --defined-only "$prefix" | cut -d' ' -f2-)
  needed=$(readelf -d "$prefix" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
  [ "$names" = "T RegisterCustomOps" ] || { echo "ort: exports $names"; exit 1; }
  if grep -Ev '^(libc|libm|ld-linux[-_0-9a-z]*)\.so' <<<"$needed"; then
    echo "ort: needs the libraries above"
    exit 1
  fi
  exit
fi
case $kind in
  shared) symbols=$(nm -DC --defined-only "$prefix/lib/libgroupnorm.so") ;;
  static) symbols=$(nm -gC --defined-only "$prefix/lib/libgroupnorm.a" | grep -E '^[0-9a-f]+ [A-TX-Z] ') ;;
esac
if [ "$kind" = shared ] && grep -E '^[0-9a-f]+ u |groupnorm::detail::' <<<"$symbols"; then
  echo "shared: the symbols above are internal, or unique (u), with which it would never be unloaded"
  exit 1
fi
# Of a static library ours are hidden: $5 is the binding, $6 the visibility, $7 the section, $8 the name.
seen='$5 != "LOCAL" && $6 == "DEFAULT" && $7 != "UND" && $8 ~ /^gn_|^_Z[A-Z]*9groupnorm/'
if [ "$kind" = static ] && readelf -sW "$prefix/lib/libgroupnorm.a" | awk "$seen" | grep .; then
  echo "static: a plugin that links the library would export the symbols above"
  exit 1
fi
names=$(cut -d' ' -f3- <<<"$symbols")

for expected in gn_ groupnorm::; do
  grep -q "^$expected" <<<"$names" || { echo "$kind: no symbol starts with $expected"; exit 1; }
done
if grep -Ev '^((vtable|typeinfo|typeinfo name) for )?(gn_|groupnorm::)' <<<"$names"; then
  echo "$kind: the symbols above should not be exported"
  exit 1
fi
