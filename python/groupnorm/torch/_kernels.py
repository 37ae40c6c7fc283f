"""The engine on plain CPU tensors: no autograd, no dispatcher."""

import ctypes
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _core
from .._engine import POOL

DTYPES = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
}


def _torch_threads() -> _core.Threads:
    """The workers of torch's OpenMP, so that two pools never fight for the same cores.

    A symbol of libtorch_cpu is looked for in what it depends on: so this is the runtime that torch
    itself uses. Where torch has none (macOS, Windows), the engine's pool runs as many threads.
    """
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "omp_in_parallel")
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOLOAD)
        addresses = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in names]
    except (AttributeError, OSError):
        return POOL
    return _core.Threads.openmp(*(address or 0 for address in addresses))


THREADS = _torch_threads()


def layout(x: Tensor) -> str | None:
    """How x lies in memory, as the engine calls it; None where it has to be copied first."""
    if x.is_contiguous():
        return "channels_first"
    if x.dim() > 2 and x.movedim(1, -1).is_contiguous():
        return "channels_last"
    return None


def dense(x: Tensor) -> Tensor:
    """x, or a contiguous copy where the engine can't take its strides."""
    return x if layout(x) is not None else x.contiguous()


def _like(x: Tensor, other: Tensor) -> Tensor:
    """other with the strides of x, which is dense."""
    if other.stride() == x.stride() or (x.is_contiguous() and other.is_contiguous()):
        return other
    return torch.empty_like(x).copy_(other)


def divides(num_groups: int, shape: torch.Size) -> bool:
    """Whether shape is [N, C, ...] and C are so many groups."""
    return len(shape) >= 2 and num_groups > 0 and shape[1] % num_groups == 0


def fits(channels: int, dtype: torch.dtype, *params: tuple[torch.Size, torch.dtype] | None) -> bool:
    """Whether the engine has the dtypes, and the parameters are vectors of one a channel."""
    there = [p for p in params if p is not None]
    if dtype not in DTYPES:
        return False
    for shape, param in there:
        narrow = param is torch.float32 and dtype.itemsize == 2
        if param is not there[0][1] or not (param is dtype or narrow):
            return False
        if len(shape) != 1 or shape[0] != channels:
            return False
    return True


class Norm(NamedTuple):
    """What the calls of one kind have in common."""

    plan: _core.Plan
    settings: tuple[int, float, str]  # num_groups, eps, activation


@functools.lru_cache(maxsize=1024)
def _find_norm(
    shape: torch.Size,
    memory: str,
    dtype: torch.dtype,
    weight: tuple[torch.Size, torch.dtype] | None,
    bias: tuple[torch.Size, torch.dtype] | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> Norm | None:
    if not divides(num_groups, shape):
        return None
    n, c, *spatial = shape
    if eps < 0 or not fits(c, dtype, weight, bias):
        return None
    data = DTYPES[dtype]
    param = weight or bias
    plan = _core.Plan(
        n,
        c,
        math.prod(spatial),
        1,
        c // num_groups,
        memory,
        data,
        DTYPES[param[1]] if param else data,
        activation,
        eps,
    )
    return Norm(plan, (num_groups, eps, activation))


def find_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> Norm | None:
    """Of a dense x; None where the engine can't take the groups, dtypes or parameters."""
    return _find_norm(
        x.shape,
        "channels_first" if x.is_contiguous() else "channels_last",
        x.dtype,
        None if weight is None else (weight.shape, weight.dtype),
        None if bias is None else (bias.shape, bias.dtype),
        num_groups,
        eps,
        activation,
    )


def _plan(*args: Any) -> _core.Plan:
    norm = find_norm(*args)
    if norm is None:
        raise ValueError(
            "num_groups must divide C; weight, bias: must be [C], in the dtype of x or in float32"
        )
    return norm.plan


def forward(
    plan: _core.Plan,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: int = 0,
    rstd: int = 0,
) -> Tensor:
    """y, with the strides of x, which is dense; mean and rstd are addresses, 0 for neither."""
    y = torch.empty_like(x)
    plan.forward(
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
    plan: _core.Plan,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: int,
    rstd: int,
    mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight and dbias, None where the mask does not ask for them; x is dense."""
    dy = _like(x, dy)
    dx = torch.empty_like(x) if mask[0] else None
    dweight = torch.empty_like(weight) if mask[1] and weight is not None else None
    dbias = torch.empty_like(bias) if mask[2] and bias is not None else None
    plan.backward(
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


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: y, and mean and rstd [N, G] in float64, whatever the dtype of x."""
    x = dense(x)
    mean = x.new_empty((x.shape[0], num_groups), dtype=torch.float64)
    rstd = torch.empty_like(mean)
    plan = _plan(x, weight, bias, num_groups, eps, activation)
    return forward(plan, x, weight, bias, mean.data_ptr(), rstd.data_ptr()), mean, rstd


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
    x = dense(x)
    plan = _plan(x, weight, bias, num_groups, eps, activation)
    found = backward(plan, dy, x, weight, bias, mean.data_ptr(), rstd.data_ptr(), mask)
    dx, dweight, dbias = (x.new_empty(0) if g is None else g for g in found)
    return dx, dweight, dbias
