"""Arrays of files: their axes, their values in a dtype of the engine, and the engine's view."""

import dataclasses
from typing import Any

import numpy as np

from .command import BadInput

Array = np.ndarray[Any, Any]
FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]

# The dtypes of the engine that NumPy has.
DTYPES = {"float16": "f16", "float32": "f32", "float64": "f64"}

# Up to here, float32 and float64 hold every integer.
_WHOLE_IN_FLOAT32, _WHOLE_IN_FLOAT64 = 1 << 24, 1 << 53


@dataclasses.dataclass
class Tensor:
    """An array as a file has it, and what its axes are."""

    array: FloatArray
    axes: str  # a letter an axis: N examples, C channels, S space; empty: the file does not say
    notes: list[str]  # what was done to the numbers on the way in
    # What the file holds beside the numbers, by its name; a writer keeps what it has a place for.
    # "spacing" is in mm, of each axis, 0 where there is none; "affine" is NIfTI's of the array.
    beside: dict[str, Any] = dataclasses.field(default_factory=dict)
    low_is_white: bool = False  # to a viewer of the file


@dataclasses.dataclass
class Result:
    """What `run` computed."""

    y: FloatArray
    mean: FloatArray
    rstd: FloatArray
    x: Tensor


def as_float(array: Array, what: str) -> tuple[FloatArray, list[str]]:
    """The same values in a dtype of the engine, with a note where the dtype is another.

    Integers become float32, or float64 where float32 does not hold all of them.
    """
    dtype = array.dtype
    if dtype.name in DTYPES:  # whatever its byte order
        return array.astype(dtype.newbyteorder("="), copy=False), []
    if dtype.kind in "biu":
        most = 1
        if dtype.itemsize > 2 and array.size:
            most = max(int(array.max()), -int(array.min()))
        if most > _WHOLE_IN_FLOAT64:
            raise BadInput(
                f"{what}: holds an integer of magnitude {most}; float64 tells integers apart up to "
                "2^53; subtract an offset before"
            )
        if most <= _WHOLE_IN_FLOAT32:
            return array.astype(np.float32), [f"{dtype.name}, converted to float32"]
        note = f"{dtype.name}, converted to float64 for integers beyond 2^24"
        return array.astype(np.float64), [note]
    why = "is not a real number's"
    if dtype.kind == "O":
        why = "is an array of Python objects, which is never loaded"
    elif dtype.names:
        why = "is structured; save one field of it"
    elif dtype.kind == "V":
        why = "has no meaning to NumPy; save bfloat16 as float32"
    elif dtype.kind == "f":  # of more digits
        double = array.astype(np.float64)
        if np.array_equal(double, array, equal_nan=True):
            return double, [f"{dtype.name}, converted to float64"]
        why = "holds values that float64 does not; round them to float64 before"
    raise BadInput(f"{what}: dtype {dtype} {why}")


def rescaled(
    array: Array, slope: float | Array, intercept: float | Array, what: str
) -> tuple[FloatArray, list[str]]:
    """slope * array + intercept in float64, or in float32 where that holds the same values."""
    double = as_float(array, what)[0].astype(np.float64) * slope + intercept
    with np.errstate(over="ignore"):
        single = double.astype(np.float32)
    exact = np.array_equal(single, double, equal_nan=True)
    y = single if exact else double
    return y, [f"converted to {y.dtype.name}"] if y.dtype != array.dtype else []


@dataclasses.dataclass
class View:
    """A tensor's array as [n, c, s], or [n, s, c], contiguous; a copy only where it must be."""

    array: FloatArray
    layout: str
    n: int
    c: int
    s: int
    _shape: tuple[int, ...]
    _order: tuple[int, ...]

    def restore(self, array: FloatArray) -> FloatArray:
        """An array of the view's shape in the axes of the file."""
        return array.reshape(self._shape).transpose(np.argsort(self._order))


def view(tensor: Tensor) -> View:
    array, axes = tensor.array, tensor.axes
    by_letter = {letter: [i for i, axis in enumerate(axes) if axis == letter] for letter in "NCS"}
    n_axes, c_axes, s_axes = by_letter["N"], by_letter["C"], by_letter["S"]
    orders = [
        (layout, axes_in_order)
        for space in (s_axes, s_axes[::-1])
        for layout, axes_in_order in (
            ("channels_first", (*n_axes, *c_axes, *space)),
            ("channels_last", (*n_axes, *space, *c_axes)),
        )
    ]
    # Whatever lies in memory as it must; else channels first, which takes a copy.
    in_memory = (each for each in orders if array.transpose(each[1]).flags.c_contiguous)
    layout, order = next(in_memory, orders[0])
    turned = array.transpose(order)
    size = {
        letter: int(np.prod([array.shape[i] for i in places], dtype=np.int64))
        for letter, places in by_letter.items()
    }
    n, c, s = size["N"], size["C"], size["S"]
    contiguous = np.require(turned, requirements=["C", "A", "W"])
    shape = (n, c, s) if layout == "channels_first" else (n, s, c)
    return View(contiguous.reshape(shape), layout, n, c, s, turned.shape, order)
