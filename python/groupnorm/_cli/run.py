"""``run``: normalizes the array of a file."""

import argparse
import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import groupnorm

from .._arrays import as_array
from .._blocks import Blocks, normalize
from .._core import LAYOUTS
from .command import (
    OK,
    BadInput,
    add_activation,
    add_threads,
    finite_number,
    format_shape,
    require_target,
    whole_number,
)
from .files import (
    FORMATS,
    read,
    read_param,
    require_known_output,
    require_writable,
    suffix_of,
    write,
)
from .files_numpy import write_npy
from .format import How
from .pending import pending, same_file
from .streamed import run_streamed
from .tensor import DTYPES, FloatArray, Result, Tensor, View, view

# The examples and the channels of a block, from n, c and the number of groups.
_BLOCKS: dict[str, Callable[[int, int, int], tuple[int, int]]] = {
    "group": lambda n, c, groups: (1, c // groups),
    "layer": lambda n, c, groups: (1, c),
    "instance": lambda n, c, groups: (1, 1),
    "batch": lambda n, c, groups: (n, 1),
    "ghost_batch": lambda n, c, groups: (n // groups, 1),
    "batch_group": lambda n, c, groups: (n, c // groups),
    "rms": lambda n, c, groups: (1, c),
    "group_rms": lambda n, c, groups: (1, c // groups),
}
_GROUPED = ("group", "ghost_batch", "batch_group", "group_rms")
_MOST_ROWS = 8

_DESCRIPTION = """\
Normalize the array of a file. The format is detected from the first bytes of the file, not from its
name, and determines the axes:

  npy, npz     N, C, space...    (N, space..., C with --layout channels_last)
  nifti        space; the fourth axis, or the colours, are C (needs nibabel)
  dicom        frames are N, colours are C; values are rescaled (needs pydicom)
  png, jpeg    colours are C, without alpha; rotated as a viewer does (needs pillow, imagecodecs)
  tiff         as png; pages are N (needs tifffile, imagecodecs)

--axes overrides this. A missing axis N or C has size 1. No value is changed on reading: integers and
rescaled values become float32 if it represents all of them exactly, else float64; a file that float64
cannot represent is refused. float16, float32 and float64 keep their dtype.

Output formats, chosen by the name of -o: .npy, .npz (y, mean, rstd), .nii, .nii.gz and .png (scaled to
8 bits, for viewing). The file appears when it is complete. A .nii keeps the affine and header of a
NIfTI file, or spacing, orientation and position of a DICOM image; a .png keeps the ICC profile, EXIF,
text and resolution of an image. The command names whatever it does not keep."""


def _axes(text: str) -> str:
    if text and not set(text) - set("NCS") and text.count("N") <= 1 and text.count("C") <= 1:
        return text
    raise argparse.ArgumentTypeError(
        f"must be letters N, C and S, N and C at most once; got {text!r}"
    )


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="normalize the array of a file",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("x", type=Path, help="the file to read")
    add("-o", "--output", type=Path, required=True, metavar="y", help="the file to write; may be x")
    add(
        "--norm",
        choices=_BLOCKS,
        default="group",
        metavar="NORM",
        help=f"one of {', '.join(_BLOCKS)}; default: group",
    )
    add(
        *("--groups", "-g"),
        type=whole_number(),
        metavar="G",
        help="number of groups of channels; default: what suggest_groups returns (ghost_batch: number "
        "of virtual batches, required)",
    )
    add(
        "--layout",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help="axes of a .npy or .npz file: channels_first or channels_last; default: channels_first",
    )
    add(
        "--axes",
        type=_axes,
        help="one letter per axis of the file: N examples, C channels, S space; for example SSSC",
    )
    add_activation(parser)
    add("--gamma", type=Path, metavar="FILE", help=".npy file of shape [C] or [N, C]")
    add("--beta", type=Path, metavar="FILE", help="as --gamma, with the same shape")
    add(
        "--eps",
        type=finite_number(0),
        default=1e-5,
        help="value added to the variance; default: 1e-5",
    )
    add(
        "--correction",
        type=whole_number(0, 1),
        metavar="0|1",
        default=0,
        help="the variance divides by m - correction; default: 0",
    )
    add(
        "--format",
        choices=FORMATS,
        metavar="NAME",
        help=f"format of x, if its first bytes fit several: one of {', '.join(FORMATS)}",
    )
    add(
        "--force",
        action="store_true",
        help="read x in the format of --format or its name (else dicom), whatever its first bytes are",
    )
    add(
        "--large",
        action="store_true",
        help="read images of more than 178956970 pixels",
    )
    add("--key", metavar="NAME", help="name of the array in a .npz file; default: the only one")
    add(
        "--stats",
        type=Path,
        metavar="FILE",
        help="write mean and rstd to this .npy, float64 [2, N / examples of a block, C / channels "
        "of a block]: [2, N, G] for groups",
    )
    add(
        "--memory",
        metavar="SIZE",
        help="take no more than this, as 2G, and x slab by slab: for a .npy, .nii, .nii.gz or "
        ".zarr that is larger than memory, to a .npy or .zarr. After Ctrl-C the same command goes on",
    )
    add_threads(parser, "GROUPNORM_NUM_THREADS, else all cores")
    parser.set_defaults(command=_run)


def _choose_groups(options: argparse.Namespace, n: int, c: int) -> tuple[int, str]:
    """The number of groups, and where it comes from."""
    norm, groups = options.norm, options.groups
    if norm not in _GROUPED:
        if groups is not None:
            raise BadInput(f"--groups: means nothing to --norm {norm}")
        return 0, ""
    size, what = (n, "examples") if norm == "ghost_batch" else (c, "channels")
    if groups is None:
        if norm == "ghost_batch":
            raise BadInput("--groups: needed by --norm ghost_batch")
        if c == 0:
            raise BadInput("--groups: needed where there are no channels")
        suggested = groupnorm.suggest_groups(c)
        return suggested.groups, f", {suggested.groups} groups ({suggested.reason})"
    if groups < 1 or size % groups:
        raise BadInput(f"--groups: must be at least 1 and divide the {size} {what}; got {groups}")
    return groups, f", {groups} groups"


def _read_param(option: str, path: Path | None, seen: View, notes: list[str]) -> FloatArray | None:
    """gamma or beta, in float32, or float64 where x is."""
    if path is None:
        return None
    try:
        param = read_param(path)
    except BadInput as error:
        raise BadInput(f"{option}: {error}") from error
    shared, adaptive = (seen.c,), (seen.n, seen.c)
    if param.shape not in (shared, adaptive):
        raise BadInput(
            f"{option}: '{path}': has shape {format_shape(param.shape)}; must be "
            f"{format_shape(shared)}, one a channel, or {format_shape(adaptive)}, one a channel "
            "and example"
        )
    dtype = np.float64 if seen.array.dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):
        rounded: FloatArray = np.ascontiguousarray(param, dtype=dtype)
    if np.isinf(rounded).sum() > np.isinf(param).sum():
        most = np.abs(param[np.isfinite(param)]).max()
        raise BadInput(
            f"{option}: '{path}': must be within float32, as x is not float64; got {most:g}"
        )
    if param.dtype == np.float64 and dtype == np.float32:
        notes.append(f"{option[2:]} rounded from float64 to float32")
    return rounded


class _Norm:
    """What is to be computed on a view: its blocks, gamma and beta."""

    def __init__(self, options: argparse.Namespace, seen: View) -> None:
        groups, self.groups_text = _choose_groups(options, seen.n, seen.c)
        self.options = options
        self.name: str = options.norm
        self.notes: list[str] = []
        self.gamma = _read_param("--gamma", options.gamma, seen, self.notes)
        self.beta = _read_param("--beta", options.beta, seen, self.notes)
        given = [param.shape for param in (self.gamma, self.beta) if param is not None]
        if len(set(given)) > 1:
            raise BadInput("--gamma and --beta: must be of the same shape")
        n, c, s = seen.n, seen.c, seen.s
        examples, channels = _BLOCKS[self.name](n, c, groups)
        empty = seen.array.size == 0
        self.down, self.across = (0, 0) if empty else (n // examples, c // channels)
        self.m = examples * channels * s
        self.blocks = Blocks(
            *(n, c, s, examples, channels),
            statistics=(self.down, self.across),
            params=((c,), (n, c)),
            layout=seen.layout,
        )

    def apply(self, seen: View) -> tuple[FloatArray, FloatArray, float]:
        """Replaces the view's array by y; mean, rstd, seconds."""
        options = self.options
        x = as_array("x", seen.array)
        start = time.perf_counter()
        try:
            _, mean, rstd = normalize(
                *(self.blocks, x, self.gamma, self.beta),
                *(options.eps, options.activation, x, (False, True)),
                correction=options.correction,
                center=self.name not in ("rms", "group_rms"),
            )
        except (TypeError, ValueError) as error:
            raise BadInput(str(error)) from error
        assert mean is not None and rstd is not None  # as asked for
        return mean, rstd, time.perf_counter() - start

    def measure(self, seen: View) -> list[tuple[float, float]]:
        """Mean and deviation of the first blocks of the view's array."""
        first = seen.array if seen.layout == "channels_first" else seen.array.swapaxes(1, 2)
        examples, channels = self.blocks.examples, self.blocks.channels
        rows = []
        for block in range(min(self.down * self.across, _MOST_ROWS)):
            i, j = block // self.across * examples, block % self.across * channels
            rows.append(_moments(first[i : i + examples, j : j + channels]))
        return rows


def _moments(block: FloatArray) -> tuple[float, float]:
    """Mean and deviation in float64, in pieces: a block may be most of the memory."""

    def total(function: Callable[[Any], Any]) -> float:
        pieces: Any = np.nditer(
            block,
            flags=["external_loop", "buffered"],
            op_dtypes=[np.float64],
            buffersize=1 << 16,
        )
        with np.errstate(over="ignore", invalid="ignore"):
            return math.fsum([float(function(piece).sum()) for piece in pieces]) / block.size

    try:
        mean = total(lambda piece: piece)
        return mean, math.sqrt(total(lambda piece: (piece - mean) ** 2))
    except (ValueError, OverflowError):  # inf - inf, or beyond float64
        return math.nan, math.nan


def _print(x: Tensor, seen: View, norm: _Norm, seconds: float) -> None:
    array = x.array
    for note in (", ".join(x.notes), *norm.notes):
        if note:
            print(f"read     {note}")
    print(
        f"x        {DTYPES[array.dtype.name]} {format_shape(array.shape)}, axes {x.axes}, seen as "
        f"n {seen.n}, c {seen.c}, s {seen.s}, {seen.layout}"
    )
    print(
        f"norm     {norm.name}{norm.groups_text}: {norm.down * norm.across} blocks of m = {norm.m} "
        "elements"
    )
    print(f"target   {groupnorm.info()['target']}, {groupnorm.get_num_threads()} threads")
    print(f"time     {seconds * 1e3:.3f} ms, {2 * array.nbytes / seconds * 1e-9:.2f} GB/s")


def _print_blocks(
    before: list[tuple[float, float]], after: list[tuple[float, float]], blocks: int
) -> None:
    print("\nblock        mean   deviation  ->      mean   deviation")
    for block, (was, now) in enumerate(zip(before, after, strict=True)):
        print(f"{block:5d} {was[0]:11.5g} {was[1]:11.5g} {now[0]:13.2g} {now[1]:11.7f}")
    if blocks > len(before):
        print(f"  ... and {blocks - len(before)} blocks more")


def _require_own_files(options: argparse.Namespace) -> None:
    """y may take the place of x: x has been read by then. Nothing else named may be lost."""
    named = [("x", options.x), ("--gamma", options.gamma), ("--beta", options.beta)]
    for flag, path, others in (
        ("--stats", options.stats, [("-o", options.output), *named]),
        ("-o", options.output, named[1:]),
    ):
        for other, taken in others:
            if path is not None and taken is not None and same_file(path, taken):
                raise BadInput(f"{flag} and {other}: must be two files; got '{path}' and '{taken}'")


def _run(options: argparse.Namespace) -> int:
    require_target()
    if options.memory is None:
        require_known_output(options.output)
    if options.stats is not None and suffix_of(options.stats) != ".npy":
        raise BadInput(f"--stats: '{options.stats}': the name must end in .npy")
    _require_own_files(options)
    if options.threads:
        groupnorm.set_num_threads(options.threads)
    if options.memory is not None:
        print(run_streamed(options))
        return OK
    how = How(
        *(options.key, options.layout, options.axes),
        *(options.format, options.force, options.large),
    )
    x = read(options.x, how)
    require_writable(options.output, x)
    seen = view(x)
    norm = _Norm(options, seen)
    before = norm.measure(seen)
    mean, rstd, seconds = norm.apply(seen)
    after = norm.measure(seen)
    result = Result(seen.restore(seen.array), mean, rstd, x)
    with contextlib.ExitStack() as files:
        if options.stats is not None:
            stats = files.enter_context(pending(options.stats))
            write_npy(stats, np.stack([mean, rstd]))
        note = write(options.output, result)
    _print(x, seen, norm, seconds)
    print(f"wrote    {options.output}{', ' if note else ''}{note}")
    if before:
        _print_blocks(before, after, norm.down * norm.across)
    return OK
