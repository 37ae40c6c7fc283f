"""Bytes of machine code in the library, in all and by instruction set.

Fails above the limits. 1 MB is 1,000,000 bytes.
"""

import argparse
import collections
import pathlib
import re
import subprocess
import sys

MOST_IN_ALL = 2_600_000
MOST_OF_A_TARGET = 800_000

# The namespaces of the kernels, as in src/kernels/targets.cpp.
TARGETS = ("N_AVX3", "N_AVX2", "N_SSE4", "N_NEON", "N_NEON_WITHOUT_AES", "N_SCALAR", "N_EMU128")


def target_of(name: str) -> str:
    """The namespace of TARGETS that a mangled name is in: there, its length stands before it."""
    for target in TARGETS:
        if f"{len(target)}{target}" in name:
            return target
    return "none"


def code(nm: str, library: pathlib.Path) -> collections.Counter[str]:
    """Bytes of functions by target. A weak one counts once, whatever objects hold a copy."""
    out = subprocess.run([nm, "-S", library], check=True, capture_output=True, text=True).stdout
    pattern = re.compile(r"^([0-9a-f]+) ([0-9a-f]+) ([tTwW]) (\S+)$|^(\S+):$", re.MULTILINE)
    functions: dict[tuple[str, str, str], int] = {}
    member = ""
    for address, size, kind, name, next_member in pattern.findall(out):
        if next_member:
            member = next_member
            continue
        # Functions local to their objects may share a name.
        function = (name, member, address) if kind == "t" else (name, "", "")
        functions[function] = int(size, 16)
    found: collections.Counter[str] = collections.Counter()
    for function, size in functions.items():
        found[target_of(function[0])] += size
    return found


def main() -> int:
    """Print the sizes; 1 where something is too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nm", required=True)
    parser.add_argument("--library", type=pathlib.Path, required=True)
    options = parser.parse_args()

    found = code(options.nm, options.library)
    limits = {target: MOST_OF_A_TARGET for target in TARGETS if target in found}
    too_much = []
    for target, size in found.most_common():
        limit = f", of {limits[target]} allowed" if target in limits else ""
        print(f"{size:9} bytes of {target}{limit}")
        if size > limits.get(target, size):
            too_much.append(target)
    total = found.total()
    print(f"{total:9} bytes in all, of {MOST_IN_ALL} allowed")
    if total > MOST_IN_ALL:
        too_much.append("in all")
    if not limits:
        print("error: no function of a target")
    if too_much:
        print("error: too much code:", ", ".join(too_much))
    return 1 if too_much or not limits else 0


if __name__ == "__main__":
    sys.exit(main())
