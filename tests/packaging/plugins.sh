#!/usr/bin/env bash
# plugins.sh static PREFIX: of two plugins in one program, each with a static copy of another version,
# each calls its own.
set -euo pipefail
prefix=$2
here=$(dirname "$0")
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
read -ra flags < <(pkg-config --cflags --libs groupnorm)
version=$(pkg-config --modversion groupnorm)

# The other version: the same, but for the digits that it tells.
other=${version%.*}.$(((${version##*.} + 1) % 10))
mkdir -p "$prefix/other"
sed "s/${version//./\\.}/$other/g" "$prefix/lib/libgroupnorm.a" >"$prefix/other/libgroupnorm.a"
"$CC" -std=c11 -shared -fPIC "$here/plugin.c" "${flags[@]}" -o "$prefix/first.so"
"$CC" -std=c11 -shared -fPIC "$here/plugin.c" -L"$prefix/other" "${flags[@]}" -o "$prefix/second.so"
"$CC" -std=c11 "$here/plugins.c" -ldl -o "$prefix/plugins"
"$prefix/plugins" "$prefix/first.so" "$version" "$prefix/second.so" "$other"
