"""What the tests of neighbours share: the chain in torch's float64, its gradients, and bounds.

Bounds are those of docs/numerics.md: 3 units of y, 4 of gradients, each one eps of the sum of the
absolute terms; and half a step of the result's dtype, for it is rounded once.
"""

from dataclasses import dataclass, field
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F

EPS = {torch.float64: 2.0**-52}  # of the type that computes; else
EPS32 = 2.0**-23
# The largest error of rounding once: relative, and of the smallest numbers.
HALF_STEP = {
    torch.float16: (2.0**-11, 2.0**-25),
    torch.bfloat16: (2.0**-8, 2.0**-134),
    torch.float32: (2.0**-24, 2.0**-150),
}
ACTIVATIONS = {
    None: lambda z: z,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "hard_swish": F.hardswish,
}
SLOPE = {None: 1, "relu": 1, "silu": 1.1, "gelu": 1.13, "gelu_tanh": 1.13, "hard_swish": 1.5}
ROWS = ("layer", "rms")


@dataclass
class Exact:
    """Results in float64 by name, and the bounds of their errors."""

    values: dict = field(default_factory=dict)
    bounds: dict = field(default_factory=dict)

    def check(self, name, found, wanted=None):
        """found is of the values by that name, but for the bound."""
        value, bound = self.values[name], self.bounds[name]
        assert found.shape == value.shape, name
        relative, absolute = HALF_STEP.get(found.dtype, (0, 0))
        bound = bound + relative * value.abs() + absolute
        error = (found.detach().double() - value).abs()
        error = torch.where(torch.isfinite(error), error, torch.inf)
        over = (error > bound).reshape(-1).nonzero()
        if len(over):
            at = int(over[0])
            raise AssertionError(
                f"{name}: index {at} of {tuple(value.shape)}: "
                f"{found.reshape(-1)[at].item()} in place of {value.reshape(-1)[at].item()}, "
                f"{(error / bound).max().item()} of the bound"
            )


def expand(norm, t, x):
    """One for each example and channel, as it broadcasts with x."""
    if t.dim() == 2 and x.dim() > 2:
        middle = (1,) * (x.dim() - 2)
        return (
            t.reshape(t.shape[0], *middle, t.shape[1])
            if norm in ROWS
            else t.reshape(*t.shape, *middle)
        )
    return t


def _blocks(norm, u, groups, axes):
    """u with one block in the last axis."""
    if norm in ROWS:
        return u.flatten(-axes)
    if norm == "batch":
        return u.transpose(0, 1).flatten(1)
    groups = u.shape[1] if norm == "instance" else groups
    return u.reshape(u.shape[0], groups, -1)


def _back(norm, blocks, like):
    if norm == "batch":
        moved = like.transpose(0, 1)
        return blocks.reshape(moved.shape).transpose(0, 1)
    return blocks.reshape(like.shape)


def _standardize(norm, u, groups, axes, eps):
    """uhat, and rstd for each element."""
    blocks = _blocks(norm, u, groups, axes)
    centred = blocks if norm == "rms" else blocks - blocks.mean(-1, keepdim=True)
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return tuple(_back(norm, t, u) for t in (centred * rstd, rstd.expand(blocks.shape)))


def _cut(norm, u, lengths, standardize):
    """standardize of each example by itself, of so many positions or rows; 0 behind them."""
    axis = 0 if norm in ROWS else 1
    uhats, rstds = [], []
    for example, length in zip(u, lengths, strict=True):
        piece = example.narrow(axis, 0, length).unsqueeze(0)
        rest = list(example.shape)
        rest[axis] -= length
        parts = standardize(piece) if length else (piece, piece)
        for part, out in zip(parts, (uhats, rstds), strict=True):
            out.append(torch.cat([part.squeeze(0), part.new_zeros(rest)], axis))
    return torch.stack(uhats), torch.stack(rstds)


def exact(
    norm,
    tensors,
    *,
    groups=2,
    axes=1,
    eps=1e-5,
    activation=None,
    lengths=None,
    dtype=None,
    dy=None,
    dsum=None,
):
    """y and sum, and with dy or dsum the gradients, by the names of tensors.

    tensors: x, weight, bias, skip, shift, residual, scale, offset, those that are there. dtype: of
    x, if the tensors are wider. u is formed as the engine does, in float32 or float64.
    """
    given = {name: t.detach() for name, t in tensors.items() if t is not None}
    dtype = dtype or given["x"].dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    eps_ = EPS.get(dtype, EPS32)
    leaves = {name: t.double().requires_grad_() for name, t in given.items()}
    x = leaves["x"]
    formed, u = given["x"].to(wide), x
    for name in ("skip", "shift"):
        if name in leaves:
            formed = formed + expand(norm, given[name], x).to(wide)
            u = u + expand(norm, leaves[name], x)
    u = u + (formed.double() - u).detach()
    valid = None
    if lengths is not None:
        axis = 1 if norm in ROWS else x.dim() - 1
        shape = [x.shape[0]] + [1] * (x.dim() - 1)
        along = torch.arange(x.shape[axis]).reshape(
            [-1 if i == axis else 1 for i in range(x.dim())]
        )
        valid = (along < torch.tensor(lengths).reshape(shape)).expand(x.shape)
        u = torch.where(valid, u, 0)
    standardize = partial(_standardize, norm, groups=groups, axes=axes, eps=eps)
    uhat, rstd = standardize(u) if valid is None else _cut(norm, u, lengths, standardize)
    one, zero = torch.ones(()).double(), torch.zeros(()).double()
    column = (-1, *(1,) * (x.dim() - 2))
    weight, bias = (
        other
        if name not in leaves
        else leaves[name]
        if norm in ROWS
        else leaves[name].reshape(column)
        for name, other in (("weight", one), ("bias", zero))
    )
    scale, offset = (
        zero if name not in leaves else expand(norm, leaves[name], x)
        for name in ("scale", "offset")
    )
    residual = leaves.get("residual", zero)
    z = (uhat * weight + bias) * (1 + scale) + offset + residual
    if valid is not None:
        z = torch.where(valid, z, 0)
    y = ACTIVATIONS[activation](z)
    gamma = (weight * (1 + scale)).abs()
    unit = 1 + gamma * uhat.abs() + (bias * (1 + scale)).abs() + offset.abs() + residual.abs()
    result = Exact({"y": y.detach(), "sum": u.detach()})
    factor = 16 if dtype == torch.float64 else 3  # the oracle's own roundings count there
    result.bounds["y"] = (factor * SLOPE[activation] * eps_ * unit).detach()
    result.bounds["sum"] = torch.zeros_like(u)
    if dy is None and dsum is None:
        return result

    dy = torch.zeros_like(x) if dy is None else dy.double()
    outputs, given_gradients = [y], [dy]
    if dsum is not None:
        outputs.append(u)
        given_gradients.append(dsum.double())
    found = torch.autograd.grad(outputs, [*leaves.values(), z], given_gradients, allow_unused=True)
    *gradients, dz = found
    result.values |= {
        f"d{name}": torch.zeros_like(leaves[name]) if g is None else g
        for name, g in zip(leaves, gradients, strict=True)
    }
    with torch.no_grad():
        factor = 16 if dtype == torch.float64 else 4
        terms = dz.abs() + dy.abs() * unit * (0 if activation in (None, "relu") else 1)
        terms = terms if valid is None else torch.where(valid, terms, 0)

        def over_blocks(t):
            blocks = _blocks(norm, t, groups, axes)
            return _back(norm, blocks.mean(-1, keepdim=True).expand(blocks.shape), t)

        def largest(t):
            blocks = _blocks(norm, t, groups, axes)
            return _back(norm, blocks.amax(-1, keepdim=True).expand(blocks.shape), t)

        mean_terms = over_blocks(gamma * terms)
        mean_products = over_blocks(gamma * terms * uhat.abs())
        if valid is not None:  # means over what is valid
            share = over_blocks(valid.double()).clamp(min=1e-300)
            mean_terms, mean_products = mean_terms / share, mean_products / share
        at_x = rstd * (gamma * terms + mean_terms + uhat.abs() * mean_products)
        at_x = largest(at_x) + (0 if dsum is None else dsum.double().abs())
        full = {
            "x": at_x,
            "skip": at_x,
            "shift": at_x,
            "residual": terms,
            "weight": terms * uhat.abs() * (1 + scale).abs(),
            "bias": terms * (1 + scale).abs(),
            "scale": terms * ((weight * uhat).abs() + bias.abs()),
            "offset": terms,
        }
        for name, leaf in leaves.items():
            t = full[name].expand(x.shape)
            shape = (
                leaf.reshape(column).shape
                if name in ("weight", "bias") and norm not in ROWS
                else (expand(norm, leaf, x).shape)
            )
            result.bounds[f"d{name}"] = factor * eps_ * t.sum_to_size(shape).reshape(leaf.shape)
    return result
