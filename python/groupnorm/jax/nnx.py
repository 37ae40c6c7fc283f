"""Group normalization on the engine as a module of Flax NNX."""

from typing import Any

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(f"{error}: pip install groupnorm[flax]") from error
from jax import Array

from ._formula import ACTIVATIONS
from .functional import as_activation, group_norm

__all__ = ["GroupNorm"]


class GroupNorm(nnx.GroupNorm):
    """flax.nnx.GroupNorm on the engine, with an activation behind it.

    Arguments, parameters and dtypes are those of the parent (epsilon 1e-6); use_fast_variance
    changes nothing. With a mask, an axis_name or reduction_axes, the parent computes the norm.

    Args:
        activation: None (or "none"), "relu", "silu", "gelu" (the exact one), "gelu_tanh" or
            "hard_swish".
    """

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = as_activation(activation)

    @classmethod
    def from_module(cls, module: nnx.GroupNorm, activation: str | None = None) -> "GroupNorm":
        """Takes over another module: its settings, and its parameters themselves, not copies."""
        if not isinstance(module, nnx.GroupNorm):
            raise TypeError(f"module: must be a flax.nnx.GroupNorm; got {type(module).__name__}")
        made = cls(
            module.num_groups * module.group_size,
            module.num_groups,
            epsilon=module.epsilon,
            dtype=module.dtype,
            param_dtype=module.param_dtype,
            use_bias=False,
            use_scale=False,
            reduction_axes=module.reduction_axes,
            axis_name=module.axis_name,
            axis_index_groups=module.axis_index_groups,
            use_fast_variance=module.use_fast_variance,
            promote_dtype=module.promote_dtype,
            rngs=nnx.Rngs(0),
            activation=activation,
        )
        made.use_bias, made.use_scale = module.use_bias, module.use_scale
        made.bias, made.scale = module.bias, module.scale
        return made

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        """y of x [N, ..., C]; mask: see the parent."""
        own = mask is None and self.axis_name is None and self.reduction_axes is None
        if not own:
            return ACTIVATIONS[self.activation](super().__call__(x, mask=mask))
        scale, bias = (None if each is None else each[...] for each in (self.scale, self.bias))
        promoted, scale, bias = self.promote_dtype((x, scale, bias), dtype=self.dtype)
        return group_norm(
            promoted, self.num_groups, scale, bias, epsilon=self.epsilon, activation=self.activation
        )
