"""What a file format is, and what its readers and writers share."""

import contextlib
import dataclasses
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .command import BadInput, format_shape
from .tensor import Result, Tensor


@dataclasses.dataclass(frozen=True)
class How:
    """How to read a file; the fields are options of the command line."""

    key: str | None = None
    layout: str | None = None
    axes: str | None = None
    format: str | None = None
    force: bool = False
    large: bool = False


@dataclasses.dataclass(frozen=True)
class Format:
    """A file format: how it is known, read and written."""

    name: str  # of --format
    suffixes: tuple[str, ...]
    begins: Callable[[bytes], bool]  # whether a file that begins with these `HEAD` bytes is one
    read: Callable[[Path, How], Tensor]
    # Writes y, takes out of the last argument, a copy of `Tensor.beside`, what the format keeps,
    # and returns what there is to say.
    save: Callable[[Path, Result, dict[str, Any]], str] | None = None
    package: str = ""  # that writing needs
    refuses: Callable[[Tensor], str] = lambda x: ""  # why there is no place for y


HEAD = 352  # bytes: a NIfTI-1 header has its magic number at its end

DAMAGED = "is cut short or damaged"

# How libraries name a file that ends early.
_CUT = re.compile(
    "truncat|end of file|ended before|less than expected|incomplete|failed to read|cannot load",
    re.IGNORECASE,
)


def cut_short(path: Path, why: str, fault: str = "is cut short") -> BadInput:
    return BadInput(f"'{path}': cannot be read: {fault}: {why}")


def cut_data(path: Path, held: int, shape: tuple[int, ...], needed: int) -> BadInput:
    return cut_short(
        path, f"holds {held} bytes of data; its shape {format_shape(shape)} needs {needed}"
    )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what a library raises about a file into `BadInput`."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # every library has exceptions of its own
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, (EOFError, struct.error)) or _CUT.search(reason):
            raise cut_short(path, reason or type(error).__name__, DAMAGED) from error
        raise BadInput(f"'{path}': cannot be read: {reason or type(error).__name__}") from error
