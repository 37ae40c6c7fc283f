"""The engine on plain CPU tensors: no autograd, no dispatcher."""

import ctypes
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from .._engine import POOL
from ._private import suggest_memory_format

DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
}


def libtorch() -> ctypes.CDLL | None:
    """The library of torch that is loaded; None where it is not found (macOS, Windows)."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        return ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD)
    except (AttributeError, OSError):
        return None


def _torch_threads() -> _core.Threads:
    """The workers of torch's OpenMP, so that two pools never fight for the same cores.

    A symbol of libtorch_cpu is looked for in what it depends on: so this is the runtime that torch
    itself uses. Where torch has none (macOS, Windows), the engine's pool runs as many threads.
    """
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_in_parallel")
    loaded = libtorch()
    try:
        addresses = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in names]
    except AttributeError:
        return POOL
    return _core.Threads.openmp(*(address or 0 for address in addresses))


THREADS = _torch_threads()


class Geometry(NamedTuple):
    """How a norm sees x: [n, c, s], so many groups of channels, and what torch asks of it.

    ``params`` is the shape of weight and bias, ``values`` what torch wants more than one of.
    """

    n: int
    c: int
    s: int
    groups: int
    params: tuple[int, ...]
    values: int


# The shape of x, and what the norm is of -> how it sees x; None where it doesn't fit.
See = Callable[[Sequence[int], Any], Geometry | None]


def see_groups(shape: Sequence[int], num_groups: int) -> Geometry | None:
    """Of group normalization: x is [N, C, ...]."""
    if len(shape) < 2 or num_groups <= 0 or shape[1] % num_groups != 0:
        return None
    n, c, s = shape[0], shape[1], math.prod(shape[2:])
    return Geometry(n, c, s, num_groups, (c,), n * (c // num_groups) * s)


def see_channels(shape: Sequence[int], _: None) -> Geometry | None:
    """Of instance normalization: x is [N, C, L...]."""
    if len(shape) < 3:
        return None
    n, c, s = shape[0], shape[1], math.prod(shape[2:])
    return Geometry(n, c, s, c, (c,), s)


def see_rows(shape: Sequence[int], last: tuple[int, ...]) -> Geometry | None:
    """Of layer normalization: x is [..., *last], a row is an example of one position."""
    axes = len(shape) - len(last)
    if axes < 0 or not last or tuple(shape[axes:]) != last:
        return None
    return Geometry(math.prod(shape[:axes]), math.prod(last), 1, 1, last, 2)


def takes(
    seen: Geometry,
    eps: float,
    dtype: torch.dtype,
    *params: tuple[Sequence[int], torch.dtype] | None,
    known: Callable[[Any], bool] = bool,
) -> bool:
    """Whether the engine does it: torch has what it refuses. ``known`` tells of sizes in symbols."""
    if eps < 0 or dtype not in DTYPES or known(seen.values == 1) or known(seen.c == 0):
        return False
    there = [p for p in params if p is not None]
    for shape, param in there:
        narrow = param is torch.float32 and dtype.itemsize == 2
        if param is not there[0][1] or not (param is dtype or narrow):
            return False
        if tuple(shape) != seen.params:
            return False
    return True


def memory_format(see: See, x: Tensor) -> torch.memory_format:
    """In which y and dx lie, as torch has it; x is copied to it where it lies otherwise."""
    return torch.contiguous_format if see is see_rows else suggest_memory_format(x)


class Norm(NamedTuple):
    """What the calls of one kind have in common.

    Attributes:
        plan: of the engine.
        settings: num_groups, eps, activation; with neighbours a Rule.
        rows: (n, c) where it is of rows, which the operators take as [n, c]; else None.
        format: the memory format of y and dx.
        dense: whether x lies in that format; else it has to be copied.
        alike: whether its strides are those that torch gives to that format. Strides of axes of
            size 1 can be others.
    """

    plan: _core.Plan
    settings: tuple[Any, ...]
    rows: tuple[int, int] | None
    format: torch.memory_format
    dense: bool
    alike: bool


@functools.lru_cache(maxsize=1024)
def _find_norm(
    see: See,
    of: Any,
    shape: torch.Size,
    strides: tuple[int, ...],
    dtype: torch.dtype,
    weight: tuple[torch.Size, torch.dtype] | None,
    bias: tuple[torch.Size, torch.dtype] | None,
    eps: float,
    activation: str,
) -> Norm | None:
    seen = see(shape, of)
    if seen is None or not takes(seen, eps, dtype, weight, bias):
        return None
    x = torch.empty_strided(shape, strides, device="meta")
    form = memory_format(see, x)
    data = DTYPES[dtype]
    param = weight or bias
    plan = _core.Plan(
        seen.n,
        seen.c,
        seen.s,
        1,
        seen.c // seen.groups,
        "channels_first" if form is torch.contiguous_format else "channels_last",
        data,
        DTYPES[param[1]] if param else data,
        activation,
        eps,
    )
    return Norm(
        plan,
        (seen.groups, eps, activation),
        (seen.n, seen.c) if see is see_rows else None,
        form,
        x.is_contiguous(memory_format=form),
        strides == torch.empty_like(x, memory_format=form).stride(),
    )


def find_norm(
    see: See,
    of: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Norm | None:
    """None where the engine can't take the shapes or dtypes."""
    return _find_norm(
        see,
        of,
        x.shape,
        x.stride(),
        x.dtype,
        None if weight is None else (weight.shape, weight.dtype),
        None if bias is None else (bias.shape, bias.dtype),
        eps,
        activation,
    )


def _like(x: Tensor, norm: Norm) -> Tensor:
    return torch.empty_like(x) if norm.alike else torch.empty_like(x, memory_format=norm.format)


def forward(
    norm: Norm,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: int = 0,
    rstd: int = 0,
) -> Tensor:
    """y; mean and rstd are addresses, 0 for neither."""
    if norm.dense:
        y = _like(x, norm)
    else:
        x = y = x.contiguous(memory_format=norm.format)
    norm.plan.forward(
        x.data_ptr(),
        y.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        mean,
        rstd,
        THREADS,
        torch.get_num_threads(),
    )
    return y


def backward(
    norm: Norm,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: int,
    rstd: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight and dbias, None where the mask does not ask for them."""
    x = x.contiguous(memory_format=norm.format)
    dy = dy.contiguous(memory_format=norm.format)
    dx = _like(x, norm) if mask[0] else None
    dweight = torch.empty_like(weight) if mask[1] and weight is not None else None
    dbias = torch.empty_like(bias) if mask[2] and bias is not None else None
    norm.plan.backward(
        x.data_ptr(),
        dy.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        mean,
        rstd,
        0 if dx is None else dx.data_ptr(),
        0 if dweight is None else dweight.data_ptr(),
        0 if dbias is None else dbias.data_ptr(),
        THREADS,
        torch.get_num_threads(),
    )
    return dx, dweight, dbias


# ---- with neighbours


class Inputs(NamedTuple):
    """The tensors of a norm with neighbours: u = x + skip + shift in the place of x, and

        y = activation((weight uhat + bias) (1 + scale) + offset + residual)

    x, skip and residual are of one shape and dtype; shift, scale and offset [n / sequence, c], the
    former in the dtype of x, the others in that of weight and bias; lengths [n / sequence] int64.
    """

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    skip: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None
    lengths: Tensor | None = None

    def params(self) -> list[Tensor]:
        """Those of one dtype that are there: of weight."""
        params = (self.weight, self.bias, self.scale, self.offset)
        return [p for p in params if p is not None]


class Rule(NamedTuple):
    """What is computed of them: [n, c, ...] in so many groups of channels.

    sequence: examples (rows of layer norm) that share a row of shift, scale and offset, and one of
    lengths, which count examples then; else they count positions of the last axis.
    """

    num_groups: int
    sequence: int
    eps: float
    activation: str
    center: bool


@functools.lru_cache(maxsize=1024)
def _find_norm_with(
    see: See,
    of: Any,
    shape: torch.Size,
    strides: tuple[int, ...],
    dtype: torch.dtype,
    param: torch.dtype,
    there: tuple[bool, bool, bool],
    rule: Rule,
) -> Norm:
    seen = see(shape, of)
    assert seen is not None
    x = torch.empty_strided(shape, strides, device="meta")
    form = memory_format(see, x)
    plan = _core.Plan(
        *(seen.n, seen.c, seen.s, 1, seen.c // seen.groups),
        "channels_first" if form is torch.contiguous_format else "channels_last",
        DTYPES[dtype],
        DTYPES[param],
        rule.activation,
        rule.eps,
        center=rule.center,
        sequence=rule.sequence,
        shift=there[0],
        scale=there[1],
        lengths=there[2],
    )
    return Norm(
        plan,
        rule,
        (seen.n, seen.c) if see is see_rows else None,
        form,
        x.is_contiguous(memory_format=form),
        strides == torch.empty_like(x, memory_format=form).stride(),
    )


def find_norm_with(see: See, of: Any, inputs: Inputs, rule: Rule) -> Norm:
    """Of inputs that are known to fit."""
    x = inputs.x
    params = inputs.params()
    there = inputs.shift is not None, inputs.scale is not None, inputs.lengths is not None
    param = params[0].dtype if params else x.dtype
    return _find_norm_with(see, of, x.shape, x.stride(), x.dtype, param, there, rule)


def dense(inputs: Inputs, norm: Norm) -> Inputs:
    """The inputs as the engine takes them: copies of what lies otherwise."""
    x, weight, bias, skip, shift, residual, scale, offset, lengths = inputs
    form = norm.format
    return Inputs(
        x if norm.dense else x.contiguous(memory_format=form),
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        None if skip is None else skip.contiguous(memory_format=form),
        None if shift is None else shift.contiguous(),
        None if residual is None else residual.contiguous(memory_format=form),
        None if scale is None else scale.contiguous(),
        None if offset is None else offset.contiguous(),
        None if lengths is None else lengths.contiguous(),
    )


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def forward_with(
    norm: Norm, inputs: Sequence[Tensor | None], return_sum: bool, mean: int = 0, rstd: int = 0
) -> tuple[Tensor, Tensor | None]:
    """y and the sum, of dense `Inputs`; mean and rstd are addresses, 0 for neither."""
    x = inputs[0]
    assert x is not None
    y = _like(x, norm)
    total = _like(x, norm) if return_sum else None
    at_x, weight, bias, *neighbours = _addresses(inputs)
    at_sum = 0 if total is None else total.data_ptr()
    try:
        norm.plan.forward_with(
            at_x,
            y.data_ptr(),
            weight,
            bias,
            mean,
            rstd,
            neighbours,
            at_sum,
            THREADS,
            torch.get_num_threads(),
        )
    except ValueError:
        positions = x.shape[-1] if x.dim() > 2 and norm.rows is None else 1
        check_lengths(inputs[-1], norm.settings[1] if norm.settings[1] > 1 else positions)
        raise
    return y, total


def check_lengths(lengths: Tensor | None, limit: int) -> None:
    """ValueError that names the first length out of range."""
    if lengths is None:
        return
    outside = ((lengths < 0) | (lengths > limit)).nonzero()
    if len(outside):
        at = int(outside[0, 0])
        raise ValueError(
            f"lengths: must be from 0 to {limit} for this input; got {int(lengths[at])} at index {at}"
        )


def backward_with(
    norm: Norm,
    dy: Tensor | None,
    dsum: Tensor | None,
    inputs: Inputs,
    mean: int,
    rstd: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """dx (of skip, too), dweight, dbias, dshift, dresidual, dscale and doffset; by the mask."""
    x, weight, bias, _, shift, residual, scale, offset, _ = inputs
    dy = torch.zeros_like(x) if dy is None else dy
    dy = dy.contiguous(memory_format=norm.format)
    dsum = None if dsum is None else dsum.contiguous(memory_format=norm.format)
    models = (x, weight, bias, shift, residual, scale, offset)
    gradients = tuple(
        None
        if t is None or not asked
        else (_like(x, norm) if t is x or t is residual else torch.empty_like(t))
        for t, asked in zip(models, mask, strict=True)
    )
    at_x, at_weight, at_bias, *neighbours = _addresses(inputs)
    norm.plan.backward_with(
        *(at_x, dy.data_ptr(), at_weight, at_bias, mean, rstd, neighbours),
        *(0 if dsum is None else dsum.data_ptr(), _addresses(gradients)),
        *(THREADS, torch.get_num_threads()),
    )
    return gradients


def _require(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> Norm:
    norm = find_norm(see_groups, num_groups, x, weight, bias, eps, activation)
    if norm is None:
        raise ValueError(
            "x: must be [N, C, ...] in float32, float64, float16 or bfloat16, with C a multiple of"
            " num_groups and more than one value to a group; weight, bias: must be [C], in the"
            f" dtype of x or in float32; eps: must not be negative; got x {list(x.shape)} {x.dtype},"
            f" num_groups={num_groups}, eps={eps}"
        )
    return norm


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: y, and mean and rstd [N, G] in float64, whatever the dtype of x."""
    norm = _require(x, weight, bias, num_groups, eps, activation)
    weight, bias = _contiguous(weight, bias)
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.float64)
    rstd = torch.empty_like(mean)
    return forward(norm, x, weight, bias, mean.data_ptr(), rstd.data_ptr()), mean, rstd


def group_norm_backward(
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
    """The operator: dx, dweight and dbias; empty ones where the mask does not ask for them."""
    norm = _require(x, weight, bias, num_groups, eps, activation)
    if dy.shape != x.shape or dy.dtype != x.dtype:
        raise ValueError(
            f"dy: must be as x, {list(x.shape)} {x.dtype}; got {list(dy.shape)} {dy.dtype}"
        )
    blocks = (x.shape[0], num_groups)
    for name, value in (("mean", mean), ("rstd", rstd)):
        if value.shape != blocks or value.dtype != torch.float64:
            raise ValueError(
                f"{name}: must be {list(blocks)} float64; got {list(value.shape)} {value.dtype}"
            )
    weight, bias = _contiguous(weight, bias)
    mean, rstd = mean.contiguous(), rstd.contiguous()
    found = backward(norm, dy, x, weight, bias, mean.data_ptr(), rstd.data_ptr(), mask)
    dx, dweight, dbias = (x.new_empty(0) if g is None else g for g in found)
    return dx, dweight, dbias
