"""Arrays as the engine takes them: one of four dtypes, one of two memory layouts, an address."""

import operator
from typing import Any, Protocol, TypeAlias

import numpy
import numpy.typing

from ._core import bfloat16_words

Array: TypeAlias = numpy.ndarray[Any, numpy.dtype[Any]]


class SupportsDLPack(Protocol):
    """An array of another library that can be had without a copy."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


ArrayLike: TypeAlias = numpy.typing.ArrayLike | SupportsDLPack

# What the engine calls them. bfloat16 goes by its name: ml_dtypes need not be there.
_NAMES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
_DTYPES: dict[numpy.dtype[Any], str] = {}  # those met so far, in native byte order


def as_array(name: str, value: ArrayLike) -> Array:
    """Returns argument `name` as an array of a dtype the engine has, in native byte order.

    It shares the memory of value where it can: always for such an array, or one by DLPack.
    """
    array = value if type(value) is numpy.ndarray else _imported(name, value)
    return array if array.dtype in _DTYPES else _native(name, array)


def _imported(name: str, value: Any) -> Array:
    if isinstance(value, numpy.ma.MaskedArray):
        raise TypeError(f"{name}: must not be a masked array: every element would count")
    if hasattr(value, "__dlpack__") and not isinstance(value, numpy.ndarray):
        try:
            return numpy.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError):
            # NumPy has no bfloat16. Of the rest, numpy.asarray may know another way, or says better
            # why there is none.
            words = None if getattr(value, "requires_grad", False) else bfloat16_words(value)
        if words is not None:
            return _as_bfloat16(name, words)
    try:
        return numpy.asarray(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        kind = type(value).__name__
        raise TypeError(
            f"{name}: must be an array that NumPy can read; got {kind}: {error}"
        ) from error


def _as_bfloat16(name: str, words: Any) -> Array:
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(f"{name}: bfloat16 in NumPy needs the package ml_dtypes") from None
    return words.view(ml_dtypes.bfloat16)


def _native(name: str, array: Array) -> Array:
    code = _NAMES.get(array.dtype.name)
    if code is None:
        raise TypeError(
            f"{name}: must be float16, bfloat16, float32 or float64; got {array.dtype.name}"
        )
    native = array.dtype.newbyteorder("=")
    _DTYPES[native] = code
    return array.astype(native, copy=False)


def dtype_of(array: Array) -> str:
    """Returns the engine's name of the dtype of an array from as_array."""
    return _DTYPES[array.dtype]


def numpy_name(dtype: str) -> str:
    """Returns NumPy's name of a dtype of the engine."""
    return next(name for name, own in _NAMES.items() if own == dtype)


def as_integer(name: str, value: Any) -> int:
    """Returns argument `name` as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: must be an integer; got {value!r}") from None


def as_float(name: str, value: Any) -> float:
    """Returns argument `name` as a float."""
    try:
        if not isinstance(value, (str, bytes)):
            return float(value)
    except (OverflowError, TypeError, ValueError):
        pass
    raise TypeError(f"{name}: must be a number; got {value!r}")


def in_words(array: Array) -> str:
    """Returns shape and dtype of array, for a message."""
    order = "" if array.dtype.isnative else " in the other byte order"
    return f"{array.shape} {array.dtype.name}{order}"
