"""What models compute around a norm, in the same pass: arguments of every function of arrays."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy

from ._arrays import Array, ArrayLike, as_array, dtype_of, in_words
from ._core import address, in_c_order

if TYPE_CHECKING:
    from ._blocks import Blocks


class Neighbours(TypedDict, total=False):
    """Keywords of every norm and of its backward; each may be None or left out::

        u = x + skip + shift                                        normalized in the place of x
        y = activation((weight * uhat + bias) * (1 + scale) + offset + residual)

    u is formed in float32 (float64 of float64), never rounded to 16 bits.

    Attributes:
        skip: in the shape and dtype of x.
        shift: one for each example and channel: [N, C], or with axes of size 1 as [N, C, 1, 1]; of
            layer_norm and rms_norm [N, *normalized_shape], N the first axis of x. In the dtype of x.
        residual: in the shape and dtype of x.
        scale_shift: the pair (scale, offset), each in a shape that shift may have, in the dtype of
            weight and bias (without both: as weight may be).
        lengths: [N] integers. Of [N, C, L] (or [N, L, C] by `layout`): each example is normalized
            over its first so many positions alone. Of layer_norm and rms_norm of [N, L, C]: so many
            rows of each are. Behind them nothing is read, and y, sum and dx are 0.
    """

    skip: ArrayLike | None
    shift: ArrayLike | None
    residual: ArrayLike | None
    scale_shift: tuple[ArrayLike, ArrayLike] | None
    lengths: ArrayLike | None


class NeighbourGradients(NamedTuple):
    """What the gradient of a call with neighbours returns; None of what was not there.

    Attributes:
        dx: of x, and of skip, which has the same gradient.
        dweight: of weight.
        dbias: of bias.
        dshift: of shift, in its shape and dtype, as are the following of theirs.
        dresidual: of residual.
        dscale_shift: of scale and of offset.
    """

    dx: Array
    dweight: Array | None
    dbias: Array | None
    dshift: Array | None
    dresidual: Array | None
    dscale_shift: tuple[Array, Array] | None


class Beside(NamedTuple):
    """The neighbours of a call as the engine takes them, in its order."""

    skip: Array | None
    shift: Array | None
    residual: Array | None
    scale: Array | None
    offset: Array | None
    lengths: Array | None

    @classmethod
    def of(cls, blocks: "Blocks", x: Array, neighbours: Neighbours) -> "Beside":
        """Checks all but dtypes of scale and offset, which are those of parameters."""
        unknown = neighbours.keys() - Neighbours.__annotations__.keys()
        if unknown:
            raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
        get = neighbours.get
        like_x = functools.partial(_as_x, x)
        per_example = functools.partial(_per_example, blocks)
        shift = _given("shift", get("shift"), per_example)
        if shift is not None and shift.dtype != x.dtype:
            raise TypeError(f"shift: must be {x.dtype.name}, as x is; got {shift.dtype.name}")
        scale, offset = _pair(get("scale_shift"))
        return cls(
            _given("skip", get("skip"), like_x),
            shift,
            _given("residual", get("residual"), like_x),
            _given("scale_shift[0]", scale, per_example),
            _given("scale_shift[1]", offset, per_example),
            _given("lengths", get("lengths"), functools.partial(_as_lengths, blocks)),
        )

    def in_layout(self, blocks: "Blocks", layout: str) -> "Beside":
        """Those of the shape of x, as they lie in memory in that layout."""
        skip, residual = (
            None if array is None else blocks.in_layout(array, layout)
            for array in (self.skip, self.residual)
        )
        return self._replace(skip=skip, residual=residual)

    def settings(self, blocks: "Blocks") -> tuple[int, bool, bool, bool]:
        """Of the plan: sequence, and whether there are a shift, a scale and lengths."""
        there = self.shift is not None, self.scale is not None, self.lengths is not None
        return (blocks.sequence if any(there) else 1, *there)

    def addresses(self) -> tuple[int, ...]:
        """For the engine."""
        return tuple(map(address, self))

    def check_lengths(self, blocks: "Blocks") -> None:
        """ValueError where the engine refused the values."""
        if self.lengths is not None and self.lengths.size:
            _, limit = blocks.lengths or ((), 0)
            outside = (self.lengths < 0) | (self.lengths > limit)
            if outside.any():
                at = int(outside.argmax())
                got = f"{self.lengths[at]} at index {at}"
                raise ValueError(f"lengths: must be from 0 to {limit} for this x; got {got}")


def _given(name: str, value: Any, convert: Callable[[str, Any], Array]) -> Array | None:
    return None if value is None else convert(name, value)


def _as_x(x: Array, name: str, value: ArrayLike) -> Array:
    array = as_array(name, value)
    if array.shape != x.shape or array.dtype != x.dtype:
        raise ValueError(
            f"{name}: must have the shape and dtype of x, {in_words(x)}; got {in_words(array)}"
        )
    return array


def _per_example(blocks: "Blocks", name: str, value: ArrayLike) -> Array:
    array = as_array(name, value)
    if array.shape not in blocks.per_example:
        shapes = " or ".join(map(str, dict.fromkeys(blocks.per_example)))
        raise ValueError(f"{name}: must have shape {shapes} for this x; got {array.shape}")
    return array if in_c_order(array) else array.copy()


def _pair(scale_shift: Any) -> tuple[Any, Any]:
    if scale_shift is None:
        return None, None
    if not isinstance(scale_shift, (tuple, list)) or len(scale_shift) != 2:
        got = type(scale_shift).__name__
        raise TypeError(f"scale_shift: must be a pair (scale, shift); got {got}")
    for i, array in enumerate(scale_shift):
        if array is None:
            raise TypeError(f"scale_shift[{i}]: must be an array; got None")
    scale, offset = scale_shift
    return scale, offset


def _as_lengths(blocks: "Blocks", name: str, value: Any) -> Array:
    array = numpy.asarray(value)
    if array.size == 0 and array.ndim == 1 and not isinstance(value, numpy.ndarray):
        array = array.astype(numpy.int64)  # of an empty list
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: must be integers; got {array.dtype.name}")
    if blocks.lengths is None:
        raise ValueError(f"lengths: {blocks.no_lengths}")
    shape, _ = blocks.lengths
    if array.shape != shape:
        raise ValueError(
            f"lengths: must have shape {shape}, one for each example; got {array.shape}"
        )
    return numpy.ascontiguousarray(array, numpy.int64)


def check_scale(name: str, array: Array | None, model: str, dtype: str) -> None:
    """TypeError where scale or offset has another dtype than the parameters."""
    if array is not None and dtype_of(array) != dtype:
        raise TypeError(f"{name}: must have the dtype of {model}; got {array.dtype.name}")
