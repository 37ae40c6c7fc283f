"""The norms in jax.numpy: what runs where the engine does not, and what derivatives are made of.

It computes in the dtype of x, in float32 for 16-bit ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
from jax import numpy as jnp

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda z: z,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
    "hard_swish": jax.nn.hard_swish,
}


class Norm(NamedTuple):
    """What the engine's Spec says of a norm, without shapes and dtypes."""

    layout: str  # channels_first: x is [n, c, s]; channels_last: [n, s, c]
    channels: int  # of a block
    epsilon: float
    center: bool
    activation: str

    def channel_axis(self) -> int:
        return 1 if self.layout == "channels_first" else 2


def param_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of scale and bias beside x, and that of all arithmetic here."""
    return jnp.promote_types(dtype, jnp.float32)


def normalize(norm: Norm, x: Array, scale: Array | None, bias: Array | None) -> Array:
    """y of x [n, c, s] or [n, s, c]; scale and bias are [c] or [n, c]."""
    axis = norm.channel_axis()
    c = x.shape[axis]
    groups = (c // norm.channels, norm.channels)
    blocks = x.astype(param_dtype(x.dtype)).reshape(*x.shape[:axis], *groups, *x.shape[axis + 1 :])
    axes = (2, 3) if axis == 1 else (1, 3)
    centred = blocks - blocks.mean(axes, keepdims=True) if norm.center else blocks
    spread = jnp.square(centred).mean(axes, keepdims=True) + norm.epsilon
    nothing = spread == 0  # the block is its mean: xhat is 0
    rstd = jnp.where(nothing, 0, jax.lax.rsqrt(jnp.where(nothing, 1, spread)))
    z = (centred * rstd).reshape(x.shape)
    if scale is not None:
        z = z * _beside(scale, axis)
    if bias is not None:
        z = z + _beside(bias, axis)
    return ACTIVATIONS[norm.activation](z).astype(x.dtype)


def _beside(param: Array, axis: int) -> Array:
    """[c] or [n, c] as it stands beside x."""
    return jnp.expand_dims(param, 1 if axis == 2 else -1) if param.ndim == 2 or axis == 1 else param
