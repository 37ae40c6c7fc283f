"""torch.ops.groupnorm.norm_with_neighbours: any norm of rows or channels, with what is around it.

``norm_with_neighbours(x, weight, bias, skip, shift, residual, scale, offset, lengths, num_groups,
sequence, eps, activation, center, return_sum) -> (y, sum, mean, rstd)``: the tensors are those of
`_kernels.Inputs`, the numbers those of `_kernels.Rule`. x is [n, c, ...]; rows of a layer norm are
[n, c] in one group. sum is empty where it is not asked for; mean and rstd [n, num_groups] are
float64 and not differentiable. ``norm_with_neighbours_backward`` gives dx (of skip, too), dweight,
dbias, dshift, dresidual, dscale and doffset, empty ones where the mask does not ask for them.

As of group_norm (_ops.py), derivatives of what is a derivative already, forward-mode AD and vmap
find them made of torch's operations in float64.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _core
from . import _kernels
from ._kernels import Inputs, Rule
from ._ops import ACTIVATIONS, differentiable, fill, there, traced, transformed
from ._private import SingleLevelFunction, is_legacy_batched

_INPUTS = len(Inputs._fields)
_RULE = len(Rule._fields)
# Of the inputs, those whose gradients backward makes, in its order.
_GRADIENTS = ("x", "weight", "bias", "shift", "residual", "scale", "offset")

_tensors = "Tensor x, " + ", ".join(f"Tensor? {name}" for name in Inputs._fields[1:])
_numbers = "SymInt num_groups, SymInt sequence, float eps, str activation, bool center"
_library = torch.library.Library("groupnorm", "FRAGMENT")
_library.define(
    f"norm_with_neighbours({_tensors}, {_numbers}, bool return_sum)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"norm_with_neighbours_backward(Tensor? dy, Tensor? dsum, {_tensors}, Tensor mean,"
    f" Tensor rstd, {_numbers}, bool[] mask)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# ---- on the engine


def _checked(inputs: Inputs, rule: Rule) -> tuple[_kernels.Norm, Inputs]:
    """What the engine takes; ValueError says what it doesn't."""
    x, weight, bias, skip, shift, residual, scale, offset, lengths = inputs
    seen = _kernels.see_groups(x.shape, rule.num_groups)
    kinds = [None if p is None else (p.shape, p.dtype) for p in (weight, bias)]
    if seen is None or not _kernels.takes(seen, rule.eps, x.dtype, *kinds):
        raise ValueError(
            "x: must be [N, C, ...] in float32, float64, float16 or bfloat16, with C a multiple of"
            " num_groups and more than one value to a group; weight, bias: must be [C], in the"
            f" dtype of x or in float32; eps: must not be negative; got x {list(x.shape)} {x.dtype},"
            f" num_groups={rule.num_groups}, eps={rule.eps}"
        )
    if rule.sequence < 1 or seen.n % rule.sequence != 0:
        raise ValueError(
            f"sequence: must be at least 1 and divide N = {seen.n}; got {rule.sequence}"
        )
    param = next((p.dtype for p in inputs.params()), x.dtype)
    row = (seen.n // rule.sequence, seen.c)
    wanted = (
        *(("skip", skip, x.shape, x.dtype), ("residual", residual, x.shape, x.dtype)),
        *(("shift", shift, row, x.dtype), ("lengths", lengths, row[:1], torch.int64)),
        *(("scale", scale, row, param), ("offset", offset, row, param)),
    )
    for name, t, shape, dtype in wanted:
        if t is not None and (t.shape != shape or t.dtype != dtype):
            raise ValueError(
                f"{name}: must be {list(shape)} {dtype}; got {list(t.shape)} {t.dtype}"
            )
    if lengths is not None and rule.sequence == 1 and x.dim() > 3:
        raise ValueError(f"lengths: are of x [N, C, L]; got x {list(x.shape)}")
    norm = _kernels.find_norm_with(_kernels.see_groups, rule.num_groups, inputs, rule)
    return norm, _kernels.dense(inputs, norm)


def _forward(*args: Any) -> tuple[Tensor, ...]:
    inputs, rule, return_sum = _parts(args)
    norm, inputs = _checked(inputs, rule)
    x = inputs.x
    mean = x.new_empty((x.shape[0], rule.num_groups), dtype=torch.float64)
    rstd = torch.empty_like(mean)
    y, total = _kernels.forward_with(norm, inputs, return_sum, mean.data_ptr(), rstd.data_ptr())
    return y, x.new_empty(0) if total is None else total, mean, rstd


def _backward(dy: Tensor | None, dsum: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    inputs, mean, rstd, rule, mask = _backward_parts(args)
    norm, inputs = _checked(inputs, rule)
    x = inputs.x
    blocks = (x.shape[0], rule.num_groups)
    wanted = (
        *(("dy", dy, x.shape, x.dtype), ("dsum", dsum, x.shape, x.dtype)),
        *(("mean", mean, blocks, torch.float64), ("rstd", rstd, blocks, torch.float64)),
    )
    for name, t, shape, dtype in wanted:
        if t is not None and (t.shape != shape or t.dtype != dtype):
            raise ValueError(
                f"{name}: must be {list(shape)} {dtype}; got {list(t.shape)} {t.dtype}"
            )
    mean, rstd = mean.contiguous(), rstd.contiguous()
    found = _kernels.backward_with(norm, dy, dsum, inputs, mean.data_ptr(), rstd.data_ptr(), mask)
    return tuple(x.new_empty(0) if g is None else g for g in found)


def _parts(args: Sequence[Any]) -> tuple[Inputs, Rule, bool]:
    return Inputs(*args[:_INPUTS]), Rule(*args[_INPUTS:-1]), args[-1]


def _backward_parts(args: Sequence[Any]) -> tuple[Inputs, Tensor, Tensor, Rule, list[bool]]:
    mean, rstd, *rule, mask = args[_INPUTS:]
    return Inputs(*args[:_INPUTS]), mean, rstd, Rule(*rule), mask


def _models(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """What the gradients are of."""
    return tuple(getattr(inputs, name) for name in _GRADIENTS)


_library.impl("norm_with_neighbours", _forward, "CPU")
_library.impl("norm_with_neighbours_backward", _backward, "CPU")


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=_kernels.memory_format(_kernels.see_groups, x))


@torch.library.register_fake("groupnorm::norm_with_neighbours", lib=_library)
def _(*args: Any) -> tuple[Tensor, ...]:
    inputs, rule, return_sum = _parts(args)
    x = inputs.x
    mean = x.new_empty((x.shape[0], rule.num_groups), dtype=torch.float64)
    total = _empty_like(x) if return_sum else x.new_empty(0)
    return _empty_like(x), total, mean, torch.empty_like(mean)


@torch.library.register_fake("groupnorm::norm_with_neighbours_backward", lib=_library)
def _(dy: Tensor | None, dsum: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    inputs, _, _, _, mask = _backward_parts(args)
    x = inputs.x
    return tuple(
        x.new_empty(0)
        if t is None or not asked
        else (_empty_like(x) if name in ("x", "residual") else t.new_empty(t.shape))
        for name, t, asked in zip(_GRADIENTS, _models(inputs), mask, strict=True)
    )


# ---- made of torch's operations


def compose(inputs: Inputs, rule: Rule, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """y, sum, mean and rstd in that dtype, any number of times differentiable."""
    lengths = inputs.lengths
    x, weight, bias, skip, shift, residual, scale, offset = (
        None if t is None else t.to(dtype) for t in inputs[:-1]
    )
    assert x is not None
    n, c, *positions = x.shape
    ones = [1] * len(positions)

    def of_example(t: Tensor) -> Tensor:
        t = t.unsqueeze(1).expand(n // rule.sequence, rule.sequence, c)
        return t.reshape(n, c, *ones)

    u = x if skip is None else x + skip
    u = u if shift is None else u + of_example(shift)
    m = math.prod(x.shape[1:]) // rule.num_groups
    valid = None
    if lengths is not None:
        size = rule.sequence if rule.sequence != 1 else positions[-1] if positions else 1
        within = torch.arange(size, device=x.device) < lengths.unsqueeze(1)
        if rule.sequence != 1 or not positions:
            valid = within.reshape(n, 1, *ones)
        else:
            valid = within.reshape(n, 1, *ones[1:], size)
        u = torch.where(valid, u, 0)
    groups = u.reshape(n, rule.num_groups, m)
    if valid is None:
        count: Any = m
        centred = groups
        mean = groups.mean(-1, keepdim=True)
        there = None
    else:
        there = valid.expand(x.shape).reshape(n, rule.num_groups, m)
        count = there.sum(-1, keepdim=True).clamp(min=1).to(dtype)
        mean = groups.sum(-1, keepdim=True) / count
    if not rule.center:
        mean = torch.zeros_like(mean)
    centred = groups - mean
    if there is not None:
        centred = torch.where(there, centred, 0)
    var = centred.square().sum(-1, keepdim=True) / count
    rstd = torch.rsqrt(var + rule.eps)
    if there is not None:
        rstd = torch.where(there.any(-1, keepdim=True), rstd, 0)
    z = (centred * rstd).reshape(x.shape)
    if weight is not None:
        z = z * weight.reshape(1, c, *ones)
    if bias is not None:
        z = z + bias.reshape(1, c, *ones)
    if scale is not None:
        z = z * (1 + of_example(scale))
    if offset is not None:
        z = z + of_example(offset)
    z = z if residual is None else z + residual
    if valid is not None:
        z = torch.where(valid, z, 0)  # of which every activation makes 0
    return ACTIVATIONS[rule.activation](z), u, mean.squeeze(-1), rstd.squeeze(-1)


def _composed(*args: Any) -> tuple[Tensor, ...]:
    inputs, rule, return_sum = _parts(args)
    x = inputs.x
    y, total, mean, rstd = compose(inputs, rule, torch.float64)
    total = total.to(x.dtype) if return_sum else x.new_empty(0)
    return y.to(x.dtype), total, mean.detach(), rstd.detach()


def _differentiate(
    dy: Tensor | None, dsum: Tensor | None, inputs: Inputs, rule: Rule
) -> tuple[Tensor | None, ...]:
    """The gradients in the dtypes of what they are of; None for what is None."""
    models = _models(inputs)

    def results(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        named = zip(_GRADIENTS, fill(models, tensors), strict=True)
        y, total, _, _ = compose(inputs._replace(**dict(named)), rule, torch.float64)
        return y, total

    found, pull = torch.func.vjp(results, *there(models))[:2]
    pairs = zip((dy, dsum), found, strict=True)
    given = tuple(torch.zeros_like(t) if g is None else g.double() for g, t in pairs)
    return fill(models, pull(given))


def _composed_backward(dy: Tensor | None, dsum: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    inputs, _, _, rule, mask = _backward_parts(args)
    found = _differentiate(dy, dsum, inputs, rule)
    return tuple(
        g if asked and g is not None else inputs.x.new_empty(0)
        for g, asked in zip(found, mask, strict=True)
    )


# ---- autograd


def _kept(inputs: Inputs, total: Tensor | None) -> Inputs:
    """What backward reads: of x and skip their sum alone, where that is u to the last bit."""
    exact = inputs.shift is None and inputs.x.dtype.itemsize >= 4
    if total is None or inputs.skip is None or not exact:
        return inputs
    return inputs._replace(x=total, skip=None)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.rule, ctx.return_sum = _parts(inputs)
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd, *(() if ctx.return_sum else (total,)))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*_kept(tensors, total if ctx.return_sum else None), mean, rstd)


def _mask(needed: Sequence[bool]) -> list[bool]:
    """Of the gradients, by what is asked of the inputs: dx is that of skip, too."""
    x, weight, bias, skip, shift, residual, scale, offset, _ = needed
    return [x or skip, weight, bias, shift, residual, scale, offset]


def _to_inputs(gradients: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients in the order of the inputs, None where none is asked for."""
    dx, dweight, dbias, dshift, dresidual, dscale, doffset = gradients
    ordered = [dx, dweight, dbias, dx, dshift, dresidual, dscale, doffset, None]
    return [g if asked else None for g, asked in zip(ordered, needed, strict=True)]


def _backward_of(ctx: Any, dy: Tensor | None, dsum: Tensor | None, *_: Any) -> tuple[Any, ...]:
    rest = (None,) * (_RULE + 1)
    if dy is None and dsum is None:
        return (None,) * _INPUTS + rest
    needed = ctx.needs_input_grad[:_INPUTS]
    run = torch.ops.groupnorm.norm_with_neighbours_backward
    found = run(dy, dsum, *ctx.saved_tensors, *ctx.rule, _mask(needed))
    return (*_to_inputs(found, needed), *rest)


def _setup_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, dsum, *args = inputs
    tensors, _, _, ctx.rule, ctx.mask = _backward_parts(args)
    ctx.save_for_backward(dy, dsum, *tensors)


def _second_backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
    """The gradient's own gradient: rare, so composed, and exact rather than fast."""
    *saved, lengths = ctx.saved_tensors
    models = _models(Inputs._make((*saved[2:], lengths)))
    asked = [m and t is not None for m, t in zip(ctx.mask, models, strict=True)]

    def asked_of(tensors: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(t for t, wanted in zip(tensors, asked, strict=True) if wanted)

    def gradients_of(*tensors: Tensor) -> tuple[Tensor, ...]:
        dy, dsum, *inputs = fill(saved, tensors)
        return asked_of(_differentiate(dy, dsum, Inputs._make((*inputs, lengths)), ctx.rule))

    pull = torch.func.vjp(gradients_of, *there(saved))[1]
    return (*fill(saved, pull(asked_of(gradients))), *(None,) * (4 + _RULE))


differentiable(_library, "norm_with_neighbours", _setup_context, _backward_of, _composed)
differentiable(
    *(_library, "norm_with_neighbours_backward", _setup_second, _second_backward),
    _composed_backward,
)


@torch.library.register_vmap("groupnorm::norm_with_neighbours", lib=_library)
def _(info: Any, dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], Any]:
    return torch.vmap(_composed, dims)(*args), (0,) * 4


@torch.library.register_vmap("groupnorm::norm_with_neighbours_backward", lib=_library)
def _(info: Any, dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], Any]:
    run = torch.vmap(lambda *given: _composed_backward(*given, args[-1]), dims[:-1])
    return run(*args[:-1]), (0,) * len(_GRADIENTS)


class NeighboursFunction(SingleLevelFunction):
    """The same on plain tensors that are dense, without the operator's way through the dispatcher.

    See _ops.GroupNormFunction. mean and rstd are kept in no tensor.
    """

    apply: ClassVar[Any]  # of the C++ base, which has no types

    @staticmethod
    def forward(
        ctx: Any, norm: _kernels.Norm, return_sum: bool, *inputs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns y, or y and the sum."""
        saved = _core.Saved(norm.plan)
        y, total = _kernels.forward_with(*(norm, inputs, return_sum, saved.mean, saved.rstd))
        ctx.kept = norm, saved
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_kept(Inputs(*inputs), total))
        return y if total is None else (y, total)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dsum: Tensor | None = None) -> tuple[Any, ...]:
        """By the operators where somebody differentiates or looks at them."""
        if dy is None and dsum is None:
            return (None,) * (2 + _INPUTS)
        inputs = Inputs(*ctx.saved_tensors)
        needed = ctx.needs_input_grad[2:]
        norm, saved = ctx.kept
        watched = torch.is_grad_enabled() or transformed() or traced()
        for g in (dy, dsum):
            # is_grads_batched is a vmap of its own, older than that of torch.func.
            watched = watched or g is not None and (type(g) is not Tensor or is_legacy_batched(g))
        mask = _mask(needed)
        if watched:
            by_operators = _by_operators(norm, dy, dsum, inputs, mask)
            return (None, None, *_to_inputs(by_operators, needed))
        found = _kernels.backward_with(norm, dy, dsum, inputs, saved.mean, saved.rstd, mask)
        return (None, None, *_to_inputs(found, needed))


def as_rows(inputs: Inputs, rows: tuple[int, int]) -> Inputs:
    """What the operators take of a layer norm."""
    x, weight, bias, skip, _, residual, *_ = inputs
    return inputs._replace(
        x=x.reshape(rows),
        weight=None if weight is None else weight.reshape(-1),
        bias=None if bias is None else bias.reshape(-1),
        skip=None if skip is None else skip.reshape(rows),
        residual=None if residual is None else residual.reshape(rows),
    )


def _by_operators(
    norm: _kernels.Norm,
    dy: Tensor | None,
    dsum: Tensor | None,
    inputs: Inputs,
    mask: list[bool],
) -> list[Tensor | None]:
    """The gradients. mean and rstd are taken again: those of forward are no tensors."""
    given = inputs
    if norm.rows is not None:
        given = as_rows(inputs, norm.rows)
        dy, dsum = (None if g is None else g.reshape(norm.rows) for g in (dy, dsum))
    _, _, mean, rstd = torch.ops.groupnorm.norm_with_neighbours(*given, *norm.settings, False)
    run = torch.ops.groupnorm.norm_with_neighbours_backward
    found = run(dy, dsum, *given, mean, rstd, *norm.settings, mask)
    return [
        g.reshape(t.shape) if asked and t is not None else None
        for g, t, asked in zip(found, _models(inputs), mask, strict=True)
    ]
