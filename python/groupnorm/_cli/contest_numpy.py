"""groupnorm, plain NumPy and the copy, on arrays of NumPy."""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import groupnorm

from . import oracle
from .command import BadInput, require
from .contest import COPY, OURS, Arena, Case, Setting, sets_of

Array = npt.NDArray[Any]

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "gelu_tanh": lambda z: z / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "hard_swish": lambda z: z * np.clip(z + 3, 0, 6) / 6,
}

_LINE = 64


def _dtype(setting: Setting) -> np.dtype[Any]:
    if setting.dtype == "bf16":
        named = require("ml_dtypes", "test", "--dtype bf16 --api numpy").bfloat16
    else:
        named = {"f32": "float32", "f16": "float16"}[setting.dtype]
    dtype: np.dtype[Any] = np.dtype(named)
    return dtype


def _channels_first(array: Array, layout: str) -> Array:
    return np.moveaxis(array, -1, 1) if layout == "channels_last" else array


def _plain(x: Array, case: Case, setting: Setting, gamma: Array, beta: Array) -> Array:
    """Group normalization as NumPy's users write it."""
    n, c = case.shape[:2]
    groups = case.groups
    if setting.layout == "channels_last":
        blocks, axes = x.reshape(n, -1, groups, c // groups), (1, 3)
    else:
        blocks, axes = x.reshape(n, groups, c // groups, -1), (2, 3)
        gamma, beta = (param.reshape(c, *[1] * (x.ndim - 2)) for param in (gamma, beta))
    mean, var = blocks.mean(axes, keepdims=True), blocks.var(axes, keepdims=True)
    xhat = ((blocks - mean) / np.sqrt(var + setting.eps)).reshape(x.shape)
    return _ACTIVATIONS[setting.activation](xhat * gamma + beta).astype(x.dtype, copy=False)


def _errors(
    case: Case,
    setting: Setting,
    x: Array,
    gamma: Array,
    beta: Array,
    results: Mapping[str, Array],
) -> dict[str, float]:
    worst = dict.fromkeys(results, 0.0)
    n, c = case.shape[:2]
    size = c // case.groups

    def group(array: Array, i: int, part: slice) -> oracle.Float64:
        chosen = _channels_first(array, setting.layout)[i, part]
        return chosen.astype(np.float64).reshape(size, -1)

    for i in range(n):
        for lo in range(0, c, size):
            part = slice(lo, lo + size)
            y, unit = oracle.forward(
                group(x, i, part),
                gamma[part].astype(np.float64),
                beta[part].astype(np.float64),
                setting.eps,
                _ACTIVATIONS[setting.activation],
            )
            for name, result in results.items():
                error = np.max(np.abs(group(result, i, part) - y) / unit)
                worst[name] = float(np.maximum(worst[name], error))
    return {name: error / oracle.EPS[setting.dtype] for name, error in worst.items()}


def require_measurable(setting: Setting) -> None:
    """Refuses what there is no plain NumPy for."""
    if setting.backward:
        raise BadInput("--backward: needs torch; NumPy differentiates nothing to compare with")
    if setting.activation == "gelu":
        raise BadInput("--activation gelu: needs torch; NumPy has no erf to compare with")
    _dtype(setting)


def arena(case: Case, setting: Setting) -> Arena:
    """The contestants of a case."""
    dtype = _dtype(setting)
    n, c, *space = case.shape
    shape = (n, *space, c) if setting.layout == "channels_last" else case.shape
    elements = math.prod(shape)
    tensor_bytes = elements * dtype.itemsize
    draw = np.random.default_rng(1)

    def normal(size: int, mean: float = 0, deviation: float = 1) -> Array:
        values = draw.standard_normal(size, dtype=np.float32)
        return (mean + deviation * values).astype(dtype)

    gamma, beta, x = normal(c, 1, 0.5), normal(c), normal(elements, 1)
    stride = -(-tensor_bytes // _LINE) * _LINE // dtype.itemsize
    memory = np.empty((sets_of(2 * tensor_bytes, setting.hot), stride), dtype)
    memory[:, :elements] = x
    sets = [row[:elements].reshape(shape) for row in memory]

    def ours(x: Array) -> Any:
        return groupnorm.group_norm(
            x,
            case.groups,
            gamma,
            beta,
            setting.eps,
            activation=setting.activation,
            layout=setting.layout,
        )

    return Arena(
        sets=sets,
        params=(gamma, beta),
        calls={
            OURS: ours,
            "numpy": lambda x: _plain(x, case, setting, gamma, beta),
            COPY: lambda x: x.copy(),
        },
        errors=lambda results: _errors(case, setting, sets[0], gamma, beta, results),
        bound=oracle.forward_bound(setting.activation),
        context=contextlib.nullcontext,
        bytes_moved=2 * tensor_bytes,
        absent=(),
    )
