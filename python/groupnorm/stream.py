"""Norms of arrays that are larger than memory, on one machine: two passes over slabs of a file.

    >>> groupnorm.stream.group_norm(source, "y.zarr", num_groups=8, memory="2 GB")

The source is anything that slices like an array: numpy.memmap, a dataset of h5py, an array of zarr,
the dataobj of a nibabel image. Its slabs follow its chunks. The first pass makes moments of them, the
second normalizes by those of the whole; the next slab is read and the last one written meanwhile.
"""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from . import _functional
from ._arrays import Array, ArrayLike, as_array, as_integer
from ._pieces import Moments, merged, moments, normalize

# Slabs that are in memory at a time: x and y of the one that is computed; of the next one x, and
# what it is decoded or mapped from; of the last one y, and the pages of the target it is written to.
# Two more are room for threads, modules and buffers of a store.
_AT_ONCE = 8

Progress = Callable[[int, int], None]


def group_norm(
    source: Any,
    target: Any,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    layout: str = "channels_first",
    axes: str | None = None,
    correction: int = 0,
    memory: int | str = "2 GB",
    progress: Progress | None = None,
) -> Moments:
    """Group normalization (arXiv:1803.08494) from a source to a target, in bounded memory.

    Args:
        source: an array of any kind that has shape and dtype and gives NumPy arrays for slices:
            [N, C, ...], or [N, ..., C] by `layout`, or as `axes` says. Integers of up to 16 bits
            become float32, others float64.
        target: where y goes: an array that takes slices, of the shape of source and the dtype of y;
            or a path that ends in .npy or .zarr. What is under that name appears when it is whole.
            A call that was interrupted (Ctrl-C) leaves its part beside it, and the same call goes
            on from there.
        num_groups: divides C.
        weight: [C], or [N, C]; None: 1. Of the dtype of y.
        bias: as weight; None: 0.
        eps: added to the variance.
        activation: see groupnorm.group_norm.
        layout: "channels_first" or "channels_last"; not used beside axes.
        axes: a letter for each axis of source, N examples, C channels and S space, as in "SSSC";
            without N there is one example, without C one channel.
        correction: var divides by m - correction.
        memory: bytes, or as "2 GB" (units of 1024): what the call may take beside what the process
            has. A slab is an eighth of it at most.
        progress: called after each slab with the bytes that are done and those of both passes.

    Returns:
        The moments of the blocks, [N, num_groups].

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value; a budget that holds no slab.
        FileExistsError: target is the path of a directory that exists.
        OSError: source cannot be read or target not written. What was under its name stays.
    """
    return normalize_array(
        *(source, target, num_groups, weight, bias, eps),
        activation=activation,
        layout=layout,
        axes=axes,
        correction=correction,
        memory=memory,
        progress=progress,
    )


def normalize_array(
    source: Any,
    target: Any,
    num_groups: int | None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    across_batch: bool = False,
    center: bool = True,
    activation: str | None = None,
    layout: str = "channels_first",
    axes: str | None = None,
    correction: int = 0,
    memory: int | str = "2 GB",
    progress: Progress | None = None,
) -> Moments:
    """group_norm and its family: without num_groups each channel by itself.

    Args are those of group_norm, and:

    Args:
        source: see group_norm.
        target: see group_norm.
        num_groups: None takes each channel by itself, as instance_norm.
        weight: see group_norm.
        bias: see group_norm.
        eps: see group_norm.
        across_batch: whether all examples share a block, as in batch_norm.
        center: False normalizes by the root of the mean square, as rms_norm.
        activation: see group_norm.
        layout: see group_norm.
        axes: see group_norm.
        correction: see group_norm.
        memory: see group_norm.
        progress: see group_norm.
    """
    shape = tuple(as_integer("source.shape", size) for size in source.shape)
    axes = _axes(shape, axes, layout)
    dtype = float_of(source.dtype)
    n, c = (shape[axes.index(letter)] if letter in axes else 1 for letter in "NC")
    if num_groups is not None:
        num_groups = as_integer("num_groups", num_groups)
    _check(n, c, dtype, num_groups, weight, bias, eps, activation, correction)
    params = [None if p is None else as_array("weight", p) for p in (weight, bias)]
    slabs = _slabs(source, shape, dtype.itemsize, _bytes(memory))
    job = _Job(source, shape, axes, dtype, slabs, progress or (lambda done, total: None))
    key = [shape, axes, str(source.dtype), num_groups, across_batch, center, eps, activation]
    key += [correction, len(slabs), *(None if p is None else p.tolist() for p in params)]
    with _opened(target, source, shape, dtype, slabs, repr(key)) as (array, state):
        if state.moments is None:
            state.moments = job.reduce(n, c).tolist()
            state.save()
        total = Moments(numpy.array(state.moments).reshape(n, c, 3))
        whole = total.channels_to_groups(num_groups) if num_groups else total
        spread = whole.across(0) if across_batch else whole
        each = spread.groups_to_channels(c)

        def apply(x: Array, of_n: slice, of_c: slice) -> Array:
            weight, bias = (_of_piece(p, of_n, of_c) for p in params)
            here = each.data[of_c] if across_batch else each.data[of_n, of_c]
            return normalize(
                x,
                Moments(here),
                weight,
                bias,
                eps,
                activation=activation,
                correction=correction,
                center=center,
                out=x,
            )

        job.apply(apply, array, state)
    return spread


def float_of(dtype: Any) -> numpy.dtype[Any]:
    """Returns the dtype of y for a source of `dtype`: one that holds every value of it.

    Raises:
        TypeError: there is none.
    """
    dtype = numpy.dtype(dtype)
    if dtype.kind in ("b", "u", "i"):
        return numpy.dtype("f4" if dtype.itemsize <= 2 else "f8")
    return as_array("source", numpy.empty(0, dtype)).dtype


# ---- slabs


@dataclass(frozen=True)
class _Slab:
    """A range of each axis."""

    slices: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(each.stop - each.start for each in self.slices)

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def _bytes(memory: int | str) -> int:
    if isinstance(memory, str):
        found = re.fullmatch(
            r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*", memory, re.IGNORECASE
        )
        if found is None:
            raise ValueError(f"memory: must be bytes, or as '2 GB' or '500M'; got {memory!r}")
        return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))
    return as_integer("memory", memory)


def _slabs(source: Any, shape: tuple[int, ...], itemsize: int, memory: int) -> list[_Slab]:
    """The slabs of an array, whole chunks of it, the slowest axis cut first."""
    if math.prod(shape) == 0:
        return []
    chunks = getattr(source, "shards", None) or getattr(source, "chunks", None) or (1,) * len(shape)
    element = max(itemsize, numpy.dtype(source.dtype).itemsize)
    most = memory // _AT_ONCE // element
    sizes = list(shape)
    order = list(range(len(shape)))
    if _is_fortran(source):
        order.reverse()
    for axis in order:
        rest = math.prod(sizes) // sizes[axis]
        chunk = min(int(chunks[axis]), shape[axis])
        if math.prod(sizes) > most:
            sizes[axis] = min(shape[axis], max(1, most // rest // chunk) * chunk)
    if math.prod(sizes) > most:
        needed = math.prod(sizes) * element * _AT_ONCE
        raise ValueError(
            f"memory: must be {needed} bytes at least, {_AT_ONCE} slabs of {tuple(sizes)}, the "
            f"chunks of source; got {memory}"
        )
    counts = [math.ceil(size / step) for size, step in zip(shape, sizes, strict=True)]
    slabs = []
    for index in numpy.ndindex(*counts):
        starts = [i * step for i, step in zip(index, sizes, strict=True)]
        stops = [min(a + step, b) for a, step, b in zip(starts, sizes, shape, strict=True)]
        slabs.append(_Slab(tuple(map(slice, starts, stops))))
    return slabs


def _is_fortran(source: Any) -> bool:
    if isinstance(source, numpy.ndarray):
        return source.flags.f_contiguous and not source.flags.c_contiguous
    return getattr(source, "order", "C") == "F"  # nibabel's dataobj, zarr


def _axes(shape: tuple[int, ...], axes: str | None, layout: str) -> str:
    if axes is None:
        if layout not in ("channels_first", "channels_last"):
            raise ValueError(f"layout: must be 'channels_first' or 'channels_last'; got {layout!r}")
        if len(shape) < 2:
            raise ValueError(f"source: must be of rank 2 or more; got shape {shape}")
        space = "S" * (len(shape) - 2)
        return f"NC{space}" if layout == "channels_first" else f"N{space}C"
    fits = len(axes) == len(shape) and not set(axes) - set("NCS")
    if not fits or axes.count("N") > 1 or axes.count("C") > 1:
        raise ValueError(
            f"axes: must be a letter N, C or S for each axis of {shape}, N and C at most once; "
            f"got {axes!r}"
        )
    return axes


def _check(
    n: int,
    c: int,
    dtype: numpy.dtype[Any],
    num_groups: int | None,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    eps: float,
    activation: str | None,
    correction: int,
) -> None:
    """Lets the norm of NumPy arrays refuse what it would, on one without positions."""
    _functional.group_norm(
        numpy.empty((n, c, 0), dtype),
        *(c if num_groups is None else num_groups, weight, bias, eps),
        activation=activation,
        correction=correction,
    )


def _of_piece(param: Array | None, of_n: slice, of_c: slice) -> Array | None:
    if param is None:
        return None
    piece: Array = param[of_c] if param.ndim == 1 else param[of_n, of_c]
    return piece


# ---- the two passes


def _forget(array: Any) -> None:
    """Lets go of the pages of a file that is mapped: they would count as memory of the process."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and getattr(array, "mode", "c") != "c" and hasattr(mapped, "madvise"):
        import mmap

        mapped.madvise(mmap.MADV_DONTNEED)


@dataclass
class _Job:
    source: Any
    shape: tuple[int, ...]
    axes: str
    dtype: numpy.dtype[Any]
    slabs: list[_Slab]
    progress: Progress
    done: int = 0

    def reduce(self, n: int, c: int) -> Array:
        """Count, mean and m2 of each example and channel, [n, c, 3]."""
        total = numpy.zeros((n, c, 3))
        for slab, x in self._read(self.slabs):
            of_n, of_c = self._examples(slab), self._channels(slab)
            parts = numpy.stack([total[of_n, of_c], moments(self._seen(x)).data])
            total[of_n, of_c] = merged(parts)
            self._advance(slab)
        return total

    def apply(self, call: Callable[..., Array], target: Any, state: "_State") -> None:
        """y to the target, slab by slab, but for those that are there already."""
        self.done = self._bytes() + sum(self._size(slab) for slab in self.slabs[: state.slabs])
        last: Future[None] | None = None
        with ThreadPoolExecutor(1) as writer:
            for slab, x in self._read(self.slabs[state.slabs :]):
                seen = self._seen(x)
                y = call(seen, self._examples(slab), self._channels(slab))
                y = self._restored(y, x)
                if last is not None:
                    last.result()
                last = writer.submit(self._write, target, slab, y, state)
                del x, seen, y
            if last is not None:
                last.result()

    def _write(self, target: Any, slab: _Slab, y: Array, state: "_State") -> None:
        try:
            target[slab.slices] = y
        except OSError as error:
            raise OSError(
                error.errno, f"target: {slab.slices} cannot be written: {error}"
            ) from error
        _forget(target)
        state.slabs += 1
        state.save_sometimes()
        self._advance(slab)

    def _read(self, slabs: list[_Slab]) -> Iterator[tuple[_Slab, Array]]:
        """Slabs in the dtype of y, in memory of their own; the next is read meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            following = reader.submit(self._load, slabs[0]) if slabs else None
            for i, slab in enumerate(slabs):
                assert following is not None
                x = following.result()
                following = None
                if i + 1 < len(slabs):
                    following = reader.submit(self._load, slabs[i + 1])
                yield slab, x
                del x

    def _load(self, slab: _Slab) -> Array:
        try:
            found = numpy.asarray(self.source[slab.slices])
        except OSError as error:
            raise OSError(error.errno, f"source: {slab.slices} cannot be read: {error}") from error
        if found.shape != slab.shape:
            raise ValueError(f"source: ends early: {slab.slices} has shape {found.shape}")
        x: Array = numpy.array(found, dtype=self.dtype, order="K", copy=True)
        _forget(self.source)
        return x

    def _order(self, x: Array) -> list[int]:
        """The axes of x as N, C, and space from the slowest on."""
        space = [i for i, letter in enumerate(self.axes) if letter == "S"]
        space.sort(key=lambda i: -abs(x.strides[i]))
        return [self.axes.index(letter) for letter in "NC" if letter in self.axes] + space

    def _seen(self, x: Array) -> Array:
        """x as [N, C, ...], on its memory where the engine takes it so."""
        seen = x.transpose(self._order(x))
        for i, letter in enumerate("NC"):
            if letter not in self.axes:
                seen = numpy.expand_dims(seen, i)
        dense = seen.flags.c_contiguous or numpy.moveaxis(seen, 1, -1).flags.c_contiguous
        return seen if dense else numpy.ascontiguousarray(seen)

    def _restored(self, y: Array, x: Array) -> Array:
        order = self._order(x)
        return y.reshape([x.shape[i] for i in order]).transpose(numpy.argsort(order))

    def _examples(self, slab: _Slab) -> slice:
        return slab.slices[self.axes.index("N")] if "N" in self.axes else slice(0, 1)

    def _channels(self, slab: _Slab) -> slice:
        return slab.slices[self.axes.index("C")] if "C" in self.axes else slice(0, 1)

    def _size(self, slab: _Slab) -> int:
        return slab.size * self.dtype.itemsize

    def _bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def _advance(self, slab: _Slab) -> None:
        self.done += self._size(slab)
        self.progress(self.done, 2 * self._bytes())


# ---- targets


@dataclass
class _State:
    """How far a call has come. Kept beside its part of a file, for the next one to go on from."""

    path: Path | None = None
    key: str = ""
    moments: list[Any] | None = None
    slabs: int = 0  # written, from the first on
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def load(cls, path: Path, key: str) -> "_State":
        """What is there of the call with that key; the beginning where there is nothing of it."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            found = json.loads(path.read_text())
            if found["key"] == key:
                return cls(path, key, found["moments"], found["slabs"])
        return cls(path, key)

    def save(self) -> None:
        if self.path is None:
            return
        text = json.dumps({"key": self.key, "moments": self.moments, "slabs": self.slabs})
        new = self.path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, self.path)
        self.saved = time.monotonic()

    def save_sometimes(self) -> None:
        """A slab that is written and not noted is written again: no more is lost."""
        if time.monotonic() - self.saved > 1:
            self.save()


@contextlib.contextmanager
def _opened(
    target: Any,
    source: Any,
    shape: tuple[int, ...],
    dtype: numpy.dtype[Any],
    slabs: list[_Slab],
    key: str,
) -> Iterator[tuple[Any, _State]]:
    """An array to write y to, which takes the name of target when all has gone well."""
    if not isinstance(target, (str, os.PathLike)):
        _check_target(target, source, shape, dtype)
        yield target, _State()
        return
    path = Path(target)
    if path.suffix not in (".npy", ".zarr"):
        raise ValueError(
            f"target: must be an array, or a path that ends in .npy or .zarr; got '{path}'"
        )
    if path.is_dir():
        raise FileExistsError(f"target: '{path}' exists, and only a file is replaced")
    part, journal = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.json")
    identity = _identity(source)
    digest = hashlib.sha256(f"{key} {identity}".encode()).hexdigest()
    state = _State.load(journal, digest) if identity else _State()
    going_on = identity is not None and state.moments is not None and part.exists()
    try:
        if not going_on:
            _remove(part)
            state = _State(journal if identity else None, digest)
        yield _create(part, source, shape, dtype, slabs, going_on), state
        _remove(journal)
        os.replace(part, path)
    except Exception:
        _remove(part)
        _remove(journal)
        raise
    except BaseException:  # Ctrl-C
        if identity is None:
            _remove(part)
        else:
            state.save()
        raise


def _check_target(
    target: Any, source: Any, shape: tuple[int, ...], dtype: numpy.dtype[Any]
) -> None:
    if tuple(target.shape) != shape or numpy.dtype(target.dtype) != dtype:
        raise ValueError(
            f"target: must be {shape} {dtype.name}, as y; got {tuple(target.shape)} {target.dtype}"
        )
    arrays = isinstance(target, numpy.ndarray) and isinstance(source, numpy.ndarray)
    if target is source or (arrays and numpy.may_share_memory(target, source)):
        raise ValueError("target: must not overlap source, which is read twice")
    flags = getattr(target, "flags", None)
    if flags is not None and not flags.writeable:
        raise ValueError("target: must be writeable")


def _identity(source: Any) -> str | None:
    """What tells a source on disk from others; None of what is not on disk."""
    store = getattr(source, "store", None)
    for holder, name in (
        (source, "filename"),  # numpy.memmap
        (source, "file_like"),  # nibabel
        (getattr(source, "file", None), "filename"),  # h5py
        (store, "root"),  # zarr
    ):
        path = getattr(holder, name, None)
        if isinstance(path, (str, os.PathLike)) and os.path.exists(path):
            found = os.stat(path)
            inner = getattr(source, "name", None) or getattr(source, "path", None)
            offset = getattr(source, "offset", 0)
            return repr((os.path.realpath(path), found.st_size, found.st_mtime_ns, inner, offset))
    return None


def _create(
    part: Path,
    source: Any,
    shape: tuple[int, ...],
    dtype: numpy.dtype[Any],
    slabs: list[_Slab],
    going_on: bool,
) -> Any:
    try:
        if part.name.endswith(".zarr.part"):
            return _create_zarr(part, source, shape, dtype, slabs, going_on)
        if going_on:
            return numpy.lib.format.open_memmap(part, mode="r+")
        array = numpy.lib.format.open_memmap(
            part, mode="w+", dtype=dtype, shape=shape, fortran_order=_is_fortran(source)
        )
        if hasattr(os, "posix_fallocate"):  # a full disk would end the process at a write
            with open(part, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))
        return array
    except OSError as error:
        raise OSError(
            error.errno, f"target: '{part}' cannot be written: {error.strerror}"
        ) from error


def _create_zarr(
    part: Path,
    source: Any,
    shape: tuple[int, ...],
    dtype: numpy.dtype[Any],
    slabs: list[_Slab],
    going_on: bool,
) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError("target: .zarr needs zarr: pip install groupnorm[zarr]") from error
    if going_on:
        return zarr.open_array(str(part), mode="r+")
    chunks = getattr(source, "chunks", None)
    shards = getattr(source, "shards", None)
    if chunks is None:
        chunks = _chunks(slabs[0].shape if slabs else shape, dtype.itemsize)
    return zarr.create_array(
        store=str(part), shape=shape, chunks=tuple(chunks), shards=shards, dtype=dtype
    )


def _chunks(slab: tuple[int, ...], itemsize: int, most: int = 1 << 24) -> tuple[int, ...]:
    """Chunks of `most` bytes or so, of which a slab has whole ones."""
    sizes = [max(1, size) for size in slab]
    for axis, size in enumerate(sizes):
        divisors = (d for d in range(1, size + 1) if size % d == 0)
        rest = math.prod(sizes) // size * itemsize
        sizes[axis] = next(size // d for d in divisors if rest * (size // d) <= most or d == size)
    return tuple(sizes)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
