"""Group normalization on the engine as a module of Equinox."""

from typing import Any

try:
    import equinox
except ImportError as error:
    raise ImportError(f"{error}: pip install groupnorm[equinox]") from error
from jax import Array

from .functional import as_activation, group_norm

__all__ = ["GroupNorm"]


class GroupNorm(equinox.nn.GroupNorm):
    """equinox.nn.GroupNorm on the engine, with an activation behind it.

    Arguments, parameters and results are those of the parent (eps 1e-5): x is one example,
    [C, ...], and jax.vmap makes one call of many.

    Args:
        activation: None (or "none"), "relu", "silu", "gelu" (the exact one), "gelu_tanh" or
            "hard_swish".
    """

    activation: str = equinox.field(static=True)

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = as_activation(activation)

    @classmethod
    def from_module(
        cls, module: equinox.nn.GroupNorm, activation: str | None = None
    ) -> "GroupNorm":
        """Takes over the settings and the parameters of another module."""
        if not isinstance(module, equinox.nn.GroupNorm):
            raise TypeError(f"module: must be an equinox.nn.GroupNorm; got {type(module).__name__}")
        made = cls(module.groups, eps=module.eps, channelwise_affine=False, activation=activation)
        for name in ("channels", "channelwise_affine", "weight", "bias"):
            object.__setattr__(made, name, getattr(module, name))
        return made

    def __call__(self, x: Array, *state: Any, key: Any = None, **named: Any) -> Any:
        """y of x [C, ...]; with a state, which is left as it is, (y, state)."""
        y = group_norm(
            *(x[None], self.groups, self.weight, self.bias),
            epsilon=self.eps,
            axis=1,
            activation=self.activation,
        )[0]
        states = (*state, *named.values())
        return (y, *states) if states else y
