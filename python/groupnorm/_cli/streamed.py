"""``run --memory``: normalizes an array that is larger than memory, slab by slab."""

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import groupnorm

from .. import stream
from .command import BadInput, format_bytes, format_shape, require
from .files import read_param, require_file, suffix_of
from .files_nifti import is_gzip, open_plain
from .files_numpy import write_npy
from .pending import pending, require_replaceable, same_file

# The norms whose blocks `stream` knows: groups of channels, each channel; over a batch.
_NORMS = ("group", "layer", "instance", "batch", "batch_group", "rms", "group_rms")
_NEEDS_WHOLE_FILES = ("key", "format", "force", "large")


@contextlib.contextmanager
def _opened(path: Path, beside: Path) -> Iterator[tuple[Any, str | None]]:
    """What slices like an array, and the letters of its axes where the format tells them."""
    if path.is_dir():
        zarr = require("zarr", "zarr", f"'{path}'")
        try:
            yield zarr.open_array(str(path), mode="r"), None
        except (FileNotFoundError, ValueError) as error:
            raise BadInput(f"'{path}': holds no array of zarr: {error}") from error
        return
    require_file(path)
    if suffix_of(path) == ".npy":
        try:
            yield np.load(path, mmap_mode="r", allow_pickle=False), None
        except ValueError as error:
            raise BadInput(f"'{path}': is no whole .npy: {error}") from error
        return
    if suffix_of(path) not in (".nii", ".nii.gz"):
        raise BadInput(f"'{path}': --memory reads .npy, .nii, .nii.gz and .zarr")
    nibabel = require("nibabel", "io", f"'{path}'")
    with contextlib.ExitStack() as files:
        with open(path, "rb") as file:
            packed = is_gzip(file.read(2))
        if packed:  # which can't be sliced
            plain = files.enter_context(tempfile.NamedTemporaryFile(suffix=".nii", dir=beside))
            with open_plain(path) as packed_file:
                shutil.copyfileobj(packed_file, plain, 1 << 20)
            plain.flush()
            path = Path(plain.name)
        data = nibabel.load(path).dataobj
        yield data, {3: "SSS", 4: "SSSC"}.get(len(data.shape))


class _Bar:
    """How far it is, on a terminal."""

    def __init__(self) -> None:
        self.start = self.shown = time.monotonic()
        self.file = sys.stderr if sys.stderr.isatty() else None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.file is None or (now - self.shown < 0.1 and done < total):
            return
        self.shown = now
        speed = done / max(now - self.start, 1e-9)
        filled = "#" * (30 * done // max(total, 1))
        end = "\n" if done == total else ""
        self.file.write(
            f"\r[{filled:<30}] {100 * done // max(total, 1):3d} %  {format_bytes(speed)}/s  {end}"
        )
        self.file.flush()


def run_streamed(options: argparse.Namespace) -> str:
    """Normalizes x to y; says what was done.

    Raises:
        BadInput: of what the command line, a file or the machine does not allow.
    """
    for name in _NEEDS_WHOLE_FILES:
        if getattr(options, name):
            raise BadInput(f"--{name}: means nothing beside --memory")
    if options.norm not in _NORMS:
        raise BadInput(f"--norm {options.norm}: cannot be had with --memory")
    output: Path = options.output
    if suffix_of(output) not in (".npy", ".zarr"):
        raise BadInput(f"'{output}': --memory writes .npy and .zarr")
    if same_file(options.x, output):
        raise BadInput(f"-o and x: must be two files with --memory; got '{output}'")
    if output.exists() and not output.is_dir():
        require_replaceable(output, output.stat())
    with _opened(options.x, output.parent) as (source, axes):
        axes = options.axes or axes
        layout = options.layout or "channels_first"
        c = _channels(tuple(source.shape), axes, layout)
        groups = _groups(options, c)
        dtype = stream.float_of(source.dtype)
        params = [_param(option, dtype) for option in (options.gamma, options.beta)]
        start = time.perf_counter()
        try:
            moments = stream.normalize_array(
                *(source, output, groups, *params, options.eps),
                across_batch=options.norm in ("batch", "batch_group"),
                center=options.norm not in ("rms", "group_rms"),
                activation=options.activation,
                layout=layout,
                axes=axes,
                correction=options.correction,
                memory=options.memory,
                progress=_Bar(),
            )
        except (TypeError, ValueError, OSError, ImportError) as error:
            raise BadInput(str(error)) from error
        seconds = time.perf_counter() - start
        if options.stats is not None:
            rstd = moments.rstd(
                options.eps, options.correction, center=options.norm not in ("rms", "group_rms")
            )
            with pending(options.stats) as stats:
                write_npy(stats, np.stack([moments.mean, rstd]))
        size = int(np.prod(source.shape)) * dtype.itemsize
        return (
            f"x        {source.dtype} {format_shape(source.shape)}\n"
            f"norm     {options.norm}, {moments.mean.size} blocks\n"
            f"time     {seconds:.1f} s, {format_bytes(size / seconds)}/s of y\n"
            f"wrote    {output}"
        )


def _channels(shape: tuple[int, ...], axes: str | None, layout: str) -> int:
    if axes is not None:
        return shape[axes.index("C")] if "C" in axes and len(axes) == len(shape) else 1
    if len(shape) < 2:
        raise BadInput(f"--axes: needed, as x has shape {format_shape(shape)}")
    return shape[1] if layout == "channels_first" else shape[-1]


def _groups(options: argparse.Namespace, c: int) -> int | None:
    grouped = options.norm in ("group", "batch_group", "group_rms")
    if options.groups is not None and not grouped:
        raise BadInput(f"--groups: means nothing to --norm {options.norm}")
    if options.norm in ("instance", "batch"):
        return None
    if not grouped:
        return 1
    return options.groups or groupnorm.suggest_groups(max(c, 1)).groups


def _param(path: Path | None, dtype: np.dtype[Any]) -> Any:
    return None if path is None else read_param(path).astype(dtype)
