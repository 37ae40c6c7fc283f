"""The keywords of every norm for what models compute around it, and the one call that they make.

The engine takes tensors as they lie, whatever axes of size 1 they have. Others are brought to the
form of `_kernels.Inputs` first, by torch's own operations, which autograd knows. Who looks at
operators sees one; what the engine can't take goes the same chain in torch's operations.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, fx, nn
from torch.compiler import is_compiling
from torch.nn.parameter import Parameter

from . import _kernels
from ._kernels import Inputs, Rule
from ._neighbour_ops import NeighboursFunction, as_rows, compose
from ._ops import ACTIVATIONS, traced, transformed
from ._private import (
    OPERATORS_KEEP_TANGENTS,
    TRACED,
    are_transforms_active,
    dispatch_modes,
    forward_ad,
    is_known,
    profiler,
    tracing_state,
    unsafe_view,
)

_TENSORS = frozenset((Tensor, Parameter))
_OR_PROXY: Any = (Tensor, fx.Proxy)  # in a graph of torch.fx, which has torch's functions
_NAMES = ("shift", "scale_shift[0]", "scale_shift[1]")  # of what is given by example and channel


class Neighbours(TypedDict, total=False):
    """Keywords of every norm here; each may be None or left out::

        u = input + skip + shift                                     normalized in its place
        y = activation((weight * uhat + bias) * (1 + scale) + offset + residual)

    u is formed in float32 (float64 of float64). y and the sum have the dtype that input, skip,
    shift and residual have together; scale and offset are parameters, as weight and bias are.

    Attributes:
        skip: of the shape of input, or one that expands to it.
        shift: one for each example and channel: [N, C], or with axes of size 1, as [N, C, 1, 1];
            N and C may be 1. Of layer_norm and rms_norm [N, C], or any shape that expands to
            input ([N, 1, C] of [N, L, C]).
        residual: as skip.
        scale_shift: the pair (scale, offset), each in a shape that shift may have.
        lengths: integers [N], a tensor or a list. Of input [N, C, ..., L]: each example is
            normalized over its first so many positions of the last axis alone. Of layer_norm and
            rms_norm of [N, ..., L, C]: so many of its rows are. Behind them nothing is read, and y,
            the sum and gradients are 0.
        return_sum: True returns (y, u), u rounded once.
    """

    skip: Tensor | None
    shift: Tensor | None
    residual: Tensor | None
    scale_shift: tuple[Tensor, Tensor] | None
    lengths: Tensor | Sequence[int] | None
    return_sum: bool


def around(
    see: _kernels.See,
    of: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: Any,
    activation: str,
    center: bool = True,
    *,
    skip: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    return_sum: bool = False,
) -> Any:
    """y of x, seen as _kernels.See tells, or (y, sum)."""
    scale, offset = (None, None) if scale_shift is None else _pair(scale_shift)
    if lengths is not None and not isinstance(lengths, Tensor):
        lengths = _as_tensor(lengths, x.device)
    tensors = [x, weight, bias, skip, shift, residual, scale, offset, lengths]
    # _ops.traced() and _ops.transformed(), without two calls: a small call waits for every line.
    looked_at = is_compiling() or dispatch_modes() > 0 or tracing_state() is not None
    transformed_ = forward_ad._current_level >= 0 or are_transforms_active()
    watched = looked_at or transformed_ or profiler._is_profiler_enabled
    kinds = None if watched else _kinds(tensors)
    call = None if kinds is None else _find_call(see, of, eps, activation, center, kinds)
    if call is None:
        by = _watched if kinds is None else _in_torch
        return by(_Norm(see, of, eps, activation, center), Inputs._make(tensors), return_sum)
    found = call.norm
    if call.copies is None:
        norm = _Norm(see, of, eps, activation, center)
        if norm.of_rows:
            _check_range(norm, Inputs._make(tensors))
        inputs, rule = _canonical(norm, Inputs._make(tensors))
        found = _kernels.find_norm_with(see, of, inputs, rule)
        tensors = [*_kernels.dense(inputs, found)]
    else:
        for i, form in call.copies:
            tensors[i] = tensors[i].contiguous(memory_format=form)  # type: ignore[union-attr]
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return NeighboursFunction.apply(found, return_sum, *tensors)
    y, total = _kernels.forward_with(found, tensors, return_sum)
    return (y, total) if return_sum else y


class _Norm(NamedTuple):
    """Which norm, and what after it."""

    see: _kernels.See
    of: Any
    eps: Any  # a float; None: of torch's rms_norm, where x is not known yet
    activation: str
    center: bool

    @property
    def of_rows(self) -> bool:
        return self.see is _kernels.see_rows

    def axes(self, shape: Sequence[int]) -> int:
        """How many axes of x number its examples, or rows."""
        return max(len(shape) - len(self.of), 0) if self.of_rows else 1


class _Call(NamedTuple):
    """How the engine computes a norm of inputs of some kinds.

    Attributes:
        norm: of the engine.
        copies: which of the inputs have to be copied to which memory format. None: some have
            another form; else they are what it takes, whatever axes of size 1 they have.
    """

    norm: _kernels.Norm
    copies: tuple[tuple[int, torch.memory_format], ...] | None


_Kind = tuple[torch.Size, tuple[int, ...], torch.dtype]


def _kinds(inputs: Sequence[Tensor | None]) -> tuple[_Kind | None, ...] | None:
    """Shape, strides and dtype of each; None where one is no plain tensor of the CPU."""
    kinds: list[_Kind | None] = []
    for t in inputs:
        if t is None:
            kinds.append(None)
            continue
        # In this order: nested and sparse tensors can't be asked for shapes and strides.
        if type(t) not in _TENSORS or not t.is_cpu or t.layout is not torch.strided or t.is_nested:
            return None
        kinds.append((t.shape, t.stride(), t.dtype))
    return tuple(kinds)


@functools.lru_cache(maxsize=1024)
def _find_call(
    see: _kernels.See,
    of: Any,
    eps: float,
    activation: str,
    center: bool,
    kinds: tuple[_Kind | None, ...],
) -> _Call | None:
    """None where the engine can't take shapes or dtypes; ValueError where nobody can."""
    norm = _Norm(see, of, eps, activation, center)
    given = Inputs(
        *[
            None if k is None else torch.empty_strided(k[0], k[1], dtype=k[2], device="meta")
            for k in kinds
        ]  # type: ignore[arg-type]
    )
    if given.x.numel() == 0 or see(given.x.shape, of) is None:
        return None
    inputs, rule = _canonical(norm, given)
    if not _fit(norm, inputs, bool):
        return None
    found = _kernels.find_norm_with(norm.see, norm.of, inputs, rule)
    copies = []
    for i, (name, t, wanted) in enumerate(zip(Inputs._fields, given, inputs, strict=True)):
        if t is None or wanted is None:
            continue
        if t.dtype != wanted.dtype or t.numel() != wanted.numel():
            return _Call(found, None)
        form = found.format if name in ("x", "skip", "residual") else torch.contiguous_format
        if not t.is_contiguous(memory_format=form):
            copies.append((i, form))
    return _Call(found, tuple(copies))


# ---- the form that the engine takes


def _canonical(norm: _Norm, given: Inputs) -> tuple[Inputs, Rule]:
    """Tensors of the shapes and dtypes of `_kernels.Inputs`, as far as they can have those."""
    x, weight, bias, skip, shift, residual, scale, offset, lengths = given
    shape, axes = x.shape, norm.axes(x.shape)
    dtype = _dtype_of(given)
    shift, scale, offset = _aligned(norm, given)
    rows_of = axes  # the axes by which shift, scale, offset and lengths differ
    if norm.of_rows:
        modulators = [t for t in (shift, scale, offset) if t is not None]
        rows_of = max([0, *(_differs_by(t, axes) for t in modulators)])
        if lengths is not None:
            lengths = _lengths_of_rows(lengths, shape, axes)
            if rows_of == axes:  # a row that has one of its own is there or not
                within = torch.arange(shape[axes - 1], device=x.device) < lengths.unsqueeze(-1)
                lengths = within.to(torch.int64)
            else:
                rows_of = axes - 1
            lengths = lengths.reshape(-1)
        elif not modulators:
            rows_of = axes
    elif lengths is not None:
        lengths = _lengths_of_positions(lengths, shape)

    def per_example(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        if not norm.of_rows:
            return t.reshape(t.shape[:2]).expand(shape[:2])
        ones = (1,) * (axes - rows_of)
        t = t.expand(*shape[:rows_of], *ones, *shape[axes:])
        return t.reshape(-1, math.prod(shape[axes:]))

    shift, scale, offset = map(per_example, (shift, scale, offset))
    inputs = Inputs(
        _to(x, dtype),
        weight,
        bias,
        _expanded("skip", skip, shape, dtype),
        None if shift is None else _to(shift, dtype),
        _expanded("residual", residual, shape, dtype),
        scale,
        offset,
        None if lengths is None else _to(lengths, torch.int64),
    )
    rule = Rule(
        1 if norm.of_rows else shape[1] if norm.of is None else norm.of,
        math.prod(shape[rows_of:axes]),
        norm.eps,
        norm.activation,
        norm.center,
    )
    return _params_alike(inputs), rule


def _dtype_of(inputs: Inputs) -> torch.dtype:
    """The dtype of y and the sum."""
    dtype = inputs.x.dtype
    for t in (inputs.skip, inputs.shift, inputs.residual):
        if t is not None and t.dtype is not dtype:
            dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def _params_alike(inputs: Inputs) -> Inputs:
    """Parameters in one dtype: float32 if one of a 16-bit input is, else that of the input."""
    dtype = inputs.x.dtype
    params = inputs.params()
    if dtype.itemsize == 2 and any(p.dtype is torch.float32 for p in params):
        dtype = torch.float32
    if all(p.dtype is dtype for p in params):
        return inputs

    def exact(p: Tensor | None) -> Tensor | None:
        fits = p is None or torch.promote_types(p.dtype, dtype) is dtype
        return p if p is None or not fits else _to(p, dtype)

    return inputs._replace(
        weight=exact(inputs.weight),
        bias=exact(inputs.bias),
        scale=exact(inputs.scale),
        offset=exact(inputs.offset),
    )


def _to(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t if t.dtype is dtype else t.to(dtype)


def _fit(norm: _Norm, inputs: Inputs, known: Callable[[Any], bool]) -> bool:
    """Whether the engine takes shapes and dtypes of canonical inputs."""
    x, weight, bias, lengths = inputs.x, inputs.weight, inputs.bias, inputs.lengths
    seen = norm.see(x.shape, norm.of)
    kinds = [None if p is None else (p.shape, p.dtype) for p in (weight, bias)]
    if seen is None or not _kernels.takes(seen, norm.eps, x.dtype, *kinds, known=known):
        return False
    if lengths is not None and not norm.of_rows and x.dim() != 3:
        return False
    dtypes = {p.dtype for p in inputs.params()}
    narrow = {torch.float32} if x.dtype.itemsize == 2 else set()
    return len(dtypes) <= 1 and dtypes <= {x.dtype, *narrow}


# ---- each argument


def _check_tensor(name: str, t: Any) -> None:
    if t is not None and not isinstance(t, _OR_PROXY):
        raise TypeError(f"{name}: must be a Tensor or None; got {type(t).__name__}")


def _pair(scale_shift: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(scale_shift, tuple | list) or len(scale_shift) != 2:
        got = type(scale_shift).__name__
        raise TypeError(f"scale_shift: must be a pair (scale, shift) of Tensors; got {got}")
    scale, offset = scale_shift
    if not isinstance(scale, _OR_PROXY) or not isinstance(offset, _OR_PROXY):
        got = f"({type(scale).__name__}, {type(offset).__name__})"
        raise TypeError(f"scale_shift: must be a pair (scale, shift) of Tensors; got {got}")
    return scale, offset


def _expanded(name: str, t: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    if t is None:
        return None
    if t.shape != shape:
        if not _expands(t.shape, shape):
            raise ValueError(
                f"{name}: must have the shape of input, {list(shape)}, or one that expands to it; "
                f"got {list(t.shape)}"
            )
        t = t.expand(shape)
    return _to(t, dtype)


def _expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    missing = len(to) - len(shape)
    return missing >= 0 and all(a == b or a == 1 for a, b in zip(shape, to[missing:], strict=True))


def _aligned(norm: _Norm, inputs: Inputs) -> list[Tensor | None]:
    """shift, scale and offset with the axes of x, so that they expand to it."""
    shape = inputs.x.shape
    align = _align_to_rows if norm.of_rows else _align_to_channels
    modulators = inputs.shift, inputs.scale, inputs.offset
    return [
        None if t is None else align(name, t, shape, norm.axes(shape))
        for name, t in zip(_NAMES, modulators, strict=True)
    ]


def _align_to_channels(name: str, t: Tensor, shape: torch.Size, axes: int) -> Tensor:
    rank, found = len(shape), t.shape
    if not (
        len(found) in (2, rank)
        and _expands(found[:2], shape[:2])
        and all(size == 1 for size in found[2:])
    ):
        n_c, ones = list(shape[:2]), [1] * (rank - 2)
        raise ValueError(
            f"{name}: must be [N, C], {n_c}, or {n_c + ones}, for input {list(shape)}; "
            f"got {list(found)}"
        )
    return t if len(found) == rank else t.reshape(*found, *(1,) * (rank - 2))


def _align_to_rows(name: str, t: Tensor, shape: torch.Size, axes: int) -> Tensor:
    last = shape[axes:]
    found = t.shape
    if axes > 1 and len(found) == 1 + len(last) and _expands(found, (shape[0], *last)):
        return t.reshape(found[0], *(1,) * (axes - 1), *found[1:])
    if not _expands(found, shape):
        raise ValueError(
            f"{name}: must be {[*shape[:1], *last]}, one for each example, or expand to input "
            f"{list(shape)}; got {list(found)}"
        )
    return t.reshape(*(1,) * (len(shape) - len(found)), *found)


def _differs_by(t: Tensor, axes: int) -> int:
    """By how many of the leading axes an aligned tensor differs."""
    return max([0, *(i + 1 for i, size in enumerate(t.shape[:axes]) if size != 1)])


def _as_tensor(lengths: Any, device: torch.device) -> Tensor:
    try:
        t = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lengths: must be integers [N]; got {lengths!r}") from error
    if t.numel() == 0:
        t = t.to(torch.int64)
    return t.to(device)


def _check_integers(lengths: Tensor) -> None:
    dtype = lengths.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        raise TypeError(f"lengths: must be integers; got {dtype}")


def _lengths_of_positions(lengths: Tensor, shape: torch.Size) -> Tensor:
    _check_integers(lengths)
    if len(shape) < 3:
        raise ValueError(f"lengths: are of input [N, C, ..., L]; got input {list(shape)}")
    if lengths.shape != shape[:1]:
        raise ValueError(f"lengths: must be [N], {list(shape[:1])}; got {list(lengths.shape)}")
    return lengths


def _lengths_of_rows(lengths: Tensor, shape: torch.Size, axes: int) -> Tensor:
    _check_integers(lengths)
    if axes < 2:
        raise ValueError(
            f"lengths: are of input [N, ..., L, *normalized_shape]; got input {list(shape)}"
        )
    wanted = shape[: axes - 1]
    if lengths.shape == wanted:
        return lengths
    if lengths.shape != shape[:1]:
        raise ValueError(f"lengths: must be [N], {list(shape[:1])}; got {list(lengths.shape)}")
    return lengths.reshape(-1, *(1,) * (axes - 2)).expand(wanted)


# ---- for who looks at operators, and in torch's functions


def _watched(norm: _Norm, inputs: Inputs, return_sum: bool) -> Any:
    """By the operator where that is seen, and can be: not in ONNX, nor of other classes of tensors."""
    for name, t in inputs._asdict().items():
        _check_tensor(name, t)
    plain = all(
        t is None
        or (type(t) in _TENSORS or isinstance(t, TRACED))
        and t.is_cpu
        and t.layout is torch.strided
        and not t.is_nested
        for t in inputs
    )
    seen = traced() or profiler._is_profiler_enabled
    lost = torch.onnx.is_in_onnx_export() or (not OPERATORS_KEEP_TANGENTS and transformed())
    if not plain or not seen or lost:
        return _in_torch(norm, inputs, return_sum)
    shape = inputs.x.shape
    if norm.see(shape, norm.of) is None:
        return _in_torch(norm, inputs, return_sum)
    given, rule = _canonical(norm, inputs)
    if not _fit(norm, given, is_known):
        return _in_torch(norm, inputs, return_sum)
    run = torch.ops.groupnorm.norm_with_neighbours
    if not norm.of_rows:
        y, total, _, _ = run(*given, *rule, return_sum)
    else:
        c = math.prod(shape[norm.axes(shape) :])
        y, total, _, _ = run(*as_rows(given, (-1, c)), *rule, return_sum)
        # No views: those can't be changed in place in every mode.
        y = unsafe_view(y, shape)
        total = unsafe_view(total, shape) if return_sum else total
    return (y, total) if return_sum else y


def _in_torch(norm: _Norm, inputs: Inputs, return_sum: bool) -> Any:
    def own(u: Tensor) -> Tensor:
        weight, bias = inputs.weight, inputs.bias
        if norm.of_rows and not norm.center:
            z = nn.functional.rms_norm(u, norm.of, weight, norm.eps)
            return z if bias is None else z + bias
        if norm.of_rows:
            return nn.functional.layer_norm(u, norm.of, weight, bias, norm.eps)
        if norm.of is None:
            return nn.functional.instance_norm(u, weight=weight, bias=bias, eps=norm.eps)
        return nn.functional.group_norm(u, norm.of, weight, bias, norm.eps)

    if inputs.lengths is not None:
        return _valid_in_torch(norm, inputs, return_sum, own)
    return _chain(norm, inputs, return_sum, own)


def _chain(norm: _Norm, inputs: Inputs, return_sum: bool, own: Callable[[Tensor], Tensor]) -> Any:
    """In torch's operations, of every tensor that torch has; own is the norm."""
    x, skip, residual = inputs.x, inputs.skip, inputs.residual
    as_given = isinstance(x, fx.Proxy) or x.is_nested  # which have no shape to be asked for
    shift, scale, offset = (
        (inputs.shift, inputs.scale, inputs.offset) if as_given else _aligned(norm, inputs)
    )
    u = x if skip is None else x + skip
    u = u if shift is None else u + shift
    z = own(u)
    if scale is not None and offset is not None:
        z = z * (1 + scale) + offset
    z = z if residual is None else z + residual
    y = ACTIVATIONS[norm.activation](z)
    return (y, u) if return_sum else y


def _valid_in_torch(
    norm: _Norm, inputs: Inputs, return_sum: bool, own: Callable[[Tensor], Tensor]
) -> Any:
    """With lengths: in the widest type that there is for it, as the derivatives of the operator."""
    x = inputs.x
    if norm.see(x.shape, norm.of) is None or not x.is_floating_point():
        own(x)  # which refuses
    if not (traced() or transformed()):
        _check_range(norm, inputs)
    given, rule = _canonical(norm, inputs)
    shape, dtype = x.shape, given.x.dtype
    if norm.of_rows:
        given = as_rows(given, (-1, math.prod(norm.of)))
    wide = torch.float64 if x.is_cpu or dtype is torch.float64 else torch.float32
    y, total, _, _ = compose(given, rule, wide)
    y, total = (t.reshape(shape).to(dtype) for t in (y, total))
    return (y, total) if return_sum else y


def _check_range(norm: _Norm, inputs: Inputs) -> None:
    if inputs.lengths is not None:
        shape = inputs.x.shape
        limit = shape[norm.axes(shape) - 1] if norm.of_rows else shape[-1]
        _kernels.check_lengths(inputs.lengths, limit)


def chain(
    own: Callable[[Tensor], Tensor],
    see: _kernels.See,
    of: Any,
    x: Tensor,
    activation: str,
    *,
    return_sum: bool = False,
    **neighbours: Any,
) -> Any:
    """What `around` computes, with a norm that is not the engine's and has no lengths."""
    if neighbours.pop("lengths", None) is not None:
        raise ValueError("lengths: must be None here: this norm has no statistics of its own input")
    scale_shift = neighbours.pop("scale_shift", None)
    scale, offset = (None, None) if scale_shift is None else _pair(scale_shift)
    inputs = Inputs(x, scale=scale, offset=offset, **neighbours)
    return _chain(_Norm(see, of, 0.0, activation, True), inputs, return_sum, own)
