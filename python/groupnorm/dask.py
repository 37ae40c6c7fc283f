"""The norms of dask arrays: lazy, chunked along any axes, larger than memory.

    >>> x = dask.array.from_zarr("volume.zarr")      # [N, C, D, H, W]
    >>> groupnorm.dask.group_norm(x, num_groups=8).to_zarr("normalized.zarr")

Each chunk is reduced to moments, 24 bytes a channel and example; a tree merges them, in an order that
the chunks alone decide, and each chunk is normalized by those of the whole. The result does not depend
on the scheduler, to the bit. x is computed twice, once for each pass, so that no chunk waits in memory
for the statistics of the others: persist it where that is dear and x fits into memory.

dask comes with ``pip install groupnorm[dask]``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy

try:
    import dask.array as da
    from dask.graph_manipulation import bind
except ImportError as error:
    raise ImportError("groupnorm.dask needs dask: pip install groupnorm[dask]") from error

from . import _functional
from ._arrays import Array, ArrayLike, as_array
from ._blocks import trailing
from ._pieces import Moments, merged, moments, normalize

# A Moments of one block, as an element of an array.
_RECORD = numpy.dtype([("count", "f8"), ("mean", "f8"), ("m2", "f8")])


def group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
) -> Any:
    """Group normalization (arXiv:1803.08494) of a dask array; see groupnorm.group_norm.

    Args:
        x: [N, C, ...], or [N, ..., C] by `layout`, in float16, bfloat16, float32 or float64, of
            known shape; its chunks may cut any axis anywhere, also within a group of channels.
        num_groups: divides C.
        weight: [C] or [N, C], an array of NumPy or of dask; None: 1.
        bias: as weight; None: 0.
        eps: added to the variance.
        activation: see groupnorm.group_norm.
        layout: "channels_first" or "channels_last".
        correction: var divides by m - correction.

    Returns:
        y, a dask array in the shape, dtype and chunks of x.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value; x has chunks of unknown size.
    """
    _require(x)
    probe = functools.partial(_functional.group_norm, num_groups=num_groups)
    _check(probe, x, weight, bias, eps, activation, layout, correction)
    return _by_channels(x, num_groups, False, weight, bias, eps, activation, layout, correction)


def instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
) -> Any:
    """Instance normalization (arXiv:1607.08022) of a dask array: a group of one channel each."""
    _require(x)
    _check(_functional.instance_norm, x, weight, bias, eps, activation, layout, correction)
    return _by_channels(x, None, False, weight, bias, eps, activation, layout, correction)


def batch_norm(
    x: Any,
    running_mean: ArrayLike | None = None,
    running_var: ArrayLike | None = None,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    layout: str = "channels_first",
) -> Any:
    """Batch normalization (arXiv:1502.03167) of a dask array: each channel over all examples.

    Args that are not listed are those of group_norm.

    Args:
        x: see group_norm.
        running_mean: [C], to be used in the place of the mean of x, with running_var. None: of x.
        running_var: as running_mean.
        weight: see group_norm.
        bias: see group_norm.
        eps: see group_norm.
        activation: see group_norm.
        layout: see group_norm.
    """
    _require(x)
    probe = functools.partial(_functional.batch_norm, running_mean=None, running_var=None)
    _check(functools.partial(probe, training=True), x, weight, bias, eps, activation, layout, 0)
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean, running_var: must both be given or both be None")
    if running_mean is None or running_var is None:
        return _by_channels(x, None, True, weight, bias, eps, activation, layout, 0)
    channels = _channel_axis(x, layout)
    given = []
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        array = as_array(name, value)
        if array.shape != (x.shape[channels],):
            raise ValueError(f"{name}: must be [{x.shape[channels]}]; got shape {array.shape}")
        given.append(array.astype(numpy.float64))
    # As moments of so many numbers that no piece has more.
    count = numpy.full_like(given[0], 2.0**53)
    whole = _records(numpy.stack([count, given[0], given[1] * count], axis=-1))
    shape = [1] * x.ndim
    shape[channels] = -1
    total = da.from_array(whole.reshape(shape), chunks=-1)
    total = total.rechunk({channels: x.chunks[channels]})
    return _apply(x, total, channels, None, True, weight, bias, eps, activation, layout, 0)


def layer_norm(
    x: Any,
    normalized_shape: int | Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    correction: int = 0,
) -> Any:
    """Layer normalization (arXiv:1607.06450) of a dask array, over its last axes.

    Args:
        x: [..., *normalized_shape]; see group_norm.
        normalized_shape: the last sizes of x.
        weight: normalized_shape, an array of NumPy or of dask; None: 1.
        bias: as weight; None: 0.
        eps: see group_norm.
        activation: see group_norm.
        correction: see group_norm.
    """
    _require(x)
    trailing(tuple(map(int, x.shape)), normalized_shape)
    probe = functools.partial(_functional.layer_norm, normalized_shape=normalized_shape)
    empty = numpy.empty((0, *_sizes(normalized_shape)), x.dtype)
    probe(
        empty,
        weight=_shape_of("weight", weight),
        bias=_shape_of("bias", bias),
        eps=eps,
        activation=activation,
        correction=correction,
    )
    last = len(_sizes(normalized_shape))
    _require_degrees(numpy.prod(_sizes(normalized_shape)), correction)
    axes = tuple(range(x.ndim - last, x.ndim))
    total = _reduce(x, axes, functools.partial(_moments_of_rows, last=last))
    return _apply(x, total, None, last, False, weight, bias, eps, activation, "", correction)


# ---- the two passes


def _by_channels(
    x: Any,
    num_groups: int | None,
    across_batch: bool,
    weight: Any,
    bias: Any,
    eps: float,
    activation: str | None,
    layout: str,
    correction: int,
) -> Any:
    """All but layer norm: moments of each channel, so that chunks need not end where groups do."""
    channels = _channel_axis(x, layout)
    elements = x.size // max(1, x.shape[channels])
    if num_groups is not None:
        elements = elements * x.shape[channels] // num_groups
    _require_degrees(elements if across_batch else elements // max(1, x.shape[0]), correction)
    axes = tuple(i for i in range(x.ndim) if i != channels and (i > 0 or across_batch))
    chunk = functools.partial(_moments_of_channels, across_batch=across_batch, layout=layout)
    total = _reduce(x, axes, chunk)
    if num_groups is not None:
        share = functools.partial(_share, num_groups=num_groups, axis=channels)
        total = total.rechunk({channels: -1}).map_blocks(share, dtype=_RECORD, meta=_meta(x))
        total = total.rechunk({channels: x.chunks[channels]})
    return _apply(
        x, total, channels, None, across_batch, weight, bias, eps, activation, layout, correction
    )


def _reduce(x: Any, axes: tuple[int, ...], chunk: Any) -> Any:
    """Moments of the blocks along axes, which become of size 1: records, merged by a tree."""
    if not axes:  # a block of one number each
        return x.map_blocks(functools.partial(chunk, axis=(), keepdims=True), dtype=_RECORD)
    return da.reduction(
        x,
        chunk=chunk,
        combine=_merge,
        aggregate=_merge,
        axis=axes,
        keepdims=True,
        dtype=_RECORD,
        meta=_meta(x),
    )


def _apply(
    x: Any,
    total: Any,
    channels: int | None,
    last: int | None,
    across_batch: bool,
    weight: Any,
    bias: Any,
    eps: float,
    activation: str | None,
    layout: str,
    correction: int,
) -> Any:
    axes = tuple(range(x.ndim))
    if channels is None:
        of_params = axes[x.ndim - last :] if last else ()
    else:
        of_params = (channels,)
    params: list[Any] = []
    for param in (weight, bias):
        if param is None:
            params += (None, None)
            continue
        array = da.asarray(param)
        index = of_params if array.ndim == len(of_params) else (0, *of_params)
        params += (array.rechunk(tuple(x.chunks[i] for i in index)), index)
    call = functools.partial(
        _normalize_chunk,
        last=last,
        across_batch=across_batch,
        eps=eps,
        activation=activation,
        layout=layout,
        correction=correction,
    )
    # Read again, and not before the statistics are there.
    again = bind(x, total)
    return da.blockwise(
        *(call, axes, again, axes, total, axes, *params),
        dtype=x.dtype,
        meta=numpy.empty((0,) * x.ndim, x.dtype),
        align_arrays=False,
    )


# ---- of one chunk


def _records(data: Array) -> Array:
    """[..., 3] as records [...]."""
    records: Array = numpy.ascontiguousarray(data).view(_RECORD)[..., 0]
    return records


def _moments_of_channels(
    x: Array, axis: Any, keepdims: bool, *, across_batch: bool, layout: str
) -> Array:
    found = moments(x, across_batch=across_batch, layout=layout).data
    n = 1 if across_batch else x.shape[0]
    space = (1,) * (x.ndim - 2)
    c = found.shape[-2]
    shape = (n, c, *space) if layout == "channels_first" else (n, *space, c)
    return _records(found).reshape(shape)


def _moments_of_rows(x: Array, axis: Any, keepdims: bool, *, last: int) -> Array:
    found = moments(x, normalized_shape=x.shape[x.ndim - last :]).data
    return _records(found).reshape(x.shape[: x.ndim - last] + (1,) * last)


def _merge(records: Array, axis: Any, keepdims: bool) -> Array:
    """Merges records along axes, which stay with size 1."""
    axes = tuple(numpy.atleast_1d(axis))
    kept = [i for i in range(records.ndim) if i not in axes]
    parts = records.transpose(*axes, *kept)
    rest = parts.shape[len(axes) :]
    flat = numpy.ascontiguousarray(parts).view(numpy.float64).reshape(-1, *rest, 3)
    shape = [1 if i in axes else size for i, size in enumerate(records.shape)]
    return _records(merged(flat)).reshape(shape)


def _share(records: Array, *, num_groups: int, axis: int) -> Array:
    """Gives each channel the moments of its group."""
    last = numpy.moveaxis(records, axis, -1)
    data = numpy.ascontiguousarray(last).view(numpy.float64).reshape(*last.shape, 3)
    shared = Moments(data).channels_to_groups(num_groups).groups_to_channels(last.shape[-1])
    return numpy.moveaxis(_records(shared.data), -1, axis)


def _normalize_chunk(
    x: Array,
    total: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    last: int | None,
    across_batch: bool,
    eps: float,
    activation: str | None,
    layout: str,
    correction: int,
) -> Array:
    if last is not None:
        shape, form = x.shape[: x.ndim - last], {"normalized_shape": x.shape[x.ndim - last :]}
    else:
        c = x.shape[1 if layout == "channels_first" else -1]
        shape, form = ((c,) if across_batch else (x.shape[0], c)), {"layout": layout}
    data = numpy.ascontiguousarray(total).view(numpy.float64).reshape(*shape, 3)
    return normalize(
        x,
        Moments(data),
        weight,
        bias,
        eps,
        activation=activation,
        correction=correction,
        **form,  # type: ignore[arg-type]
    )


# ---- what is refused before anything is computed


def _require(x: Any) -> None:
    if not isinstance(x, da.Array):
        raise TypeError(f"x: must be a dask.array.Array; got {type(x).__name__}")
    if any(numpy.isnan(size) for size in x.shape):
        raise ValueError(
            f"x: must be of known shape; got {x.shape} (x.compute_chunk_sizes() finds it)"
        )
    as_array("x", numpy.empty(0, x.dtype))


def _sizes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(numpy.atleast_1d(normalized_shape).tolist())


def _shape_of(name: str, param: Any) -> Array | None:
    """An array of the shape and dtype of weight or bias, which is not computed."""
    if param is None:
        return None
    array = param if isinstance(param, da.Array) else as_array(name, param)
    return numpy.zeros(array.shape, array.dtype)


def _check(
    norm: Any,
    x: Any,
    weight: Any,
    bias: Any,
    eps: float,
    activation: str | None,
    layout: str,
    correction: int,
) -> None:
    """Lets the norm of NumPy arrays refuse what it would, on one without positions."""
    axis = _channel_axis(x, layout)
    n, c = x.shape[0], x.shape[axis]
    empty = numpy.empty((n, c, 0) if axis == 1 else (n, 0, c), x.dtype)
    more = {"correction": correction} if correction != 0 else {}
    norm(
        empty,
        weight=_shape_of("weight", weight),
        bias=_shape_of("bias", bias),
        eps=eps,
        activation=activation,
        layout=layout,
        **more,
    )


def _channel_axis(x: Any, layout: str) -> int:
    if x.ndim < 2:
        raise ValueError(f"x: must be [N, C, ...], of rank 2 or more; got shape {x.shape}")
    return x.ndim - 1 if layout == "channels_last" else 1


def _require_degrees(elements: Any, correction: int) -> None:
    if correction == 1 and elements == 1:
        raise ValueError(
            "correction: 1 divides by m - 1 and needs two elements that share a variance; "
            "each has its own here"
        )


def _meta(x: Any) -> Array:
    return numpy.empty((0,) * x.ndim, _RECORD)
