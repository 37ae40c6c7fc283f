# shellcheck shell=bash
# Sourced by the other scripts, which run from the top of the checkout.

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

# watched NAME COMMAND...: as quietly, but shows the last line of the output and the seconds so far: in
# place on a terminal, elsewhere a line for each change and for every ten seconds.
watched() {
  local log=build/$1.log began=$SECONDS line=${*:2} next shown=${*:2} end='\n'
  if [[ -t 1 ]]; then end='\033[K\r'; fi
  "${@:2}" 2>&1 | tee "$log" | {
    printf "%4d s  %.90s$end" 0 "$line"
    while read -r -t 1 next || (($? > 128)); do # 128: nothing came for a second
      line=${next:-$line}
      if [[ -t 1 || $line != "$shown" ]] || (((SECONDS - began) % 10 == 9)); then
        printf "%4d s  %.90s$end" $((SECONDS - began)) "$line"
      fi
      shown=$line
    done
    if [[ -t 1 ]]; then printf '\033[K'; fi
  } || {
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
  watched apt-update "${apt[@]}" update
  watched apt-install "${apt[@]}" install -y --no-install-recommends "${missing[@]}"
}

# need_venv: build/venv, with what tests/requirements.txt lists.
need_venv() {
  if cmp -s tests/requirements.txt build/venv/requirements.txt; then return; fi
  say "install tests/requirements.txt in build/venv"
  quietly venv python3 -m venv --clear build/venv
  quietly pip build/venv/bin/python -m pip install -r tests/requirements.txt
  cp tests/requirements.txt build/venv
}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
mkdir -p build
