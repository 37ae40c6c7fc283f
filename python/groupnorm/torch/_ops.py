"""torch.ops.groupnorm: the engine as operators, for autograd, torch.compile and torch.export.

``group_norm(x, weight, bias, num_groups, eps, activation) -> (y, mean, rstd)`` with mean and rstd
[N, G] in float64 and not differentiable; ``group_norm_backward`` gives dx, dweight and dbias, empty
ones where the mask does not ask for them. y and dx have the strides of x, or those of a contiguous
copy where x lies in neither layout of the engine.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction
from torch.nn import functional

from .. import _core
from . import _kernels

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    "hard_swish": functional.hardswish,
}

_library = torch.library.Library("groupnorm", "DEF")
_library.define(
    "group_norm(Tensor x, Tensor? weight, Tensor? bias, int num_groups, float eps, str activation)"
    " -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "group_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean,"
    " Tensor rstd, int num_groups, float eps, str activation, bool[] mask)"
    " -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("group_norm", _kernels.group_norm, "CPU")
_library.impl("group_norm_backward", _kernels.group_norm_backward, "CPU")


@torch.library.register_fake("groupnorm::group_norm", lib=_library)
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty_like(_kernels.dense(x))
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.float64)
    return y, mean, torch.empty_like(mean)


@torch.library.register_fake("groupnorm::group_norm_backward", lib=_library)
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    num_groups: int,
    eps: float,
    activation: str,
    mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(_kernels.dense(x)) if mask[0] else x.new_empty(0),
        torch.empty_like(weight) if mask[1] and weight is not None else x.new_empty(0),
        torch.empty_like(bias) if mask[2] and bias is not None else x.new_empty(0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *ctx.settings = inputs
    _, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _backward(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 6
    mask = list(ctx.needs_input_grad[:3])
    run = torch.ops.groupnorm.group_norm_backward
    gradients = run(dy, *ctx.saved_tensors, *ctx.settings, mask)
    wanted = (g if asked else None for g, asked in zip(gradients, mask, strict=True))
    return (*wanted, None, None, None)


torch.library.register_autograd(
    "groupnorm::group_norm", _backward, setup_context=_setup_context, lib=_library
)


class GroupNormFunction(_SingleLevelFunction):
    """The same on plain tensors, without the operator's way through the dispatcher.

    Nor is it a Function, whose apply asks about transforms that there are none of here, and takes
    longer than a small call.
    """

    apply: ClassVar[Callable[..., Tensor]]  # of the C++ base, which has no types

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: _kernels.Norm
    ) -> Tensor:
        """Returns y. It takes the context itself: by setup_context, a call takes thrice as long."""
        saved = _core.Saved(norm.plan)
        y = _kernels.forward(norm.plan, x, weight, bias, saved.mean, saved.rstd)
        ctx.kept = norm, saved
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        """dx, dweight and dbias, by the operators where they may be differentiated or traced."""
        if dy is None:
            return None, None, None, None
        x, weight, bias = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        norm, saved = ctx.kept
        if type(dy) is not Tensor or torch.is_grad_enabled():
            _, mean, rstd = torch.ops.groupnorm.group_norm(x, weight, bias, *norm.settings)
            run = torch.ops.groupnorm.group_norm_backward
            found = run(dy, x, weight, bias, mean, rstd, *norm.settings, list(mask))
            gradients = (g if asked else None for g, asked in zip(found, mask, strict=True))
            return *gradients, None
        found = _kernels.backward(norm.plan, dy, x, weight, bias, saved.mean, saved.rstd, mask)
        return *found, None


def composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> Tensor:
    """y in float64 by torch's own operations, any number of times differentiable."""
    m = x[0].numel() // num_groups if len(x) else 0
    groups = x.double().reshape(len(x), num_groups, m)
    var, mean = torch.var_mean(groups, -1, correction=0, keepdim=True)
    z = ((groups - mean) * torch.rsqrt(var + eps)).reshape(x.shape)
    shape = [1, -1] + [1] * (x.dim() - 2)
    if weight is not None:
        z = z * weight.double().reshape(shape)
    if bias is not None:
        z = z + bias.double().reshape(shape)
    return ACTIVATIONS[activation](z)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, weight, bias, _, _, ctx.num_groups, ctx.eps, ctx.activation, ctx.mask = inputs
    ctx.save_for_backward(dy, x, weight, bias)


def _second_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient's own gradient: rare, so composed, and exact rather than fast."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: the gradients below stop here, and not at what two of them are made of.
        aliases: list[Any] = [
            t if t is None else t.view_as(t) if create else t.detach().requires_grad_()
            for t in ctx.saved_tensors
        ]
        dy, x, weight, bias = aliases
        y = composed(x, weight, bias, ctx.num_groups, ctx.eps, ctx.activation)
        first = _grad(y, (x, weight, bias), dy.double(), create_graph=True)
        pairs = [
            (value, gradient)
            for value, gradient, asked in zip(first, gradients, ctx.mask, strict=True)
            if asked and value is not None and value.requires_grad
        ]
        second = _grad(
            [value for value, _ in pairs],
            (dy, x, weight, bias),
            [gradient for _, gradient in pairs],
            create_graph=create,
        )
    return (*second, None, None, None, None, None, None)


def _grad(
    outputs: Any, inputs: Sequence[Tensor | None], gradients: Any, *, create_graph: bool
) -> list[Tensor | None]:
    """torch.autograd.grad, with None for an input that is None or has no part in the outputs."""
    there = [t for t in inputs if t is not None]
    found = iter(
        torch.autograd.grad(outputs, there, gradients, create_graph=create_graph, allow_unused=True)
    )
    return [None if t is None else next(found) for t in inputs]


torch.library.register_autograd(
    "groupnorm::group_norm_backward",
    _second_backward,
    setup_context=_setup_second,
    lib=_library,
)
