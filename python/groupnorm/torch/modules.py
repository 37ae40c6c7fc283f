"""GroupNorm, InstanceNorm1d, 2d, 3d and LayerNorm in place of those of torch.nn.

Each is a subclass: parameters, state_dict, pickling, ``.to`` and ``isinstance`` are torch's. One
keyword more, ``activation``, is applied before y is stored (see groupnorm.torch.functional).
"""

from typing import Any

import torch
from torch import Tensor, nn

from . import functional


class _Activated(nn.Module):
    """What the modules share: the activation that is fused into them."""

    # Of a module that was made by its parent class.
    activation: str = "none"

    def _set_activation(self, activation: str | None) -> None:
        name = functional.activation_name(activation)
        if name != "none":
            self.activation = name

    def extra_repr(self) -> str:
        parent = super().extra_repr()
        return parent if self.activation == "none" else f"{parent}, activation={self.activation}"


class GroupNorm(_Activated, nn.GroupNorm):
    """torch.nn.GroupNorm on the engine (Wu & He, arXiv:1803.08494).

    Args:
        num_groups: divides num_channels.
        num_channels: C of the input [N, C, ...].
        eps: added to the variance.
        affine: whether there are weight and bias, [C].
        device: of weight and bias.
        dtype: of weight and bias.
        activation: 'none', 'relu', 'silu', 'gelu', 'gelu_tanh' or 'hard_swish'; None: 'none'.
        kwargs: what else the GroupNorm of the torch that is installed takes (``bias``).

    Raises:
        ValueError: num_groups is below 1 or does not divide num_channels, or the activation is
            unknown.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        if num_groups < 1 or num_channels % num_groups != 0:
            raise ValueError(
                f"num_groups: must be at least 1 and divide num_channels={num_channels}; "
                f"got {num_groups}"
            )
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **kwargs)
        self._set_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return functional.group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, activation=self.activation
        )


class LayerNorm(_Activated, nn.LayerNorm):
    """torch.nn.LayerNorm on the engine (Ba et al., arXiv:1607.06450).

    Takes the arguments of torch.nn.LayerNorm, and activation as GroupNorm.
    """

    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            activation=self.activation,
        )


class _InstanceNorm(_Activated, nn.modules.instancenorm._InstanceNorm):
    def __init__(self, *args: Any, activation: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_activation(activation)

    # What forward of torch's does once it has checked the input and given it a batch axis.
    def _apply_instance_norm(self, input: Tensor) -> Tensor:
        return functional.instance_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
            activation=self.activation,
        )


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d on the engine (arXiv:1607.08022); activation as GroupNorm."""


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d on the engine (arXiv:1607.08022); activation as GroupNorm."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d on the engine (arXiv:1607.08022); activation as GroupNorm."""
