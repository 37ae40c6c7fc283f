"""One call of the engine on arrays, for every norm: a norm is a value of Blocks."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy

from . import _engine
from ._arrays import (
    Array,
    ArrayLike,
    as_array,
    as_float,
    as_integer,
    dtype_of,
    in_words,
    numpy_name,
)
from ._core import LAYOUTS, Plan, address, in_c_order
from ._neighbours import Beside, NeighbourGradients, Neighbours, check_scale

# y, an Array; with return_sum (y, sum); with return_statistics these and mean and rstd.
Result: TypeAlias = Any
Gradients: TypeAlias = tuple[Array, Array | None, Array | None]  # dx, dweight, dbias
GradientResult: TypeAlias = Any  # Gradients; with neighbours NeighbourGradients

_OTHER_LAYOUT = {"channels_first": "channels_last", "channels_last": "channels_first"}


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """How x is seen, as [n, c, s], and what of it shares one mean and one variance.

    Those who make them keep them in a cache, so that one is equal to itself alone: a fast key.
    """

    n: int
    c: int
    s: int
    examples: int  # of a block
    channels: int
    statistics: tuple[int, ...]  # the shape of mean and rstd
    params: tuple[tuple[int, ...], ...]  # shapes of weight: one a channel; one an example as well
    layout: str = "channels_first"  # the engine's, of x in C order
    other_axes: tuple[int, ...] = ()  # of x in the engine's other layout; (): it has none
    sequence: int = 1  # examples that share one row of what is given by example, one of lengths
    per_example: tuple[tuple[int, ...], ...] = ()  # shapes of what is given by example and channel
    lengths: tuple[tuple[int, ...], int] | None = None  # their shape and the largest; None: no_...
    no_lengths: str = ""  # why there are none

    def layout_of(self, x: Array) -> str | None:
        """Returns the layout in which x lies in memory; None if the engine cannot take it so."""
        if in_c_order(x):
            return self.layout
        if self.other_axes and in_c_order(x.transpose(self.other_axes)):
            return _OTHER_LAYOUT[self.layout]
        return None

    def in_layout(self, x: Array, layout: str) -> Array:
        """Returns x in that layout: itself if it lies so, else a copy."""
        if self.layout_of(x) == layout:
            return x
        if layout == self.layout:
            return x.copy()
        return x.transpose(self.other_axes).copy().transpose(numpy.argsort(self.other_axes))


def grouped(shape: tuple[int, ...], num_groups: int | None, layout: str) -> Blocks:
    """Returns groups of channels, each example by itself; each channel alone without num_groups."""
    if num_groups is not None:
        num_groups = as_integer("num_groups", num_groups)
    return _grouped(shape, num_groups, _checked(layout))


def batched(shape: tuple[int, ...], layout: str, num_groups: int | None = None) -> Blocks:
    """Returns groups of channels over all examples; each channel alone without num_groups."""
    if num_groups is not None:
        num_groups = as_integer("num_groups", num_groups)
    return _batched(shape, num_groups, _checked(layout))


def trailing(shape: tuple[int, ...], normalized_shape: int | Sequence[int]) -> Blocks:
    """Returns the last axes together: an example for each index into the others, one position."""
    return _trailing(shape, as_shape(normalized_shape))


def as_shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Returns normalized_shape as a tuple."""
    if isinstance(normalized_shape, (tuple, list)):
        return tuple(as_integer("normalized_shape", size) for size in normalized_shape)
    return (as_integer("normalized_shape", normalized_shape),)


def _checked(layout: str) -> str:
    if layout not in LAYOUTS:
        known = " or ".join(map(repr, LAYOUTS))
        raise ValueError(f"layout: must be {known}; got {layout!r}")
    return layout


def _ncs(shape: tuple[int, ...], layout: str) -> tuple[int, int, int, tuple[int, ...]]:
    """Returns n, c, s, and the axes in the order of the other layout (none where it is the same)."""
    rank = len(shape)
    if rank < 2:
        order = "[N, C, ...]" if layout == "channels_first" else "[N, ..., C]"
        raise ValueError(f"x: must be {order}, of rank 2 or more; got shape {shape}")
    spatial = tuple(range(2, rank) if layout == "channels_first" else range(1, rank - 1))
    channel = 1 if layout == "channels_first" else rank - 1
    other = (0, *spatial, 1) if layout == "channels_first" else (0, rank - 1, *spatial)
    s = math.prod(shape[axis] for axis in spatial)
    return shape[0], shape[channel], s, other if spatial else ()


@functools.lru_cache(maxsize=1024)
def _grouped(shape: tuple[int, ...], num_groups: int | None, layout: str) -> Blocks:
    n, c, s, other = _ncs(shape, layout)
    groups, channels = _groups(c, num_groups)
    return Blocks(
        *(n, c, s, 1, channels, (n, groups), ((c,), (n, c)), layout, other),
        per_example=_per_example(shape, layout),
        lengths=((n,), s) if len(shape) == 3 else None,
        no_lengths=f"are of x of three axes, one of them positions; got shape {shape}",
    )


@functools.lru_cache(maxsize=1024)
def _batched(shape: tuple[int, ...], num_groups: int | None, layout: str) -> Blocks:
    n, c, s, other = _ncs(shape, layout)
    groups, channels = _groups(c, num_groups)
    return Blocks(
        *(n, c, s, n, channels, (groups,), ((c,), (n, c)), layout, other),
        per_example=_per_example(shape, layout),
        no_lengths="must be None where the statistics are those of several examples",
    )


def _per_example(shape: tuple[int, ...], layout: str) -> tuple[tuple[int, ...], ...]:
    """Shapes of what is given by example and channel: [N, C], and that with axes of size 1."""
    channel = 1 if layout == "channels_first" else len(shape) - 1
    kept = tuple(size if axis in (0, channel) else 1 for axis, size in enumerate(shape))
    return (shape[0], shape[channel]), kept


def _groups(c: int, num_groups: int | None) -> tuple[int, int]:
    """Returns the number of groups, and of the channels of each."""
    groups = c if num_groups is None else num_groups
    if num_groups is not None and (num_groups < 1 or c % num_groups != 0):
        raise ValueError(
            f"num_groups: must be at least 1 and divide the {c} channels of x; got {num_groups}"
        )
    return groups, c // groups if groups else 1


@functools.lru_cache(maxsize=1024)
def _trailing(shape: tuple[int, ...], normalized_shape: tuple[int, ...]) -> Blocks:
    rows = shape[: len(shape) - len(normalized_shape)]
    if not normalized_shape or shape != rows + normalized_shape:
        raise ValueError(
            "normalized_shape: must be the last sizes of x, at least one, "
            f"of shape {shape}; got {normalized_shape}"
        )
    c = math.prod(normalized_shape)
    first, others = rows[:1], rows[1:]
    return Blocks(
        *(math.prod(rows), c, 1, 1, c, rows, (normalized_shape,)),
        sequence=max(math.prod(others), 1),
        per_example=(
            (*first, *normalized_shape),
            (*first, *(1 for _ in others), *normalized_shape),
        ),
        lengths=(first, others[0]) if len(others) == 1 else None,
        no_lengths=f"are of x of [N, L, *normalized_shape]; got shape {shape}",
    )


@functools.lru_cache(maxsize=1024)
def _plan(
    blocks: Blocks,
    layout: str,
    data: str,
    param: str,
    param_stride: int,
    activation: str,
    eps: float,
    correction: int,
    center: bool,
    given_statistics: bool,
    *neighbours: Any,  # Beside.settings
) -> Plan:
    """Makes the plan of the first call of a kind, where the values of its options are checked."""
    if correction not in (0, 1):
        raise ValueError(
            f"correction: must be 0 (divide by m) or 1 (divide by m - 1); got {correction}"
        )
    elements = blocks.examples * blocks.channels * blocks.s
    if correction == 1 and elements == 1 and blocks.n * blocks.c > 0:
        raise ValueError(
            "correction: 1 divides by m - 1 and needs two elements that share a variance; "
            "each has its own here"
        )
    return _engine.plan(
        blocks.n,
        blocks.c,
        blocks.s,
        blocks.examples,
        blocks.channels,
        layout,
        data,
        param,
        activation,
        eps,
        correction,
        center,
        given_statistics,
        param_stride,
        *neighbours,
    )


def normalize(
    blocks: Blocks,
    x: Array,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    eps: float,
    activation: str | None,
    out: Array | None,
    wanted: tuple[bool, bool],
    neighbours: Neighbours | None = None,
    *,
    correction: int = 0,
    center: bool = True,
    given: tuple[Array, Array] | None = None,
    threads: int | None = None,
) -> Result:
    """Returns y, or a tuple of it and what is wanted: the sum; and mean and rstd.

    x comes from as_array. `given` is (mean, rstd) in float64, to be used instead of x's own.
    `threads` is how many may be used; None: as many as set_num_threads says.
    """
    return_sum, return_statistics = wanted
    data = dtype_of(x)
    gamma, beta, param, param_stride = _params(blocks, x, data, weight, bias)
    beside = None
    if neighbours or return_sum:
        beside = Beside.of(blocks, x, neighbours or {})
        param = _param_beside(blocks, data, gamma, beta, param, beside)
    if out is None:
        layout = blocks.layout_of(x)
        if layout is None:
            x, layout = x.copy(), blocks.layout
        y = numpy.empty_like(x)
    else:
        y, layout = out, _check_out(blocks, x, out)
        x = blocks.in_layout(x, layout)
    plan = _plan(
        blocks,
        layout,
        data,
        param,
        param_stride,
        _activation(activation),
        eps if type(eps) is float else as_float("eps", eps),
        correction if type(correction) is int else as_integer("correction", correction),
        center,
        given is not None,
        *(() if beside is None else beside.settings(blocks)),
    )
    mean = rstd = None
    if given is not None:
        mean, rstd = given
    elif return_statistics:
        mean, rstd = numpy.empty(blocks.statistics), numpy.empty(blocks.statistics)
        if x.size == 0:  # the engine writes nothing
            mean.fill(numpy.nan)
            rstd.fill(numpy.nan)
    total = None
    try:
        if beside is None:
            plan.normalize(x, y, gamma, beta, mean, rstd, *_threads(threads))
        else:
            beside = beside.in_layout(blocks, layout)
            total = numpy.empty_like(y) if return_sum else None
            plan.forward_with(
                *(address(x), address(y), address(gamma), address(beta), address(mean)),
                *(address(rstd), beside.addresses(), address(total)),
                *_threads(threads),
            )
    except ValueError:
        # The engine has refused an overlap, quicker than NumPy finds it, but knows no names.
        for name, array in (("x", x), ("weight", gamma), ("bias", beta)):
            _check_apart(y, name, array)
        if beside is not None:
            beside.check_lengths(blocks)
            for name, array in beside._asdict().items():
                _check_apart(y, name, array)
        raise
    if return_sum:
        return (y, total, mean, rstd) if return_statistics else (y, total)
    return (y, mean, rstd) if return_statistics else y


def differentiate(
    blocks: Blocks,
    dy: ArrayLike,
    x: Array,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    mean: ArrayLike | None,
    rstd: ArrayLike,
    activation: str | None,
    dsum: ArrayLike | None = None,
    neighbours: Neighbours | None = None,
    *,
    correction: int = 0,
    center: bool = True,
    given_statistics: bool = False,
) -> GradientResult:
    """Returns dx, dweight (None without weight), dbias (None without weight and bias), and more."""
    rule = (correction, center, given_statistics)
    beside = None
    if neighbours or dsum is not None:
        beside = Beside.of(blocks, x, neighbours or {})
    call = _Backward.of(blocks, dy, x, weight, bias, mean, rstd, activation, rule, beside)
    dx = numpy.empty_like(call.x)
    dgamma, dbeta = call.gradients()
    if beside is None:
        found = (address(dx), address(dgamma), address(dbeta))
        call.plan.backward(*call.inputs(), *found, *_threads())
        return dx, dgamma, dbeta
    return _differentiate_beside(blocks, call, beside, dsum, dx, dgamma, dbeta)


def _differentiate_beside(
    blocks: Blocks,
    call: "_Backward",
    beside: Beside,
    dsum: ArrayLike | None,
    dx: Array,
    dgamma: Array | None,
    dbeta: Array | None,
) -> NeighbourGradients:
    layout = blocks.layout_of(call.x) or blocks.layout
    beside = beside.in_layout(blocks, layout)
    added = None
    if dsum is not None:
        added = as_array("dsum", dsum)
        if _differ(added, call.x):
            raise _unlike("dsum", added, "x", call.x)
        added = blocks.in_layout(added, layout)
    dshift, dresidual, dscale, doffset = (
        None if array is None else numpy.empty_like(array)
        for array in (beside.shift, beside.residual, beside.scale, beside.offset)
    )
    gradients = (dx, dgamma, dbeta, dshift, dresidual, dscale, doffset)
    try:
        call.plan.backward_with(
            *call.inputs(),
            beside.addresses(),
            address(added),
            tuple(map(address, gradients)),
            *_threads(),
        )
    except ValueError:
        beside.check_lengths(blocks)
        raise
    pair = None if dscale is None or doffset is None else (dscale, doffset)
    return NeighbourGradients(dx, dgamma, dbeta, dshift, dresidual, pair)


def _threads(count: int | None = None) -> tuple[Any, int]:
    return _engine.POOL, _engine.asked_threads() if count is None else count


class _Backward(NamedTuple):
    """A call backward: the arrays as the engine takes them."""

    plan: Plan
    x: Array
    dy: Array
    gamma: Array | None
    beta: Array | None
    mean: Array | None
    rstd: Array

    @classmethod
    def of(
        cls,
        blocks: Blocks,
        dy: ArrayLike,
        x: Array,
        weight: ArrayLike | None,
        bias: ArrayLike | None,
        mean: ArrayLike | None,
        rstd: ArrayLike,
        activation: str | None,
        rule: tuple[int, bool, bool],
        beside: Beside | None = None,
    ) -> "_Backward":
        """`rule` is correction, center and given_statistics."""
        data = dtype_of(x)
        dy = as_array("dy", dy)
        if _differ(dy, x):
            raise _unlike("dy", dy, "x", x)
        gamma, beta, param, param_stride = _params(blocks, x, data, weight, bias)
        if beside is not None:
            param = _param_beside(blocks, data, gamma, beta, param, beside)
        means = None if mean is None else _statistics("mean", mean, blocks)
        rstds = _statistics("rstd", rstd, blocks)
        layout = blocks.layout_of(x) or blocks.layout
        x, dy = blocks.in_layout(x, layout), blocks.in_layout(dy, layout)
        plan = _plan(
            blocks,
            layout,
            data,
            param,
            param_stride,
            _activation(activation),
            0.0,  # rstd contains it
            as_integer("correction", rule[0]),
            *rule[1:],
            *(() if beside is None else beside.settings(blocks)),
        )
        return cls(plan, x, dy, gamma, beta, means, rstds)

    def inputs(self) -> tuple[int, int, int, int, int, int]:
        x, dy, gamma, beta, mean, rstd = (address(array) for array in self[1:])
        return x, dy, gamma, beta, mean, rstd

    def gradients(self) -> tuple[Array | None, Array | None]:
        """Returns room for dgamma and dbeta."""
        either = self.beta if self.gamma is None else self.gamma
        return (
            None if self.gamma is None else numpy.empty_like(self.gamma),
            None if either is None else numpy.empty_like(either),
        )


def reduce(blocks: Blocks, x: Array) -> Array:
    """Returns count, mean and m2 of each block of x, a piece: [*blocks.statistics, 3] float64."""
    layout = blocks.layout_of(x) or blocks.layout
    x = blocks.in_layout(x, layout)
    data = dtype_of(x)
    # Of eps 0: which deviations are small beside it, is not known yet.
    plan = _plan(blocks, layout, data, data, 0, "none", 0.0, 0, True, True)
    moments = numpy.empty((*blocks.statistics, 3))
    plan.reduce(address(x), address(moments), *_threads())
    return moments


def reduce_gradient(
    blocks: Blocks,
    dy: ArrayLike,
    x: Array,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    mean: Array,
    rstd: Array,
    activation: str | None,
    *,
    center: bool,
) -> tuple[Array, Array | None, Array | None]:
    """Returns the sums of each block of x, a piece, [*blocks.statistics, 2], dgamma and dbeta."""
    rule = (0, center, True)
    call = _Backward.of(blocks, dy, x, weight, bias, mean, rstd, activation, rule)
    sums = numpy.empty((*blocks.statistics, 2))
    dgamma, dbeta = call.gradients()
    call.plan.reduce_gradient(
        *call.inputs(), address(sums), address(dgamma), address(dbeta), *_threads()
    )
    return sums, dgamma, dbeta


def apply_gradient(
    blocks: Blocks,
    dy: ArrayLike,
    x: Array,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    mean: Array,
    rstd: Array,
    sums: Array,
    count: float,
    activation: str | None,
    *,
    correction: int,
    center: bool,
) -> Array:
    """Returns dx of a piece, from the sums of whole blocks of `count` elements each."""
    rule = (correction, center, True)
    call = _Backward.of(blocks, dy, x, weight, bias, mean, rstd, activation, rule)
    dx = numpy.empty_like(call.x)
    call.plan.apply_gradient(*call.inputs(), address(sums), count, address(dx), *_threads())
    return dx


def _activation(activation: str | None) -> str:
    if activation is None:
        return "none"
    if not isinstance(activation, str):
        raise TypeError(f"activation: must be a str or None; got {activation!r}")
    return activation


def _params(
    blocks: Blocks, x: Array, data: str, weight: ArrayLike | None, bias: ArrayLike | None
) -> tuple[Array | None, Array | None, str, int]:
    """Returns weight and bias in C order, the engine's name of their dtype, and their stride."""
    gamma = beta = None
    param, stride = data, 0
    if weight is not None:
        gamma = as_array("weight", weight)
        param, stride = _param("weight", blocks, data, gamma.shape, dtype_of(gamma))
        if not in_c_order(gamma):
            gamma = gamma.copy()
    if bias is not None:
        beta = as_array("bias", bias)
        found = _param("bias", blocks, data, beta.shape, dtype_of(beta))
        if gamma is not None and found != (param, stride):
            raise _unlike("bias", beta, "weight", gamma)
        param, stride = found
        if not in_c_order(beta):
            beta = beta.copy()
    return gamma, beta, param, stride


@functools.lru_cache(maxsize=1024)
def _param(
    name: str, blocks: Blocks, data: str, shape: tuple[int, ...], dtype: str
) -> tuple[str, int]:
    """Returns the dtype of weight or bias, and the elements from one example's to the next one's."""
    if shape not in blocks.params:
        shapes = " or ".join(map(str, blocks.params))
        raise ValueError(f"{name}: must have shape {shapes} for this x; got {shape}")
    _check_param(name, data, dtype)
    return dtype, 0 if shape == blocks.params[0] else blocks.c


def _check_param(name: str, data: str, dtype: str) -> None:
    narrow = data in ("f16", "bf16")
    if dtype != data and not (narrow and dtype == "f32"):
        rule = f"{numpy_name(data)}, as x is" + (", or float32" if narrow else "")
        raise TypeError(f"{name}: must be {rule}; got {numpy_name(dtype)}")


def _param_beside(
    blocks: Blocks,
    data: str,
    gamma: Array | None,
    beta: Array | None,
    param: str,
    beside: Beside,
) -> str:
    """Returns the dtype of all parameters: scale and offset are in that of weight and bias."""
    if beside.scale is None:
        return param
    model = "bias" if gamma is None else "weight"
    if gamma is None and beta is None:
        model, param = "scale_shift[0]", dtype_of(beside.scale)
        _check_param(model, data, param)
    check_scale("scale_shift[0]", beside.scale, model, param)
    check_scale("scale_shift[1]", beside.offset, model, param)
    return param


def _statistics(name: str, value: ArrayLike, blocks: Blocks) -> Array:
    array = as_array(name, value)
    if array.shape != blocks.statistics or dtype_of(array) != "f64":
        raise ValueError(
            f"{name}: must be {blocks.statistics} float64, as forward returns it; "
            f"got {in_words(array)}"
        )
    return array if in_c_order(array) else array.copy()


def _check_out(blocks: Blocks, x: Array, out: Any) -> str:
    """Returns the layout of out. What overlaps it there, the engine sees, but for an x to be copied."""
    if not isinstance(out, numpy.ndarray):
        raise TypeError(f"out: must be a numpy.ndarray; got {type(out).__name__}")
    if _differ(out, x):
        raise _unlike("out", out, "x", x)
    if not out.flags.writeable:
        raise ValueError("out: must be writeable")
    layout = blocks.layout_of(out)
    if layout is None:
        raise ValueError(
            f"out: must be aligned and contiguous, in C order or the other layout; "
            f"got strides {out.strides}"
        )
    if out is not x and blocks.layout_of(x) != layout:
        _check_apart(out, "x", x)
    return layout


def _check_apart(out: Array, name: str, array: Array | None) -> None:
    if array is not None and array is not out and numpy.may_share_memory(out, array):
        raise ValueError(f"out: may be x itself, but must not overlap {name}")


def _differ(array: Array, model: Array) -> bool:
    return array.shape != model.shape or array.dtype != model.dtype


def _unlike(name: str, array: Array, model_name: str, model: Array) -> ValueError:
    return ValueError(
        f"{name}: must have the shape and dtype of {model_name}, {in_words(model)}; "
        f"got {in_words(array)}"
    )
