"""The norms as functions of JAX arrays."""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy
from jax import Array
from jax import numpy as jnp

from .._arrays import as_float, as_integer
from . import _primitives
from ._formula import ACTIVATIONS, Norm, param_dtype

ArrayLike: TypeAlias = Array | numpy.ndarray[Any, Any]

_DTYPES = ("float16", "bfloat16", "float32", "float64")


def group_norm(
    x: ArrayLike,
    num_groups: int,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    axis: int = -1,
    activation: str | None = None,
) -> Array:
    """Normalizes groups of channels, each example by itself (Wu & He, arXiv:1803.08494).

    With mean and var (divided by m, not m - 1) over the channels of a group and all positions of
    one example::

        y = activation(scale * (x - mean) / sqrt(var + epsilon) + bias)

    Differentiable to any order, in reverse and forward mode. Under vmap, the batch is more examples.

    Args:
        x: [N, ..., C], or with its channels at `axis`. float16, bfloat16, float32 or float64.
        num_groups: divides C. 1 takes all channels together, C each by itself.
        scale: [C], or [N, C] with one for each example. None: 1.
        bias: as scale. None: 0. Both are computed with in float32, in float64 beside such an x.
        epsilon: finite and not negative.
        axis: of the channels; any but that of the examples, 0. The last and 1 cost no copy.
        activation: None (or "none"), "relu", "silu", "gelu" (the exact one), "gelu_tanh" or
            "hard_swish".

    Returns:
        y, in the shape and dtype of x.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value.
    """
    groups = as_integer("num_groups", num_groups)
    return _grouped(*_arrays(x, scale, bias), groups, *_options(epsilon, activation), _axis(axis))


def instance_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    axis: int = -1,
    activation: str | None = None,
) -> Array:
    """Normalizes each channel of each example (Ulyanov, Vedaldi & Lempitsky, arXiv:1607.08022).

    Arguments, result and errors are those of group_norm, with a group of one channel.
    """
    return _grouped(*_arrays(x, scale, bias), None, *_options(epsilon, activation), _axis(axis))


def layer_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    axis: int | Sequence[int] = -1,
    activation: str | None = None,
) -> Array:
    """Normalizes over one or several axes (Ba, Kiros & Hinton, arXiv:1607.06450).

    Args:
        x: of rank 1 or more; see group_norm.
        scale: of the sizes of x along `axis`, in the order of x. None: 1.
        bias: as scale. None: 0.
        epsilon: see group_norm.
        axis: those that share one mean and one variance. The last ones cost no copy.
        activation: see group_norm.

    Returns:
        y, in the shape and dtype of x.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value.
    """
    return _rows(*_arrays(x, scale, bias), True, *_options(epsilon, activation), _axes(axis))


def rms_norm(
    x: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float = 1e-6,
    axis: int | Sequence[int] = -1,
    activation: str | None = None,
) -> Array:
    """Divides by the root of the mean square over one or several axes (arXiv:1910.07467).

    As layer_norm, but nothing is subtracted: y = scale * x / sqrt(mean(x^2) + epsilon) + bias.
    """
    return _rows(*_arrays(x, scale, bias), False, *_options(epsilon, activation), _axes(axis))


# ---- Arguments, without a look at shapes


def _arrays(x: Any, scale: Any, bias: Any) -> tuple[Array, Array | None, Array | None]:
    return (
        _array("x", x),
        None if scale is None else _array("scale", scale),
        None if bias is None else _array("bias", bias),
    )


def _array(name: str, value: Any) -> Array:
    if not isinstance(value, Array):
        if isinstance(value, (bool, int, float, complex, str, list, tuple)) or value is None:
            raise TypeError(f"{name}: must be a JAX or NumPy array; got {type(value).__name__}")
        try:
            value = jnp.asarray(value)
        except TypeError as error:
            kind = type(value).__name__
            raise TypeError(f"{name}: must be a JAX or NumPy array; got {kind}: {error}") from error
    if value.dtype.name not in _DTYPES:
        raise TypeError(f"{name}: must be {', '.join(_DTYPES)}; got {value.dtype.name}")
    return value


def _options(epsilon: Any, activation: Any) -> tuple[float, str]:
    epsilon = as_float("epsilon", epsilon)
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon: must be finite and not negative; got {epsilon}")
    return epsilon, as_activation(activation)


def as_activation(activation: str | None) -> str:
    """Returns the name of an activation of the engine."""
    if activation is None:
        return "none"
    if not isinstance(activation, str):
        raise TypeError(f"activation: must be a str or None; got {activation!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation: must be None or among {', '.join(ACTIVATIONS)}; got {activation!r}"
        )
    return activation


def _axis(axis: Any) -> int:
    return as_integer("axis", axis)


def _axes(axis: Any) -> tuple[int, ...]:
    if isinstance(axis, (tuple, list)):
        return tuple(_axis(each) for each in axis)
    return (_axis(axis),)


# ---- Shapes. Compiled, so that a call by itself is one program; within another it is inlined.


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6), inline=True)
def _grouped(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    num_groups: int | None,
    epsilon: float,
    activation: str,
    axis: int,
) -> Array:
    if x.ndim < 2:
        raise ValueError(f"x: must be [N, ..., C], of rank 2 or more; got shape {x.shape}")
    channel = _resolve(axis, x)
    if channel == 0:
        raise ValueError(f"axis: must not be that of the examples, 0; got {axis}")
    n, c = x.shape[0], x.shape[channel]
    groups = c if num_groups is None else num_groups
    if num_groups is not None and (num_groups < 1 or c % num_groups != 0):
        raise ValueError(
            f"num_groups: must be at least 1 and divide the {c} channels of x; got {num_groups}"
        )
    scale, bias = _params(x, scale, bias, ((c,), (n, c)))
    last = channel == x.ndim - 1
    moved = x if last else jnp.moveaxis(x, channel, 1)
    s = math.prod(x.shape[1:]) // c if c else 0
    layout = "channels_last" if last else "channels_first"
    norm = Norm(layout, c // groups if c else 1, epsilon, True, activation)
    view = _primitives.reshape(moved, (n, s, c) if last else (n, c, s))
    y = _primitives.reshape(_primitives.forward(norm, view, scale, bias), moved.shape)
    return _as_sharded(y if last else jnp.moveaxis(y, 1, channel), x)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6), inline=True)
def _rows(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    center: bool,
    epsilon: float,
    activation: str,
    axis: tuple[int, ...],
) -> Array:
    axes = tuple(sorted({_resolve(each, x) for each in axis}))
    if len(axes) != len(axis) or not axes:
        raise ValueError(f"axis: must be one axis or several different ones; got {axis}")
    last = tuple(range(x.ndim - len(axes), x.ndim))
    sizes = tuple(x.shape[each] for each in axes)
    scale, bias = _params(x, scale, bias, (sizes,))
    moved = jnp.moveaxis(x, axes, last)
    rows = moved if len(axes) < x.ndim else moved[None]
    c = math.prod(sizes)
    n = math.prod(rows.shape[: -len(axes)])
    norm = Norm("channels_first", max(c, 1), epsilon, center, activation)
    flat = (None if param is None else param.reshape(c) for param in (scale, bias))
    y = _primitives.forward(norm, _primitives.reshape(rows, (n, c, 1)), *flat)
    return _as_sharded(
        jnp.moveaxis(_primitives.reshape(y, rows.shape).reshape(moved.shape), last, axes), x
    )


def _as_sharded(y: Array, x: Array) -> Array:
    """y, in the sharding of x where that is part of its type."""
    return (
        y
        if jax.typeof(y).sharding == jax.typeof(x).sharding
        else jax.reshard(y, jax.typeof(x).sharding)
    )


def _resolve(axis: int, x: Array) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: must be an axis of x, from {-x.ndim} to {x.ndim - 1}; got {axis}")
    return axis % x.ndim


def _params(
    x: Array, scale: Array | None, bias: Array | None, shapes: tuple[tuple[int, ...], ...]
) -> tuple[Array | None, Array | None]:
    """scale and bias as the primitives take them."""
    for name, param in (("scale", scale), ("bias", bias)):
        if param is not None and param.shape not in shapes:
            rule = " or ".join(map(str, shapes))
            raise ValueError(f"{name}: must have shape {rule} for this x; got {param.shape}")
    dtype = param_dtype(x.dtype)
    there = [param.astype(dtype) for param in (scale, bias) if param is not None]
    if len(there) == 2 and there[0].ndim != there[1].ndim:
        there = [jnp.broadcast_to(param, shapes[1]) for param in there]
    rest = iter(there)
    return (
        None if scale is None else next(rest),
        None if bias is None else next(rest),
    )
