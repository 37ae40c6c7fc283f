"""groupnorm.torch, torch, torch.compile and the copy, on tensors of torch."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..torch import functional as ours
from ..torch._ops import ACTIVATIONS
from . import oracle
from .contest import COPY, OURS, Arena, Case, Setting, sets_of

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

_LINE = 64  # bytes, at a multiple of which a tensor begins

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def _shaped(flat: Tensor, case: Case, layout: str) -> Tensor:
    n, c, *space = case.shape
    if layout == "channels_last":
        return flat.view(n, *space, c).movedim(-1, 1)
    return flat.view(case.shape)


class _Data:
    """The tensors of a case: x, dy, gamma, beta, and as many copies of x and dy as it takes."""

    def __init__(self, case: Case, setting: Setting, sets: int) -> None:
        draw = torch.Generator().manual_seed(1)
        dtype = _DTYPES[setting.dtype]
        elements, c = math.prod(case.shape), case.shape[1]
        stride = -(-elements * dtype.itemsize // _LINE) * _LINE // dtype.itemsize

        def normal(*sizes: int, mean: float = 0, deviation: float = 1) -> Tensor:
            values = torch.empty(sizes).normal_(mean, deviation, generator=draw)
            return values.to(dtype)

        def copies(values: Tensor) -> list[Tensor]:
            memory = torch.empty((sets, stride), dtype=dtype)
            memory[:, :elements] = values
            return [_shaped(memory[i, :elements], case, setting.layout) for i in range(sets)]

        self.gamma, self.beta = normal(c, mean=1, deviation=0.5), normal(c)
        self.x = copies(normal(elements, mean=1))
        self.dy = copies(normal(elements)) if setting.backward else []
        if setting.backward:
            for tensor in (self.gamma, self.beta, *self.x):
                tensor.requires_grad_()


def _functions(case: Case, setting: Setting) -> tuple[Function, Function]:
    """Ours and torch's."""
    groups, eps, activation = case.groups, setting.eps, setting.activation
    activate = ACTIVATIONS[activation]

    def call_ours(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return ours.group_norm(x, groups, gamma, beta, eps, activation=activation)

    def call_torch(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return activate(functional.group_norm(x, groups, gamma, beta, eps))

    return call_ours, call_torch


def _call(function: Function, data: _Data, backward: bool) -> Callable[[Any], Any]:
    gamma, beta = data.gamma, data.beta
    if not backward:
        return lambda x: function(x, gamma, beta)

    def both(tensors: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        x, dy = tensors
        return torch.autograd.grad(function(x, gamma, beta), (x, gamma, beta), dy)

    return both


def _copy(tensors: Any) -> Any:
    return tensors.clone()


def _copy_both(tensors: tuple[Tensor, Tensor]) -> Any:
    # x to y; then x and dy to dx: 5 tensors are read or written, that is 2.5 copied.
    x, dy = (tensor.detach() for tensor in tensors)
    half = x.as_strided((x.numel() // 2,), (1,), x.storage_offset())
    return x.clone(), dy.clone(), half.clone()


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().reshape(tensor.shape[0], -1)


def _forward_errors(
    case: Case, setting: Setting, data: _Data, results: Mapping[str, Tensor]
) -> dict[str, float]:
    worst = dict.fromkeys(results, 0.0)
    size = case.shape[1] // case.groups
    gamma, beta = data.gamma.double().numpy(), data.beta.double().numpy()

    def activate(z: oracle.Float64) -> oracle.Float64:
        y: oracle.Float64 = ACTIVATIONS[setting.activation](torch.from_numpy(z)).numpy()
        return y

    for n in range(case.shape[0]):
        for lo in range(0, case.shape[1], size):
            part = slice(lo, lo + size)
            x = _double(data.x[0][n, part]).numpy()
            y, unit = oracle.forward(x, gamma[part], beta[part], setting.eps, activate)
            for name, result in results.items():
                error = np.max(np.abs(_double(result[n, part]).numpy() - y) / unit)
                worst[name] = float(np.maximum(worst[name], error))  # a NaN stays
    return {name: error / oracle.EPS[setting.dtype] for name, error in worst.items()}


def _gradients(
    x: Tensor, dy: Tensor, gamma: Tensor, beta: Tensor, setting: Setting
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """dx, dgamma, dbeta of one group in float64, by autograd; and their units, without eps."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, gamma, beta)]
    with torch.enable_grad():
        centred = leaves[0] - leaves[0].mean()
        rstd = (centred.square().mean() + setting.eps).rsqrt()
        xhat = centred * rstd
        z = xhat * leaves[1][:, None] + leaves[2][:, None]
        y = ACTIVATIONS[setting.activation](z)
        *exact, dz = torch.autograd.grad(y, (*leaves, z), dy)
    scaled, terms = dz * gamma[:, None], dz * xhat
    dx_terms = scaled.abs() + scaled.mean().abs() + (xhat * (scaled * xhat).mean()).abs()
    units = (rstd * dx_terms).max(), terms.abs().sum(1), dz.abs().sum(1)
    return tuple(exact), tuple(unit.detach() for unit in units)


def _backward_errors(
    case: Case, setting: Setting, data: _Data, results: Mapping[str, tuple[Tensor, ...]]
) -> dict[str, float]:
    worst = dict.fromkeys(results, 0.0)
    size = case.shape[1] // case.groups
    gamma, beta = data.gamma.detach().double(), data.beta.detach().double()
    sums = torch.zeros(2, case.shape[1], dtype=torch.float64)
    sum_units = torch.zeros_like(sums)
    for n in range(case.shape[0]):
        for lo in range(0, case.shape[1], size):
            part = slice(lo, lo + size)
            x, dy = _double(data.x[0][n, part]), _double(data.dy[0][n, part])
            exact, units = _gradients(x, dy, gamma[part], beta[part], setting)
            sums[:, part] += torch.stack(exact[1:])
            sum_units[:, part] += torch.stack(units[1:])
            for name, (dx, *_) in results.items():
                error = (_double(dx[n, part]) - exact[0]).abs().max() / units[0]
                worst[name] = float(np.maximum(worst[name], error.item()))
    tiny = torch.finfo(torch.float64).tiny  # a channel that relu has closed has no terms
    for name, (_, *grads) in results.items():
        found = torch.stack(grads).double()
        error = ((found - sums).abs() / sum_units.clamp(min=tiny)).max()
        worst[name] = float(np.maximum(worst[name], error.item()))
    return {name: error / oracle.EPS[setting.dtype] for name, error in worst.items()}


def arena(case: Case, setting: Setting) -> Arena:
    """The contestants of a case."""
    tensor_bytes = math.prod(case.shape) * _DTYPES[setting.dtype].itemsize
    tensors = 5 if setting.backward else 2  # read or written by a call
    sets = sets_of(tensor_bytes * (3 if setting.backward else 2), setting.hot)
    data = _Data(case, setting, sets)
    functions = dict(zip((OURS, "torch"), _functions(case, setting), strict=True))
    slots: list[Any] = list(zip(data.x, data.dy, strict=True)) if setting.backward else data.x
    context = torch.enable_grad if setting.backward else torch.no_grad
    absent = []
    if setting.compile:
        torch._dynamo.reset()  # else it would give up after so many shapes
        functions["compile"] = torch.compile(functions["torch"], fullgraph=True, dynamic=False)
    calls = {name: _call(each, data, setting.backward) for name, each in functions.items()}
    for name in ("torch", "compile"):
        if name not in calls:
            continue
        try:
            with context():
                calls[name](slots[0])
        except RuntimeError as error:  # a dtype it does not have, no compiler
            del calls[name]
            absent.append(f"{name} cannot: {str(error).strip().partition(chr(10))[0]}")
    calls[COPY] = _copy_both if setting.backward else _copy
    errors: Callable[[Mapping[str, Any]], dict[str, float]] = functools.partial(
        _backward_errors if setting.backward else _forward_errors, case, setting, data
    )
    return Arena(
        sets=slots,
        params=(data.gamma, data.beta),
        calls=calls,
        errors=errors,
        bound=oracle.BACKWARD_BOUND
        if setting.backward
        else oracle.forward_bound(setting.activation),
        context=context,
        bytes_moved=tensors * tensor_bytes,
        absent=tuple(absent),
    )
