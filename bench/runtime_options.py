"""The options that the benchmarks of runtimes have in common."""

import argparse
import pathlib
from collections.abc import Sequence


def runtime_options(description: str | None, models: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of --threads, --seconds, --quick, --norms, --models, --model (of `models`), --json."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T")
    parser.add_argument("--seconds", type=float, default=5, help="of each case and its ways")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument("--norms", action="store_true", help="norms alone")
    alone.add_argument("--models", action="store_true", help="models alone")
    parser.add_argument("--model", nargs="+", default=models, metavar="NAME")
    parser.add_argument(
        "--json",
        type=pathlib.Path,
        required=True,
        metavar="FILE",
        help="where results go; those of other cases that it has stay",
    )
    return parser
