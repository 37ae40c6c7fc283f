"""torch.ops.groupnorm: the engine as operators, for autograd, torch.compile and torch.export.

``group_norm(x, weight, bias, num_groups, eps, activation) -> (y, mean, rstd)`` with mean and rstd
[N, G] in float64 and not differentiable; ``group_norm_backward`` gives dx, dweight and dbias, empty
ones where the mask does not ask for them. y and dx lie in the memory format that torch suggests for
x. Forward-mode AD and the transforms of torch.func find both made of torch's operations in float64;
vmap finds the engine.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import functional

from .. import _core
from . import _kernels
from ._private import (
    SingleLevelFunction,
    are_transforms_active,
    autograd_kernel,
    dispatch_modes,
    forward_ad,
    is_dual,
    is_legacy_batched,
    tracing_state,
)

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
    "group_norm(Tensor x, Tensor? weight, Tensor? bias, SymInt num_groups, float eps,"
    " str activation) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "group_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean,"
    " Tensor rstd, SymInt num_groups, float eps, str activation, bool[] mask)"
    " -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.impl("group_norm", _kernels.group_norm, "CPU")
_library.impl("group_norm_backward", _kernels.group_norm_backward, "CPU")


def transformed() -> bool:
    """Whether forward-mode AD or a transform of torch.func is at work."""
    return forward_ad._current_level >= 0 or are_transforms_active()


def traced() -> bool:
    """Whether somebody looks at operators: torch.compile, torch.jit.trace, a dispatch mode."""
    return is_compiling() or dispatch_modes() > 0 or tracing_state() is not None


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_kernels.memory_format(_kernels.see_groups, x))


@torch.library.register_fake("groupnorm::group_norm", lib=_library)
def fake_group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.float64)
    return _empty_like(x), mean, torch.empty_like(mean)


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
        _empty_like(x) if mask[0] else x.new_empty(0),
        x.new_empty(weight.shape, dtype=weight.dtype)
        if mask[1] and weight is not None
        else x.new_empty(0),
        x.new_empty(bias.shape, dtype=bias.dtype)
        if mask[2] and bias is not None
        else x.new_empty(0),
    )


# ---- made of torch's operations


def _normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and rstd in float64, any number of times differentiable."""
    groups = x.double().reshape(x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups)
    mean = groups.mean(-1, keepdim=True)
    centred = groups - mean
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    z = (centred * rstd).reshape(x.shape)
    shape = [1, -1] + [1] * (x.dim() - 2)
    if weight is not None:
        z = z * weight.double().reshape(shape)
    if bias is not None:
        z = z + bias.double().reshape(shape)
    return ACTIVATIONS[activation](z), mean.squeeze(-1), rstd.squeeze(-1)


def _differentiate(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor | None, ...]:
    """dx, dweight and dbias in the dtypes of x, weight and bias; None for what is None."""
    inputs = x, weight, bias

    def y_of(*tensors: Tensor) -> Tensor:
        x, weight, bias = fill(inputs, tensors)
        return _normalize(x, weight, bias, num_groups, eps, activation)[0]

    pull = torch.func.vjp(y_of, *there(inputs))[1]
    return fill(inputs, pull(dy.double()))


def there(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [t for t in tensors if t is not None]


def fill(pattern: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """The tensors, with None where the pattern has it."""
    rest = iter(tensors)
    return tuple(None if t is None else next(rest) for t in pattern)


def _composed(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _normalize(x, *args)
    return y.to(x.dtype), mean.detach(), rstd.detach()


def _composed_backward(
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
) -> tuple[Tensor, ...]:
    found = _differentiate(dy, x, weight, bias, num_groups, eps, activation)
    return tuple(
        g if asked and g is not None else x.new_empty(0)
        for g, asked in zip(found, mask, strict=True)
    )


# ---- autograd


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


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, weight, bias, _, _, *ctx.settings, ctx.mask = inputs
    ctx.save_for_backward(dy, x, weight, bias)


def _second_backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient's own gradient: rare, so composed, and exact rather than fast."""
    saved = ctx.saved_tensors
    asked = [m and t is not None for m, t in zip(ctx.mask, saved[1:], strict=True)]

    def asked_of(tensors: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(t for t, wanted in zip(tensors, asked, strict=True) if wanted)

    def gradients_of(*tensors: Tensor) -> tuple[Tensor, ...]:
        return asked_of(_differentiate(*fill(saved, tensors), *ctx.settings))

    pull = torch.func.vjp(gradients_of, *there(saved))[1]
    return (*fill(saved, pull(asked_of(gradients))), None, None, None, None, None, None)


def differentiable(
    library: torch.library.Library,
    name: str,
    setup: Callable[..., None],
    backward: Callable[..., Any],
    composed: Callable[..., Any],
) -> None:
    """Gives an operator its backward, and what it is made of where that is not enough.

    torch.library.register_autograd alone would lose the tangents of forward-mode AD.
    """
    operator = getattr(torch.ops.groupnorm, name).default
    recorded = autograd_kernel(operator, setup, backward)
    if recorded is None:
        torch.library.register_autograd(operator, backward, setup_context=setup, lib=library)
        return

    def run(keys: Any, *args: Any) -> Any:
        if transformed() or any(isinstance(t, Tensor) and is_dual(t) for t in args):
            return composed(*args)
        return recorded(keys, *args)

    library.impl(name, run, "Autograd", with_keyset=True)


differentiable(_library, "group_norm", _setup_context, _backward, _composed)
differentiable(_library, "group_norm_backward", _setup_second, _second_backward, _composed_backward)


# ---- vmap: a batch becomes channels, whose groups and parameters are their own


def _into(batch: int, axis: int, t: Tensor | None, dim: int | None) -> Tensor | None:
    """t with its batch at axis, and the axis behind it taken into that."""
    if t is None:
        return None
    if dim is None:
        t = t.unsqueeze(axis).expand(*t.shape[:axis], batch, *t.shape[axis:])
    return (t if dim is None else t.movedim(dim, axis)).flatten(axis, axis + 1)


def _out_of(batch: int, axis: int, t: Tensor) -> Tensor:
    return t.unflatten(axis, (batch, t.shape[axis] // batch))


@torch.library.register_vmap("groupnorm::group_norm", lib=_library)
def _(
    info: Any,
    dims: tuple[int | None, ...],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    batch = info.batch_size
    found = torch.ops.groupnorm.group_norm(
        _into(batch, 1, x, dims[0]),
        _into(batch, 0, weight, dims[1]),
        _into(batch, 0, bias, dims[2]),
        batch * num_groups,
        eps,
        activation,
    )
    return tuple(_out_of(batch, 1, t) for t in found), (1, 1, 1)


@torch.library.register_vmap("groupnorm::group_norm_backward", lib=_library)
def _(
    info: Any,
    dims: tuple[int | None, ...],
    *args: Any,
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    batch = info.batch_size
    *tensors, num_groups, eps, activation, mask = args
    axes = (1, 1, 0, 0, 1, 1)  # of dy, x, weight, bias, mean, rstd
    folded = [_into(batch, *each) for each in zip(axes, tensors, dims[:6], strict=True)]
    run = torch.ops.groupnorm.group_norm_backward
    found = run(*folded, batch * num_groups, eps, activation, mask)
    there = [m and t is not None for m, t in zip(mask, tensors[1:4], strict=True)]
    axes_out = [axis if is_there else None for axis, is_there in zip((1, 0, 0), there, strict=True)]
    unfolded = (
        g if axis is None else _out_of(batch, axis, g)
        for g, axis in zip(found, axes_out, strict=True)
    )
    return tuple(unfolded), tuple(axes_out)


class GroupNormFunction(SingleLevelFunction):
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
        y = _kernels.forward(norm, x, weight, bias, saved.mean, saved.rstd)
        ctx.kept = norm, saved
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        """dx, dweight and dbias; by the operators where somebody differentiates or looks at them."""
        if dy is None:
            return None, None, None, None
        x, weight, bias = ctx.saved_tensors
        mask = ctx.needs_input_grad[:3]
        norm, saved = ctx.kept
        watched = type(dy) is not Tensor or torch.is_grad_enabled() or transformed() or traced()
        # is_grads_batched is a vmap of its own, older than that of torch.func.
        if watched or is_legacy_batched(dy):
            return *_by_operators(norm, dy, x, weight, bias, mask), None
        found = _kernels.backward(norm, dy, x, weight, bias, saved.mean, saved.rstd, mask)
        return *found, None


def _by_operators(
    norm: _kernels.Norm,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """dx, dweight and dbias. mean and rstd are taken again: those of forward are no tensors."""
    inputs = x, weight, bias
    if norm.rows is not None:
        dy, x = dy.reshape(norm.rows), x.reshape(norm.rows)
        weight, bias = (p if p is None else p.reshape(-1) for p in (weight, bias))
    _, mean, rstd = torch.ops.groupnorm.group_norm(x, weight, bias, *norm.settings)
    run = torch.ops.groupnorm.group_norm_backward
    found = run(dy, x, weight, bias, mean, rstd, *norm.settings, list(mask))
    return tuple(
        g.reshape(t.shape) if asked and t is not None else None
        for g, t, asked in zip(found, inputs, mask, strict=True)
    )
