"""group_norm, instance_norm, layer_norm and rms_norm with the signatures of torch.nn.functional.

Each takes keywords more: ``activation``, one of 'none', 'relu', 'silu', 'gelu', 'gelu_tanh' and
'hard_swish', applied before y is stored; and `Neighbours`, what is computed around the norm in the
same pass. What the engine can't take (another device or dtype, a tensor subclass, a function
transform, running statistics) goes to torch.nn.functional, and so does what torch refuses: its
errors are the same.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.compiler import is_compiling
from torch.nn import functional
from torch.nn.parameter import Parameter

from . import _kernels, _override
from ._neighbours import Neighbours, around, chain
from ._ops import ACTIVATIONS, GroupNormFunction, transformed
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

if TYPE_CHECKING:
    from typing_extensions import Unpack

_TENSORS = frozenset((Tensor, Parameter))
_PLAIN = _TENSORS | {type(None)}
_STRIDED = torch.strided
# Where gradients are recorded and torch's operator runs our kernels, so few elements take less time
# by it and torch's activation than by one call with a node in Python (0.9 to 1 of it at [1, 32, 8, 8]).
# Not in 16 bits, which would be rounded twice, and not gelu (1.2 to 2).
_APART_ELEMENTS = 4096
_FAST_APART = ("relu", "silu", "hard_swish")


def activation_name(activation: str | None) -> str:
    """The name of an activation; ValueError where there is none of that name."""
    if activation is None:
        return "none"
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation: must be None or one of {known}; got {activation!r}")
    return activation


def _normalize(
    see: _kernels.See,
    of: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor | None:
    """y of x, seen as _kernels.See tells; None where it is torch's to do, or to refuse.

    A small call waits for every line. Of what is no plain tensor nothing is asked before its type.
    """
    plain = type(x) in _TENSORS and type(weight) in _PLAIN and type(bias) in _PLAIN
    # _ops.traced() and _ops.transformed(), without two calls.
    traced = is_compiling() or dispatch_modes() > 0 or tracing_state() is not None
    if not plain or traced or profiler._is_profiler_enabled:
        return _record(see, of, x, weight, bias, eps, activation)
    if forward_ad._current_level >= 0 or are_transforms_active():
        return None
    # In this order: the shape of a nested tensor and the strides of a sparse one can't be asked for.
    if not x.is_cpu or x.layout is not _STRIDED or x.is_nested:
        return None
    if weight is not None and not (weight.is_cpu and weight.is_contiguous()):
        return None
    if bias is not None and not (bias.is_cpu and bias.is_contiguous()):
        return None
    recorded = torch.is_grad_enabled() and _requires_grad(x, weight, bias)
    if recorded and _override.installed and see is not _kernels.see_rows:
        y = _by_torch(see, of, x, weight, bias, eps, activation)
        if y is not None:
            return y
    norm = _kernels.find_norm(see, of, x, weight, bias, eps, activation)
    if norm is None:
        return None
    if recorded:
        if not norm.dense:
            # The copy is saved, as torch does: whoever changes x later changes no gradient. It has
            # to be a part of the graph, so the function can't make it.
            dense = x.contiguous(memory_format=norm.format)
            return _normalize(see, of, dense, weight, bias, eps, activation)
        y = GroupNormFunction.apply(x, weight, bias, norm)
        return y
    return _kernels.forward(norm, x, weight, bias)


def _by_torch(
    see: _kernels.See,
    of: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor | None:
    """y by torch's operator, with the engine beneath it (_override.py): no node of ours in Python.

    None where that is slower, where torch.nn.functional refuses before it calls the operator, and for
    a bias without a weight, of which torch has no second derivative.
    """
    if weight is None and bias is not None:
        return None
    if activation != "none":
        apart = activation in _FAST_APART and x.dtype is torch.float32
        if not apart or x.numel() > _APART_ELEMENTS:
            return None
    shape, groups, one_each = x.shape, of, of
    if see is _kernels.see_channels:
        if len(shape) < 3:
            return None
        groups, one_each = shape[1], shape[0] * shape[1]
    if len(shape) < 2 or groups < 1 or shape[1] % groups != 0 or x.numel() == one_each:
        return None
    y = torch.group_norm(x, groups, weight, bias, eps, False)
    return y if activation == "none" else ACTIVATIONS[activation](y)


def _requires_grad(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    return (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )


def _record(
    see: _kernels.See,
    of: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor | None:
    """The operator, for who sees operators only; None for ONNX and other subclasses of Tensor."""
    if torch.onnx.is_in_onnx_export() or (not OPERATORS_KEEP_TANGENTS and transformed()):
        return None
    for t in (x, weight, bias):
        if type(t) not in _PLAIN and not isinstance(t, TRACED):
            return None
        if t is not None and (not t.is_cpu or t.layout is not _STRIDED or t.is_nested):
            return None
    if x is None:
        return None
    kinds = [None if p is None else (p.shape, p.dtype) for p in (weight, bias)]
    seen = see(x.shape, of)
    if seen is None or not _kernels.takes(seen, eps, x.dtype, *kinds, known=is_known):
        return None
    run = torch.ops.groupnorm.group_norm
    if see is not _kernels.see_rows:
        y: Tensor = run(x, weight, bias, seen.groups, eps, activation)[0]
        return y
    rows = x.reshape(-1, seen.c)
    params = (p if p is None else p.reshape(-1) for p in (weight, bias))
    # y is not to be a view: those can't be changed in place in every mode.
    return unsafe_view(run(rows, *params, 1, eps, activation)[0], x.shape)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> Any:
    """Group normalization (Wu & He, arXiv:1803.08494), as torch.nn.functional.group_norm.

    Args:
        input: [N, C, ...] in float32, float64, float16 or bfloat16; copied where it is neither
            contiguous nor channels_last.
        num_groups: divides C.
        weight: [C], in the dtype of input, or float32 beside the 16-bit ones; None: 1.
        bias: as weight; None: 0.
        eps: added to the variance.
        activation: applied to the result before it is stored.
        neighbours: skip, shift, residual, scale_shift, lengths and return_sum; see Neighbours.

    Returns:
        y of the shape and dtype of input, in the memory format that torch suggests for it; or
        (y, sum) with return_sum.

    Raises:
        TypeError: a neighbour is of the wrong type.
        ValueError: activation is unknown, or a neighbour has the wrong shape or value; else what
            torch.nn.functional.group_norm raises.
    """
    act = "none" if activation is None else activation_name(activation)
    if neighbours:
        see = _kernels.see_groups
        return around(see, num_groups, input, weight, bias, eps, act, **neighbours)
    y = _normalize(_kernels.see_groups, num_groups, input, weight, bias, eps, act)
    if y is not None:
        return y
    return ACTIVATIONS[act](functional.group_norm(input, num_groups, weight, bias, eps))


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> Any:
    """Instance normalization (Ulyanov et al., arXiv:1607.08022), as torch's.

    Args:
        input: [N, C, L...] in float32, float64, float16 or bfloat16.
        running_mean: torch's own instance_norm does the work where running statistics are given.
        running_var: as running_mean.
        weight: [C] or None.
        bias: [C] or None.
        use_input_stats: False takes the running statistics.
        momentum: of the running statistics.
        eps: added to the variance.
        activation: applied to the result before it is stored.
        neighbours: skip, shift, residual, scale_shift, lengths and return_sum; see Neighbours.

    Returns:
        y of the shape and dtype of input, in the memory format that torch suggests for it (torch's
        own is contiguous); or (y, sum) with return_sum.

    Raises:
        TypeError: a neighbour is of the wrong type.
        ValueError: activation is unknown, a neighbour has the wrong shape or value, or there are
            lengths and running statistics; else what torch.nn.functional.instance_norm raises.
    """
    act = activation_name(activation)
    own_statistics = use_input_stats and running_mean is None and running_var is None
    if neighbours:
        see = _kernels.see_channels
        if own_statistics:
            return around(see, None, input, weight, bias, eps, act, **neighbours)
        running = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
        return chain(
            lambda u: functional.instance_norm(u, *running), see, None, input, act, **neighbours
        )
    if own_statistics:
        y = _normalize(_kernels.see_channels, None, input, weight, bias, eps, act)
        if y is not None:
            return y
    y = functional.instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )
    return ACTIVATIONS[act](y)


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> Any:
    """Layer normalization (Ba et al., arXiv:1607.06450), as torch.nn.functional.layer_norm.

    Args:
        input: [..., *normalized_shape] in float32, float64, float16 or bfloat16.
        normalized_shape: the sizes that share one mean and one variance.
        weight: of normalized_shape, or None.
        bias: of normalized_shape, or None.
        eps: added to the variance.
        activation: applied to the result before it is stored.
        neighbours: skip, shift, residual, scale_shift, lengths and return_sum; see Neighbours.

    Returns:
        y of the shape and dtype of input, contiguous; or (y, sum) with return_sum.

    Raises:
        TypeError: a neighbour is of the wrong type.
        ValueError: activation is unknown, or a neighbour has the wrong shape or value; else what
            torch.nn.functional.layer_norm raises.
    """
    act = activation_name(activation)
    shape = tuple(normalized_shape)
    if neighbours:
        return around(_kernels.see_rows, shape, input, weight, bias, eps, act, **neighbours)
    y = _normalize(_kernels.see_rows, shape, input, weight, bias, eps, act)
    if y is not None:
        return y
    return ACTIVATIONS[act](functional.layer_norm(input, shape, weight, bias, eps))


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> Any:
    """RMS normalization (Zhang & Sennrich, arXiv:1910.07467), as torch.nn.functional.rms_norm.

    Args:
        input: [..., *normalized_shape] in float32, float64, float16 or bfloat16.
        normalized_shape: the sizes that share one mean square.
        weight: of normalized_shape, or None.
        eps: added to the mean square. None: torch.finfo(torch.float32).eps, of float64 its own.
        activation: applied to the result before it is stored.
        neighbours: skip, shift, residual, scale_shift, lengths and return_sum; see Neighbours.

    Returns:
        y of the shape and dtype of input, contiguous; or (y, sum) with return_sum.

    Raises:
        TypeError: a neighbour is of the wrong type.
        ValueError: activation is unknown, or a neighbour has the wrong shape or value; else what
            torch.nn.functional.rms_norm raises.
    """
    act = activation_name(activation)
    if eps is None and not isinstance(input, fx.Proxy):
        wide = torch.float64 if input.dtype is torch.float64 else torch.float32
        eps = torch.finfo(wide).eps
    see, shape = _kernels.see_rows, tuple(normalized_shape)
    return around(see, shape, input, weight, None, eps, act, center=False, **neighbours)
