# shellcheck shell=bash
# Sourced by scripts/demo and scripts/test, which run from the top of the checkout.

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# quietly NAME COMMAND...: its output goes to build/NAME.log, and is shown where it fails.
quietly() {
  local log=build/$1.log
  "${@:2}" >"$log" 2>&1 || {
    tail -100 "$log" >&2
    fail "'${*:2}' failed; all of its output is in $log"
  }
}

# need_packages NAME...: installs those of the Debian packages that are missing.
need_packages() {
  local missing=() apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
  command -v dpkg-query apt-get >/dev/null ||
    fail "this script installs packages of Debian 12; elsewhere install the like of: $*"
  for name in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null) == installed ]] ||
      missing+=("$name")
  done
  if ((${#missing[@]} == 0)); then return; fi

  if ((EUID != 0)); then
    command -v sudo >/dev/null ||
      fail "these packages are missing; install them as root: apt-get install ${missing[*]}"
    apt=(sudo "${apt[@]}")
  fi
  say "install ${missing[*]}"
  if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } \
    >build/apt.log 2>&1; then
    tail -5 build/apt.log >&2
    fail "apt-get could not install ${missing[*]} (is there a network? all of its output is in build/apt.log)"
  fi
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
mkdir -p build
