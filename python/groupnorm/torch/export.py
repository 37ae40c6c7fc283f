"""The operator in torch's own ones, for torch.onnx.export of a program that has it.

torch.onnx.export of a module meets torch's functions in the first place (functional.py). This is
for what torch.export has made of one before.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ._ops import ACTIVATIONS, fake_group_norm
from ._private import register_decomposition

# Where sizes are symbols, fake tensors would take the decomposition below, which has other strides and
# guards than the operator, unless there is a meta function.
register_decomposition(torch.ops.groupnorm.group_norm.default, type="meta")(fake_group_norm)


@register_decomposition(torch.ops.groupnorm.group_norm.default)
def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and rstd of the operator; parameters of another dtype are cast to that of x."""
    weight, bias = (p if p is None else p.to(x.dtype) for p in (weight, bias))
    if num_groups == 1 and x.dim() == 2:
        z = functional.layer_norm(x, x.shape[1:], weight, bias, eps)
    elif num_groups == x.shape[1]:
        z = functional.instance_norm(x, weight=weight, bias=bias, eps=eps)
    else:
        z = functional.group_norm(x, num_groups, weight, bias, eps)
    m = math.prod(x.shape[1:]) // num_groups  # sizes may be symbols
    groups = x.double().reshape(x.shape[0], num_groups, m)
    var, mean = torch.var_mean(groups, -1, correction=0)
    return ACTIVATIONS[activation](z), mean, torch.rsqrt(var + eps)
