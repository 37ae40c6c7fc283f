"""Instructions of a call, in the kernels and around them, counted by callgrind.

    python bench/instructions.py build/bench/tools/groupnorm --json build/bench/instructions.json

Counts, unlike times, are the same on a busy machine and where the processor's own counters are out
of reach. `groupnorm bench` makes the calls, under `valgrind`, which runs no AVX-512. report.py makes
a table of the JSON: instructions for 8 elements, a vector of f32 in AVX2.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from groupnorm._cli.command import BadInput
from groupnorm._cli.pending import pending

LAYOUTS = ("channels_first", "channels_last")
SHAPES = (
    ("16x32x64x64", 8),
    ("2x64x56x56", 32),
    ("2x2048x7x7", 32),
    ("1x32x8x8", 8),
    ("8x512", 32),
    ("1024x768", 1),
)
_LINE = re.compile(r"^ *([\d,]+) \([ \d.]+%\)  [^:\n]*:(.*)$", re.MULTILINE)
# The namespace of an instruction set.
_KERNEL = re.compile(r"groupnorm::detail::N_\w+::")


def calls_of(profile: str, direction: str) -> int:
    """How many calls a profile holds: each checks its arguments once.

    Raises:
        BadInput: there is none.
    """
    checked = re.search(rf"fn=(\(\d+\)) groupnorm::detail::check_{direction}\(", profile)
    name = re.escape(checked[1]) if checked else "none"
    calls = re.findall(rf"^cfn={name}[^\n]*\ncalls=(\d+)", profile, re.MULTILINE)
    if not calls:
        raise BadInput(f"callgrind saw no call of Plan::{direction}: is the program stripped?")
    return sum(map(int, calls))


def split(listing: str) -> tuple[int, int]:
    """Instructions in kernels and around them, of what callgrind_annotate lists."""
    inside = around = 0
    for count, function in _LINE.findall(listing):
        instructions = int(count.replace(",", ""))
        if _KERNEL.search(function):
            inside += instructions
        else:
            around += instructions
    return inside, around


def _run(*command: str | Path) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except OSError as error:
        raise BadInput(f"{command[0]}: cannot be run: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise BadInput(f"{command[0]}: {error.stderr.strip() or 'failed'}") from error


def count(program: Path, direction: str, layout: str, shape: str, groups: int) -> dict[str, Any]:
    """One call's instructions for 8 elements, in kernels and around them."""
    options = ["bench", "--json", "--hot", "--threads=1", "--seconds=0", f"--layout={layout}"]
    options += [f"--shape={shape}", f"--groups={groups}"]
    if direction == "backward":
        options.append("--backward")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "profile"
        valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
        toggle = f"--toggle-collect=groupnorm::Plan::{direction}*"
        said = json.loads(_run(*valgrind, toggle, program, *options))
        calls = calls_of(out.read_text(), direction)
        inside, around = split(_run("callgrind_annotate", "--threshold=100", out))
    eights = calls * prod(map(int, shape.split("x"))) / 8
    return {
        "direction": direction,
        "layout": layout,
        "shape": shape,
        "groups": groups,
        "target": said["target"],
        "kernels": inside / eights,
        "around": around / eights,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", type=Path, help="the command line groupnorm, not stripped")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    counted = []
    try:
        for direction in ("forward", "backward"):
            for shape, groups in SHAPES:
                for layout in LAYOUTS:
                    found = count(options.program.absolute(), direction, layout, shape, groups)
                    counted.append(found)
                    print(
                        f"{direction} {layout} {shape}, {groups} groups: {found['kernels']:.1f} in "
                        f"kernels and {found['around']:.1f} around them, for 8 elements"
                    )
        with pending(options.json) as temporary:
            temporary.write_text(json.dumps({"instructions": counted}))
    except BadInput as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
