"""GroupNorm, InstanceNorm1d, 2d, 3d, LayerNorm and RMSNorm in place of those of torch.nn.

Each is a subclass: parameters, state_dict, pickling, ``.to`` and ``isinstance`` are torch's. One
keyword more, ``activation``, is applied before y is stored, and forward takes the keywords of
`Neighbours` (see groupnorm.torch.functional). torch.jit.script compiles torch's own functions in
their place; torch.fx keeps each as one node.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from . import functional
from ._kernels import see_channels, see_rows
from ._neighbours import Neighbours, chain
from ._ops import ACTIVATIONS

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _activated(y: Tensor, activation: str) -> Tensor:
    """ACTIVATIONS for TorchScript, which has no dict of functions."""
    if activation == "relu":
        y = nn.functional.relu(y)
    elif activation == "silu":
        y = nn.functional.silu(y)
    elif activation == "gelu":
        y = nn.functional.gelu(y)
    elif activation == "gelu_tanh":
        y = nn.functional.gelu(y, approximate="tanh")
    elif activation == "hard_swish":
        y = nn.functional.hardswish(y)
    return y


def in_script(scripted: Callable[[Any, Tensor], Tensor]) -> Callable[..., Any]:
    """The forward of a module of ours: `Activated.run`, but in TorchScript what it decorates.

    TorchScript takes the source of what a function wraps; it knows no keywords as in `Neighbours`.
    """

    @functools.wraps(scripted)
    def forward(self: Any, input: Tensor, **neighbours: "Unpack[Neighbours]") -> Any:
        return self.run(input, **neighbours)

    forward.__doc__ = "The norm, with the keywords of groupnorm.torch.Neighbours."
    return forward


class Activated(nn.Module):
    """What the modules share: the activation that is fused into them, and their neighbours."""

    # Of a module that was made by its parent class.
    activation: str = "none"
    # Whether `normalize` is all that forward does, so that a block may call it instead (fusion.py).
    # Not inherited: a subclass may have another forward.
    takes_activation: ClassVar[bool] = False
    __constants__: list[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.takes_activation = cls.__dict__.get("takes_activation", False)
        constants: Any = getattr(cls, "__constants__", ())
        cls.__constants__ = [*dict.fromkeys((*constants, "activation"))]  # of TorchScript

    def _set_activation(self, activation: str | None) -> None:
        name = functional.activation_name(activation)
        if name != "none":
            self.activation = name

    def extra_repr(self) -> str:
        parent = super().extra_repr()
        return parent if self.activation == "none" else f"{parent}, activation={self.activation}"

    def normalize(self, input: Tensor, activation: str, **neighbours: "Unpack[Neighbours]") -> Any:
        """The norm, what is around it and that activation, in one call of the engine."""
        raise NotImplementedError

    def takes_neighbours(self) -> bool:
        """Whether `normalize` with its neighbours is what forward and those are, one by one."""
        return self.takes_activation and self.activation == "none"

    def run(self, input: Tensor, **neighbours: "Unpack[Neighbours]") -> Any:
        """The norm and its own activation."""
        if isinstance(input, fx.Proxy):
            return self._record(input, neighbours)
        return self.normalize(input, self.activation, **neighbours)

    def _record(self, input: fx.Proxy, neighbours: Any) -> Any:
        """One node of a graph of torch.fx, as for a module of torch.nn.

        A Tracer leaves a module whole that is of torch.nn by its name, and looks into ours. There
        it finds this, whatever class it is of.
        """
        tracer = input.tracer
        if isinstance(tracer, fx.Tracer) and tracer.root is not self:
            path = tracer.path_of_module(self)
            return tracer.create_proxy("call_module", path, (input,), dict(neighbours))
        return self.own(input, self.activation, **neighbours)  # type: ignore[arg-type]

    def own(self, input: Tensor, activation: str, **neighbours: "Unpack[Neighbours]") -> Any:
        """The same by the forward of the class behind ours."""
        forward = super().forward
        if not neighbours:
            return ACTIVATIONS[activation](forward(input))
        return self.chain(forward, input, activation, **neighbours)

    def chain(
        self,
        own: Callable[[Tensor], Tensor],
        input: Tensor,
        activation: str,
        **neighbours: "Unpack[Neighbours]",
    ) -> Any:
        """The same by a norm of other code: what is around it is computed by torch."""
        of: Any = getattr(self, "normalized_shape", None)
        see = see_channels if of is None else see_rows
        return chain(own, see, of, input, activation, **neighbours)


class GroupNorm(Activated, nn.GroupNorm):
    """torch.nn.GroupNorm on the engine (Wu & He, arXiv:1803.08494).

    Args:
        num_groups: divides num_channels.
        num_channels: C of the input [N, C, ...].
        eps: added to the variance.
        affine: whether there are weight and bias, [C].
        device: of weight and bias.
        dtype: of weight and bias.
        bias: whether there is a bias; False takes a torch whose GroupNorm has this argument.
        activation: 'none', 'relu', 'silu', 'gelu', 'gelu_tanh' or 'hard_swish'; None: 'none'.

    Raises:
        ValueError: num_groups is below 1 or does not divide num_channels, or the activation is
            unknown.
    """

    takes_activation = True

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        if num_groups < 1 or num_channels % num_groups != 0:
            raise ValueError(
                f"num_groups: must be at least 1 and divide num_channels={num_channels}; "
                f"got {num_groups}"
            )
        more: dict[str, Any] = {} if bias else {"bias": False}
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, **more)
        self._set_activation(activation)

    @in_script
    def forward(self, input: Tensor) -> Tensor:
        y = nn.functional.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return _activated(y, self.activation)

    def normalize(self, input: Tensor, activation: str, **neighbours: "Unpack[Neighbours]") -> Any:
        params = self.num_groups, self.weight, self.bias, self.eps
        return functional.group_norm(input, *params, activation=activation, **neighbours)


class LayerNorm(Activated, nn.LayerNorm):
    """torch.nn.LayerNorm on the engine (Ba et al., arXiv:1607.06450).

    Takes the arguments of torch.nn.LayerNorm, and activation as GroupNorm.
    """

    takes_activation = True

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        shape: Any = normalized_shape
        super().__init__(shape, eps, elementwise_affine, bias, device, dtype)
        self._set_activation(activation)

    @in_script
    def forward(self, input: Tensor) -> Tensor:
        y = nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        return _activated(y, self.activation)

    def normalize(self, input: Tensor, activation: str, **neighbours: "Unpack[Neighbours]") -> Any:
        params = self.normalized_shape, self.weight, self.bias, self.eps
        return functional.layer_norm(input, *params, activation=activation, **neighbours)


class RMSNorm(Activated, nn.RMSNorm):
    """torch.nn.RMSNorm on the engine (Zhang & Sennrich, arXiv:1910.07467).

    Takes the arguments of torch.nn.RMSNorm, and activation as GroupNorm.
    """

    takes_activation = True

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        shape: Any = normalized_shape
        super().__init__(shape, eps, elementwise_affine, device, dtype)
        self._set_activation(activation)

    @in_script
    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return _activated(y, self.activation)

    def normalize(self, input: Tensor, activation: str, **neighbours: "Unpack[Neighbours]") -> Any:
        params = self.normalized_shape, self.weight, self.eps
        return functional.rms_norm(input, *params, activation=activation, **neighbours)


class _InstanceNorm(Activated, nn.modules.instancenorm._InstanceNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        more: dict[str, Any] = {} if bias else {"bias": False}
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, **more
        )
        self._set_activation(activation)

    @in_script
    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        alone = input.dim() == self._get_no_batch_dim()
        y = self._apply_instance_norm(input.unsqueeze(0) if alone else input)
        return _activated(y.squeeze(0) if alone else y, self.activation)

    def normalize(self, input: Tensor, activation: str, **neighbours: "Unpack[Neighbours]") -> Any:
        rank = self._get_no_batch_dim()
        if input.dim() not in (rank, rank + 1) or input.is_nested:  # which may have no shape
            return self.own(input, activation, **neighbours)
        if input.dim() == rank and neighbours:
            return self._alone(input, activation, **neighbours)
        batch = input.unsqueeze(0) if input.dim() == rank else input
        if batch.shape[1] != self.num_features:
            return self.own(input, activation, **neighbours)  # which refuses, or warns
        y = functional.instance_norm(
            batch,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            self.momentum if self.momentum is not None else 0.0,
            self.eps,
            activation=activation,
            **neighbours,
        )
        return y if batch is input else y.squeeze(0)

    def _alone(self, input: Tensor, activation: str, **neighbours: "Unpack[Neighbours]") -> Any:
        """Of an example without an axis N; so are its neighbours then, and its length a number."""

        def batch(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.unsqueeze(0)
            if isinstance(value, tuple | list):
                return tuple(map(batch, value))
            return value if value is None or isinstance(value, bool) else [value]

        given: Any = {name: batch(value) for name, value in neighbours.items()}
        found = self.normalize(input.unsqueeze(0), activation, **given)
        return tuple(t.squeeze(0) for t in found) if isinstance(found, tuple) else found.squeeze(0)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d on the engine (arXiv:1607.08022); activation as GroupNorm."""

    takes_activation = True


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d on the engine (arXiv:1607.08022); activation as GroupNorm."""

    takes_activation = True


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d on the engine (arXiv:1607.08022); activation as GroupNorm."""

    takes_activation = True
