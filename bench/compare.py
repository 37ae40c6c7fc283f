"""Ours beside every other group normalization that Python can call on a CPU.

    python bench/compare.py --threads 1 --json one.json       # rotating, f32, all three directions
    python bench/compare.py --quick                           # a first look at two shapes
    python bench/compare.py --shape 2x64x56x56 --only torch openvino --hot

All take the same values, each set of them in memory of its own, and are timed in turns, round by
round; medians count. Every result is checked against float64 first: if ours is wrong nobody is
timed, and a rival that computes something else is refused. A rival that is not installed, or does
not do what is asked, is skipped with a line that says so. bench/report.py makes tables of the JSON.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_QUICK_SHAPES = ("16x32x64x64", "1x32x8x8")
_SECONDS, _QUICK_SECONDS = 1.0, 0.05
_DIRECTIONS = ("forward", "forward+silu", "backward")

# A result so far from the exact one, in units of 1 + |gamma xhat| + |beta| or of the terms of a
# gradient, is not one of group normalization in a poorer precision, but something else.
_SOMETHING_ELSE = 2.0**-4


def _keep_to(threads: int) -> None:
    """Leaves the process that many cores: some rivals take all that they see.

    Before anybody is imported, since they count when they start.
    """
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise SystemExit(f"--threads: must be at most {len(cores)} here; got {threads}")
    os.sched_setaffinity(0, cores[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, choices=range(1, cores + 1), default=1, help="default: 1")
    add("--shape", nargs="+", metavar="NxCx...", help="some of the shapes; default: all")
    add("--dtype", nargs="+", choices=("f32", "bf16", "f16"), default=["f32"])
    add("--layout", nargs="+", choices=("channels_first", "channels_last"))
    add("--direction", nargs="+", choices=_DIRECTIONS, default=list(_DIRECTIONS))
    add("--only", nargs="+", metavar="RIVAL", help="these rivals beside ours; default: all")
    add("--hot", action="store_true", help="one set that stays where it is, not rotating")
    add("--seconds", type=float, help=f"for each case, after its check; default: {_SECONDS:g}")
    add("--quick", action="store_true", help="two shapes, a moment for each")
    add("--json", type=Path, metavar="FILE", help="write the results here")
    return parser


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A rival that does not play, and why."""

    rival: str
    why: str


def recruit(
    arena: Any, job: Any, makers: Any, absent: type[Exception]
) -> tuple[Any, list[Skipped]]:
    """`arena` with the rivals that `makers` make of `job`, and those who cannot."""
    rivals, skipped = {}, []
    for name, make in makers.items():
        try:
            rival = make(job)
            view = rival.view(arena.sets[0])
            rival.result(rival.call(view))
            rivals[name] = rival
        except ImportError as error:
            skipped.append(Skipped(name, f"not installed ({error.name})"))
        except absent as error:
            skipped.append(Skipped(name, str(error)))
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            why = str(error).strip().partition("\n")[0]
            skipped.append(Skipped(name, f"cannot: {why[:200]}"))
        except Exception as error:  # a library's own class, for a dtype that it does not have
            if type(error).__module__.partition(".")[0] in ("builtins", __name__):
                raise
            skipped.append(Skipped(name, f"cannot: {str(error).strip().splitlines()[0][:200]}"))
    return dataclasses.replace(arena, rivals=rivals), skipped


def as_json(outcome: Any, setting: Any, skipped: Sequence[Skipped]) -> dict[str, Any]:
    """The object of a case: times in microseconds, errors in eps of the dtype."""
    found: dict[str, Any] = {
        "shape": outcome.case.text,
        "groups": outcome.case.groups,
        "dtype": setting.dtype,
        "layout": setting.layout,
        "direction": setting.direction
        + ("" if setting.activation == "none" else f"+{setting.activation}"),
        "threads": setting.threads,
        "hot": setting.hot,
        "bytes_moved": outcome.bytes_moved,
        "contestants": {},
        "skipped": {each.rival: each.why for each in skipped},
    }
    for name, times in outcome.times.items():
        found["contestants"][name] = {
            "p50_us": times.p50,
            "p99_us": times.p99,
            "copies": outcome.copies(name),
            "max_error_eps": outcome.errors.get(name),
        }
    for name in outcome.refused:
        found["skipped"][name] = f"wrong: off by {outcome.errors[name]:.3g} eps"
    return found


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What a result was measured on: the processor and the versions."""
    from groupnorm._core import caches, processor
    from rivals import RIVALS

    import groupnorm

    return {
        "processor": processor(),
        "target": groupnorm.info()["target"],
        "last_level_cache": max(caches().values()),
        "versions": {"groupnorm": groupnorm.__version__, **_versions(["torch", *RIVALS])},
    }


def _cases(options: argparse.Namespace) -> list[Any]:
    from groupnorm._cli.contest import Case

    every = [
        Case("", tuple(map(int, text.split("x"))), groups)
        for text, groups in (
            *(("16x32x64x64", 8), ("2x320x64x64", 32), ("1x128x512x512", 32)),
            *(("2x64x56x56", 32), ("2x2048x7x7", 32), ("1x32x96x96x96", 8)),
            *(("1x32x8x8", 8), ("8x512", 32), ("1024x768", 1), ("32x256x56x56", 32)),
        )
    ]
    wanted = options.shape or (_QUICK_SHAPES if options.quick else [case.text for case in every])
    known = {case.text: case for case in every}
    if unknown := [text for text in wanted if text not in known]:
        raise SystemExit(f"--shape: must be among {', '.join(known)}; got {unknown[0]}")
    return [known[text] for text in wanted]


def _matches(options: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    from groupnorm import LAYOUTS
    from groupnorm._cli.contest import Setting

    for case, dtype, layout, direction in itertools.product(
        _cases(options), options.dtype, options.layout or LAYOUTS, options.direction
    ):
        if layout == "channels_last" and len(case.shape) < 4:
            continue  # of torch a memory format, which it has not
        activation = "silu" if direction == "forward+silu" else "none"
        yield (
            case,
            Setting(
                api="torch",
                dtype=dtype,
                layout=layout,
                activation=activation,
                backward=direction == "backward",
                hot=options.hot,
                compile="compile" in (options.only or ["compile"]),
                threads=options.threads,
            ),
        )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    _keep_to(options.threads)
    import torch
    from rivals import RIVALS, Absent, Job
    from tqdm import tqdm

    from groupnorm._cli import contest, contest_torch, oracle
    from groupnorm._cli.machine import keep_freed_memory

    torch.set_num_threads(options.threads)
    keep_freed_memory()
    known = {"torch", "compile", *RIVALS}
    if unknown := [name for name in options.only or () if name not in known]:
        raise SystemExit(f"--only: must be among {', '.join(sorted(known))}; got {unknown[0]}")
    makers = {name: make for name, make in RIVALS.items() if name in (options.only or RIVALS)}
    seconds = options.seconds
    if seconds is None:
        seconds = _QUICK_SECONDS if options.quick else _SECONDS
    results: dict[str, Any] = {
        "context": machine(),
        "cases": [],
    }
    told: set[Skipped] = set()
    wrong = False
    matches = list(_matches(options))
    bar = tqdm(matches, unit="case", disable=None)  # disable=None: where stderr is no terminal
    for case, setting in bar:
        bar.set_postfix_str(f"{case.text} {setting.dtype} {setting.layout} {setting.direction}")
        arena = contest_torch.arena(case, setting)
        job = Job(case, setting, *arena.params)
        arena, skipped = recruit(arena, job, makers, Absent)
        skipped += [Skipped(*note.split(" cannot: ", 1)) for note in arena.absent]
        bound = _SOMETHING_ELSE / oracle.EPS[setting.dtype]
        outcome = contest.play(case, arena, seconds, bound)
        del arena, job  # before the next one asks for memory
        found = as_json(outcome, setting, skipped)
        for each in (Skipped(*item) for item in found["skipped"].items()):
            if each not in told:
                tqdm.write(f"skipped  {each.rival}: {each.why}", file=sys.stderr)
            told.add(each)
        if outcome.wrong:
            wrong = True
            tqdm.write(f"WRONG    ours, so nobody was timed: {found}", file=sys.stderr)
            continue
        results["cases"].append(found)
        times = ", ".join(
            f"{name} {each['p50_us']:.4g}" for name, each in found["contestants"].items()
        )
        tqdm.write(
            f"{case.text} {setting.dtype} {setting.layout} {found['direction']}, us: {times}",
            file=sys.stdout,
        )
        if options.json:  # what is known when it is interrupted, too
            from groupnorm._cli.pending import pending

            with pending(options.json) as temporary:
                Path(temporary).write_text(json.dumps(results, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
