"""What the edge library adds to a stripped program, and what the library asks of others.

Fails above --most bytes, and where the library needs more than a few functions of libc and libm.
"""

import argparse
import collections
import pathlib
import re
import struct
import subprocess
import sys

# What the library may call: nothing that allocates, locks, throws, prints or reads the environment.
ALLOWED = {
    *("memcpy", "memmove", "memset", "memcmp", "bcmp", "strcmp", "strlen"),
    *("exp", "erf", "erfc", "tanh", "cosh", "sqrt"),
}
SHF_ALLOC = 2


def loaded_bytes(path: pathlib.Path) -> int:
    """Bytes of the sections that a 64-bit little-endian ELF program has in memory."""
    elf = path.read_bytes()
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count = struct.unpack_from("<HH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, offset + i * size) for i in range(count)]
    return sum(header[5] for header in headers if header[2] & SHF_ALLOC)


def sections(map_file: pathlib.Path, library: str) -> collections.Counter[tuple[str, str]]:
    """Bytes by (object, kind of section) that a linker's map says are linked from `library`."""
    text = map_file.read_text().split("Linker script and memory map", 1)[1]
    pattern = re.compile(
        r"^ \.(text|rodata|data|bss|init_array|eh_frame)\S*\s+0x[0-9a-f]+\s+0x([0-9a-f]+) "
        r"\S*" + re.escape(library) + r"\(([^)]+)\)$",
        re.MULTILINE,
    )
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for kind, size, member in pattern.findall(text):
        found[member.removesuffix(".cpp.o"), kind] += int(size, 16)
    return found


def calls(nm: str, library: pathlib.Path) -> set[str]:
    """Names of C that the library leaves to others."""
    out = subprocess.run([nm, library], check=True, capture_output=True, text=True).stdout
    symbols = re.findall(r"^[0-9a-f ]{16} ([A-Za-z]) (\S+)$", out, re.MULTILINE)
    defined = {name for kind, name in symbols if kind not in "Uw"}
    return {name for kind, name in symbols if kind in "Uw"} - defined


def main() -> int:
    """Print the sizes; 1 where something is too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, required=True, help="bytes")
    parser.add_argument("--nm", required=True)
    for name in ("--library", "--with-library", "--without", "--map"):
        parser.add_argument(name, type=pathlib.Path, required=True)
    options = parser.parse_args()

    adds = loaded_bytes(options.with_library) - loaded_bytes(options.without)
    print(
        f"{adds} bytes more than the same program without the library, of {options.most} allowed:"
    )
    parts = sections(options.map, options.library.name)
    for (member, kind), size in parts.most_common():
        print(f"{size:8} {kind:8} {member}")
    inside = sum(parts.values())
    print(f"{adds - inside:8} the program itself, and its links to libc and libm")
    others = calls(options.nm, options.library)
    print("it calls", ", ".join(sorted(others)))
    too_much = sorted(others - ALLOWED)
    if too_much:
        print("error: it should not call", ", ".join(too_much))
    if adds > options.most:
        print(f"error: {adds} bytes are more than {options.most}")
    return 1 if too_much or adds > options.most else 0


if __name__ == "__main__":
    sys.exit(main())
