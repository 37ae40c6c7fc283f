"""Norms of arrays that are cut into pieces: what travels between them, and what each does then."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy

from . import _blocks, _core, _engine
from ._arrays import Array, ArrayLike, as_array, as_float, as_integer, dtype_of
from ._blocks import Blocks, Gradients, batched, grouped, trailing
from ._core import address


class Moments:
    """Count, mean and m2 = sum (x - mean)^2 of pieces of blocks, one of each block.

    What a piece of an array is for the mean and the variance of the whole: 24 bytes a block. Those
    of other pieces are merged into it by ``a | b``, which is exact but for the rounding of float64
    (Chan, Golub & LeVeque, 1983)::

        whole = Moments.merge([moments(piece, 32) for piece in pieces])
        y = [normalize(piece, whole, weight, bias) for piece in pieces]

    A merge in another order may differ in the last bits: where several processes need the same
    bits, each merges in the same order. A value: nothing changes it. Pickles; ``data.tobytes()`` is
    what the C struct gn_moments is.

    Args:
        data: [..., 3] float64: count, mean and m2 of each block. Zeros are those of no element.

    Raises:
        TypeError: data is no array of numbers.
        ValueError: its last axis is not of size 3.
    """

    __slots__ = ("data",)

    data: Array

    def __init__(self, data: ArrayLike) -> None:
        array = numpy.array(as_array("data", data), dtype=numpy.float64, order="C")
        if array.ndim == 0 or array.shape[-1] != 3:
            raise ValueError(
                f"data: must be [..., 3], count, mean and m2 of each block; got shape {array.shape}"
            )
        array.flags.writeable = False
        self.data = array

    @classmethod
    def merge(cls, pieces: "Iterable[Moments]") -> "Moments":
        """Returns the moments of all pieces together: neighbours first, in their order.

        Raises:
            TypeError: a piece is no Moments.
            ValueError: there is none, or two are of other blocks.
        """
        parts = list(pieces)
        if not parts:
            raise ValueError("pieces: must be one at least; got none")
        for part in parts:
            if not isinstance(part, Moments):
                raise TypeError(f"pieces: must be Moments; got {type(part).__name__}")
            if part.shape != parts[0].shape:
                raise ValueError(
                    "pieces: must be of the same blocks; "
                    f"got moments of {parts[0].shape} and of {part.shape}"
                )
        return cls(merged(numpy.stack([part.data for part in parts])))

    def __or__(self, other: "Moments") -> "Moments":
        return Moments.merge([self, other]) if isinstance(other, Moments) else NotImplemented

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the blocks: [N, G], [G] across a batch, or the axes that are not normalized."""
        return self.data.shape[:-1]

    @property
    def count(self) -> Array:
        """How many elements each block has, float64."""
        return self.data[..., 0]

    @property
    def mean(self) -> Array:
        """Of each block; 0 of one without elements."""
        return self.data[..., 1]

    @property
    def m2(self) -> Array:
        """The sum of (x - mean)^2 of each block."""
        return self.data[..., 2]

    def var(self, correction: int = 0) -> Array:
        """Returns m2 / (count - correction), NaN where that divides by nothing."""
        degrees = self.count - as_integer("correction", correction)
        with numpy.errstate(invalid="ignore"):
            return self.m2 / numpy.where(degrees > 0, degrees, numpy.nan)

    def rstd(self, eps: float = 1e-5, correction: int = 0, *, center: bool = True) -> Array:
        """Returns 1 / sqrt(var + eps) with the bits of group_norm: 0 where var + eps is 0.

        Not centred, squares are counted from 0, as rms_norm does. NaN where count is not above
        correction.
        """
        return self._finish(eps, correction, center)[1]

    def channels_to_groups(self, num_groups: int) -> "Moments":
        """Returns those of num_groups groups of neighbours on the last axis: [N, C] -> [N, G].

        Raises:
            ValueError: num_groups does not divide that axis.
        """
        groups, channels = as_integer("num_groups", num_groups), self.shape[-1]
        if groups < 1 or channels % groups:
            raise ValueError(
                f"num_groups: must be at least 1 and divide the {channels} channels; got {groups}"
            )
        rows = self.data.reshape(*self.shape[:-1], groups, channels // groups, 3)
        return Moments(merged(numpy.moveaxis(rows, -2, 0)))

    def groups_to_channels(self, channels: int) -> "Moments":
        """Returns those of its group for each of `channels` channels: [N, G] -> [N, C].

        Raises:
            ValueError: the groups do not divide the channels.
        """
        channels, groups = as_integer("channels", channels), self.shape[-1]
        if groups < 1 or channels < 1 or channels % groups:
            raise ValueError(
                f"channels: must be at least 1 and a multiple of {groups} groups; got {channels}"
            )
        return Moments(numpy.repeat(self.data, channels // groups, axis=-2))

    def across(self, axis: int = 0) -> "Moments":
        """Returns those of the blocks along an axis together: over a batch, [N, G] -> [G]."""
        axis = as_integer("axis", axis)
        if not -len(self.shape) <= axis < len(self.shape):
            raise ValueError(f"axis: must be one of the {len(self.shape)} of blocks; got {axis}")
        return Moments(merged(numpy.moveaxis(self.data, axis % len(self.shape), 0)))

    def _finish(self, eps: float, correction: int, center: bool) -> tuple[Array, Array]:
        """mean and rstd, as the engine makes them."""
        plan = _engine.plan(
            *(1, 1, 1, 1, 1, "channels_first", "f64", "f64", "none"),
            *(as_float("eps", eps), as_integer("correction", correction), bool(center), True),
        )
        mean, rstd = numpy.empty(self.shape), numpy.empty(self.shape)
        plan.finish(address(self.data), mean.size, address(mean), address(rstd))
        return mean, rstd

    def __repr__(self) -> str:
        return (
            f"Moments(shape={self.shape}, count={self.count!r}, mean={self.mean!r}, m2={self.m2!r})"
        )


class GradientSums:
    """What a piece of an array is for the gradient of the whole.

    Those of all pieces are added up, in float64: ``a + b``, or ``sum(pieces)``. A value that
    pickles: 16 bytes a block and 16 a channel.

    Attributes:
        sums: [*blocks, 2], float64: rstd D and E of each block (docs/mathematics.md).
        dweight: float64, in the shape of weight; None without weight.
        dbias: float64, in the shape of bias; None without weight and bias.
    """

    __slots__ = ("dbias", "dweight", "sums")

    def __init__(self, sums: Array, dweight: Array | None, dbias: Array | None) -> None:
        self.sums, self.dweight, self.dbias = sums, dweight, dbias

    def __add__(self, other: "GradientSums") -> "GradientSums":
        if not isinstance(other, GradientSums):
            return NotImplemented
        sums = _added("sums", self.sums, other.sums)
        assert sums is not None  # as they never are
        return GradientSums(
            sums,
            _added("dweight", self.dweight, other.dweight),
            _added("dbias", self.dbias, other.dbias),
        )

    def __radd__(self, other: Any) -> "GradientSums":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # of sum()

    def __repr__(self) -> str:
        return f"GradientSums(sums={self.sums!r}, dweight={self.dweight!r}, dbias={self.dbias!r})"


def moments(
    x: ArrayLike,
    num_groups: int | None = None,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    across_batch: bool = False,
    layout: str = "channels_first",
) -> Moments:
    """Reduces a piece of an array to the moments of its blocks.

    Args:
        x: the piece, [N, C, ...] or [N, ..., C] by `layout`, cut anywhere between examples, groups
            of channels and positions; also one without elements. See group_norm.
        num_groups: of the channels of the piece, which it divides. None: each channel by itself.
            A piece that ends within a group takes None, and Moments.channels_to_groups when its
            channels are together.
        normalized_shape: the last sizes of the piece, where the norm is layer_norm or rms_norm;
            num_groups is None then.
        across_batch: whether all examples share a block, as in batch_norm.
        layout: "channels_first" or "channels_last", the order of the axes of x.

    Returns:
        Moments of [N, num_groups]; of [num_groups] across the batch; of the axes that are not
        normalized, with normalized_shape.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value.
    """
    x = as_array("x", x)
    if normalized_shape is None:
        blocks = _grouped(x.shape, num_groups, across_batch, layout)
    else:
        if num_groups is not None or across_batch:
            raise ValueError(
                "normalized_shape: must be None beside num_groups or across_batch; "
                f"got {normalized_shape!r}"
            )
        blocks = trailing(x.shape, normalized_shape)
    return Moments(_blocks.reduce(blocks, x))


def normalize(
    x: ArrayLike,
    moments: Moments,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
    center: bool = True,
    out: Array | None = None,
) -> Array:
    """Normalizes a piece of an array by the moments of the whole blocks.

    Args:
        x: the piece, as `moments` takes it.
        moments: of the whole: [N, G] of the examples and groups of this piece, or [G] of all
            examples.
        weight: of the channels of the piece; see group_norm, as for the arguments that follow.
        bias: as weight.
        eps: added to the variance.
        normalized_shape: as `moments` takes it.
        activation: applied to the result before it is stored.
        layout: as `moments` takes it.
        correction: var divides by count - correction.
        center: False normalizes by the root of the mean square, as rms_norm.
        out: the array to write y to.

    Returns:
        y, in the shape and dtype of x: what the norm of the whole has there.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value; moments that are of other blocks, or
            of fewer elements than the piece has. Nothing has been written.
    """
    x = as_array("x", x)
    blocks = _blocks_of(x, moments, normalized_shape, layout)
    given = moments._finish(eps, correction, center)
    y: Array = _blocks.normalize(
        *(blocks, x, weight, bias, eps, activation, out, (False, False)), center=center, given=given
    )
    return y


def gradient_sums(
    dy: ArrayLike,
    x: ArrayLike,
    moments: Moments,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
    center: bool = True,
) -> GradientSums:
    """Reduces a piece of x and dy to its part of the gradient of the whole.

    Args:
        dy: dL/dy of the piece, in the shape and dtype of x.
        x: of normalize, as are all other arguments.
        moments: of normalize, those of the whole.
        weight: of normalize.
        bias: of normalize; read only where there is an activation.
        eps: of normalize.
        normalized_shape: of normalize.
        activation: of normalize.
        layout: of normalize.
        correction: of normalize.
        center: of normalize.

    Returns:
        GradientSums, to be added to those of the other pieces: `sums` with the pieces of the same
        blocks, dweight and dbias with those of the same channels.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value.
    """
    x = as_array("x", x)
    blocks = _blocks_of(x, moments, normalized_shape, layout)
    mean, rstd = moments._finish(eps, correction, center)
    # Parts of dweight are not to be rounded to 16 bits one by one.
    weight, bias = (_widened(name, p, x) for name, p in (("weight", weight), ("bias", bias)))
    sums, dweight, dbias = _blocks.reduce_gradient(
        blocks, dy, x, weight, bias, mean, rstd, activation, center=center
    )
    return GradientSums(
        sums, *(None if p is None else p.astype(numpy.float64) for p in (dweight, dbias))
    )


def normalize_backward(
    dy: ArrayLike,
    x: ArrayLike,
    moments: Moments,
    sums: GradientSums,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    normalized_shape: int | Sequence[int] | None = None,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
    center: bool = True,
) -> Gradients:
    """Differentiates normalize on a piece, by the moments and the gradient sums of the whole.

    Args:
        dy: as gradient_sums takes it, as are all other arguments.
        x: see gradient_sums.
        moments: see gradient_sums.
        sums: those of all pieces, added up.
        weight: see gradient_sums.
        bias: see gradient_sums.
        eps: see gradient_sums.
        normalized_shape: see gradient_sums.
        activation: see gradient_sums.
        layout: see gradient_sums.
        correction: see gradient_sums.
        center: see gradient_sums.

    Returns:
        dx of the piece, in the shape and dtype of x; dweight and dbias of `sums`, in the dtype of
        weight (of bias, without weight). dweight is None without weight, dbias without both.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value; blocks of different counts.
    """
    x = as_array("x", x)
    blocks = _blocks_of(x, moments, normalized_shape, layout)
    if not isinstance(sums, GradientSums):
        raise TypeError(f"sums: must be GradientSums; got {type(sums).__name__}")
    if sums.sums.shape != (*blocks.statistics, 2):
        raise ValueError(
            f"sums: must be of the blocks {blocks.statistics} of x; got {sums.sums.shape[:-1]}"
        )
    counts = numpy.unique(moments.count)
    if counts.size > 1:
        raise ValueError(f"moments: must be of as many elements in each block; got {counts}")
    mean, rstd = moments._finish(eps, correction, center)
    dx = _blocks.apply_gradient(
        *(blocks, dy, x, weight, bias, mean, rstd, numpy.ascontiguousarray(sums.sums)),
        *(float(counts[0]) if counts.size else 0.0, activation),
        correction=as_integer("correction", correction),
        center=center,
    )
    either = bias if weight is None else weight
    dtype = None if either is None else as_array("weight", either).dtype
    dweight, dbias = (None if p is None else p.astype(dtype) for p in (sums.dweight, sums.dbias))
    return dx, dweight, dbias


def merged(parts: Array) -> Array:
    """Merges [k, ..., 3] along its first axis, neighbours first: the error grows as log k."""
    if len(parts) == 0:
        return numpy.zeros(parts.shape[1:])
    while len(parts) > 1:
        pairs = len(parts) // 2 * 2
        total, more = parts[:pairs:2].copy(), parts[1:pairs:2].copy()
        _core.merge(address(more), more.size // 3, address(total))
        parts = numpy.concatenate([total, parts[pairs:]])
    merged: Array = parts[0]
    return merged


def _added(name: str, a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        if a is not b:
            raise ValueError(f"{name}: must be in both or in neither; got one of two")
        return None
    if a.shape != b.shape:
        raise ValueError(f"{name}: must have one shape in both; got {a.shape} and {b.shape}")
    return a + b


def _widened(name: str, param: ArrayLike | None, x: Array) -> Array | None:
    if param is None:
        return None
    array = as_array(name, param)
    narrow = dtype_of(array) in ("f16", "bf16") and array.dtype == x.dtype
    return array.astype(numpy.float32) if narrow else array


def _grouped(
    shape: tuple[int, ...], num_groups: int | None, across_batch: bool, layout: str
) -> Blocks:
    if across_batch:
        return batched(shape, layout, num_groups)
    return grouped(shape, num_groups, layout)


def _blocks_of(
    x: Array, moments: Moments, normalized_shape: int | Sequence[int] | None, layout: str
) -> Blocks:
    """Returns the blocks of a piece, of which moments are to be those of the whole."""
    if not isinstance(moments, Moments):
        raise TypeError(f"moments: must be Moments; got {type(moments).__name__}")
    shape = moments.shape
    if normalized_shape is not None:
        blocks = trailing(x.shape, normalized_shape)
    elif len(shape) not in (1, 2):
        raise ValueError(f"moments: must be of [N, G] or [G] blocks; got {shape}")
    else:
        blocks = _grouped(x.shape, None, len(shape) == 1, layout)
        groups = shape[-1]
        if groups and blocks.c % groups:
            raise ValueError(
                f"moments: must be of groups that divide the {blocks.c} channels of x; got {groups}"
            )
        if groups:
            blocks = _grouped(x.shape, groups, len(shape) == 1, layout)
    if shape != blocks.statistics:
        raise ValueError(
            f"moments: must be of the blocks {blocks.statistics} of x, {x.shape}; got {shape}"
        )
    own = blocks.examples * blocks.channels * blocks.s
    if x.size and moments.count.min() < own:
        raise ValueError(
            f"moments: must be of the whole, of {own} elements a block at least, as this piece "
            f"has; got {moments.count.min():g}"
        )
    return blocks
