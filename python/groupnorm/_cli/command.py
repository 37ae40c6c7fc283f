"""What the subcommands share: errors, exit statuses, options and words."""

import argparse
import importlib
import math
import os
import re
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NoReturn

import groupnorm

from .._core import ACTIVATIONS, allowed_memory, format_bytes

OK, WRONG_RESULT, BAD_INPUT = 0, 1, 2

MOST_THREADS = 1024


class BadInput(Exception):
    """A command line, file or machine that cannot do what is asked, in one line."""


class Parser(argparse.ArgumentParser):
    """Raises `BadInput` where argparse would print the usage and exit."""

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)  # type: ignore[arg-type]

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is not None:  # argparse passes over what it cannot write
            file.write(message)

    def error(self, message: str) -> NoReturn:
        raise BadInput(message.removeprefix("argument "))


def whole_number(least: int = -(2**63), most: int = 2**63 - 1) -> Callable[[str], int]:
    """A decimal number as argparse's ``type``; ``int`` takes "1_000" and any script's digits."""

    def parse(text: str) -> int:
        if re.fullmatch("-?[0-9]{1,20}", text) and least <= int(text) <= most:
            return int(text)
        rule = "a whole number" if least == -(2**63) else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"must be {rule}; got {text!r}")

    return parse


def finite_number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """As `whole_number`, of decimal numbers that need not be whole."""

    def parse(text: str) -> float:
        if re.fullmatch(r"-?([0-9]+\.?|[0-9]*\.[0-9]+)([eE][-+]?[0-9]+)?", text):
            number = float(text)
            if math.isfinite(number) and least <= number <= most:
                return number
        rule = (
            f"finite and at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        )
        raise argparse.ArgumentTypeError(f"must be {rule}; got {text!r}")

    return parse


threads = whole_number(1, MOST_THREADS)


def require_threads_of_environment() -> None:
    """Refuses a GROUPNORM_NUM_THREADS that is no number of threads: the engine passes over it."""
    if text := os.environ.get("GROUPNORM_NUM_THREADS"):
        try:
            threads(text)
        except argparse.ArgumentTypeError as error:
            raise BadInput(f"GROUPNORM_NUM_THREADS: {error}") from None


def add_activation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        default="none",
        metavar="NAME",
        help=f"function applied to gamma * xhat + beta: one of {', '.join(ACTIVATIONS)}",
    )


def add_threads(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--threads", type=threads, metavar="T", help=f"number of threads; default: {default}"
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


def require_memory(needed: float, what: str) -> None:
    """Refuses what the system would kill this process for."""
    memory = allowed_memory()
    if needed > memory:
        raise BadInput(
            f"{what}: needs {format_bytes(needed)} of memory, this process may have "
            f"{format_bytes(memory)}"
        )
