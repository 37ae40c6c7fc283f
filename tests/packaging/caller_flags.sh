#!/usr/bin/env bash
# caller_flags.sh static PREFIX: a program with other flags than the library's is refused or right, never
# wrong. The library has those of the Debian compiler: C++20, std::string of C++11, plain containers.
set -euo pipefail
prefix=$2
here=$(dirname "$0")
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
read -ra flags < <(pkg-config --cflags --libs groupnorm)

# No constructor here has a standard type among its arguments, which would keep it from linking anyway.
layers=(GroupNormalization LayerNormalization InstanceNormalization RmsNormalization BatchNormalization)
code='#include <groupnorm/layers.hpp>
  int main() {
    groupnorm::GroupNormalization group(2);
    groupnorm::LayerNormalization layer;
    groupnorm::InstanceNormalization instance;
    groupnorm::RmsNormalization rms;
    groupnorm::BatchNormalization batch(2);
  }'
"$CXX" -std=c++20 -x c++ - -x none "${flags[@]}" -o "$prefix/layers" <<<"$code"
for layout in -D_GLIBCXX_USE_CXX11_ABI=0 -D_GLIBCXX_DEBUG; do
  errors=$("$CXX" -std=c++20 "$layout" -x c++ - -x none "${flags[@]}" -o "$prefix/mixed" 2>&1 <<<"$code" || true)
  for layer in "${layers[@]}"; do
    if ! grep -q "undefined reference to .*::$layer(" <<<"$errors"; then
      echo "$layout: $layer links, though its members lie elsewhere in the library"
      exit 1
    fi
  done
done

"$CXX" -std=c++20 -fno-rtti -c "$here/no_rtti.cpp" -o "$prefix/no_rtti.o" "${flags[@]}"
"$CXX" -std=c++20 "$here/rtti.cpp" "$prefix/no_rtti.o" "${flags[@]}" -o "$prefix/rtti"
"$prefix/rtti"

for header in groupnorm.hpp layers.hpp; do
  errors=$("$CXX" -std=c++17 -fsyntax-only -x c++ - "${flags[@]}" 2>&1 <<<"#include <groupnorm/$header>" |
    grep 'error:' || true)
  if [[ $(wc -l <<<"$errors") -gt 2 || $errors != *"groupnorm needs C++20"* ]]; then
    printf '%s as C++17 is not refused in a word or two:\n%s\n' "$header" "$errors"
    exit 1
  fi
done
