"""What the subcommands share: errors, exit statuses, options and words."""

import argparse
import importlib
import os
from collections.abc import Iterable
from types import ModuleType
from typing import NoReturn

import groupnorm

OK, WRONG_RESULT, BAD_INPUT = 0, 1, 2

LAYOUTS = ("channels_first", "channels_last")
ACTIVATIONS = ("none", "relu", "silu", "gelu", "gelu_tanh", "hard_swish")
MOST_THREADS = 1024


class BadInput(Exception):
    """A command line, file or machine that cannot do what is asked, in one line."""


class Parser(argparse.ArgumentParser):
    """Raises `BadInput` where argparse would print the usage and exit."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise BadInput(message.removeprefix("argument "))


def threads(text: str) -> int:
    """A number of threads, as argparse's ``type``."""
    count = int(text) if text.isdecimal() else 0
    if 1 <= count <= MOST_THREADS:
        return count
    raise argparse.ArgumentTypeError(f"must be from 1 to {MOST_THREADS}; got {text!r}")


def add_activation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="none",
        metavar="NAME",
        help=f"applied to gamma * xhat + beta: one of {', '.join(ACTIVATIONS)}",
    )


def add_threads(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--threads", type=threads, metavar="T", help=f"threads to use; without it {default}"
    )


def require(package: str, extra: str, what: str) -> ModuleType:
    """Imports an optional package; `what` needs it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        name = {"PIL": "pillow", "pydicom": "pydicom 3", "sklearn": "scikit-learn"}.get(name, name)
        raise BadInput(
            f"{what}: needs {name}, which is not installed: pip install groupnorm[{extra}]"
        ) from None


def require_target() -> None:
    """Refuses a GROUPNORM_TARGET that this machine does not have."""
    info = groupnorm.info()
    if info["target"] is None:
        asked = os.environ.get("GROUPNORM_TARGET", "")
        raise BadInput(
            f"GROUPNORM_TARGET={asked}: is not available here; available: "
            f"{', '.join(info['targets'])}"
        )


def format_shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def format_bytes(size: float) -> str:
    units = ("B", "KB", "MB", "GB", "TB", "PB", "EB")
    unit = 0
    while size >= 1024 and unit + 1 < len(units):
        size /= 1024
        unit += 1
    return f"{size:.1f} {units[unit]}" if size < 10 and unit > 0 else f"{size:.0f} {units[unit]}"
