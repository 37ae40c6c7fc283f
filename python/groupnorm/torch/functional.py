"""group_norm, instance_norm and layer_norm with the signatures of torch.nn.functional.

Each takes one keyword more: ``activation``, one of 'none', 'relu', 'silu', 'gelu', 'gelu_tanh' and
'hard_swish', applied before y is stored. What the engine can't take (another device or dtype, a
tensor subclass, a function transform, running statistics) goes to torch.nn.functional, and so does
what torch refuses: its errors are the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import functional
from torch.nn.parameter import Parameter

from . import _kernels
from ._ops import ACTIVATIONS, GroupNormFunction

_PLAIN = frozenset((Tensor, Parameter, type(None)))
_TRACED = (FakeTensor, FunctionalTensor)
_STRIDED = torch.strided


def activation_name(activation: str | None) -> str:
    """The name of an activation; ValueError where there is none of that name."""
    if activation is None:
        return "none"
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation: must be None or one of {known}; got {activation!r}")
    return activation


def _normalize(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor | None:
    """y of x [N, C, ...]; None where the engine can't take it. A small call waits for every line."""
    plain = type(x) in _PLAIN and type(weight) in _PLAIN and type(bias) in _PLAIN
    traced = is_compiling() or _len_torch_dispatch_stack() > 0 or _get_tracing_state() is not None
    if not plain or traced:
        return _record(x, num_groups, weight, bias, eps, activation)
    # In this order: the strides of a sparse tensor can't be asked for.
    if not x.is_cpu or x.layout is not _STRIDED or forward_ad._current_level >= 0:
        return None
    if weight is not None and not (weight.is_cpu and weight.is_contiguous()):
        return None
    if bias is not None and not (bias.is_cpu and bias.is_contiguous()):
        return None
    if _are_functorch_transforms_active():
        return None
    if not x.is_contiguous():
        # So is none that is negated lazily, the imaginary part of a conjugate; its copy is not.
        x = _kernels.dense(x)
    norm = _kernels.find_norm(x, weight, bias, num_groups, eps, activation)
    if norm is None:
        return None
    if torch.is_grad_enabled() and _requires_grad(x, weight, bias):
        y: Tensor = GroupNormFunction.apply(x, weight, bias, norm)
        return y
    return _kernels.forward(norm.plan, x, weight, bias)


def _requires_grad(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    return (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )


def _record(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> Tensor | None:
    """The operator, for who sees operators only; None for ONNX and other subclasses of Tensor."""
    if torch.onnx.is_in_onnx_export() or not _kernels.divides(num_groups, x.shape):
        return None
    params = [p for p in (weight, bias) if p is not None]
    for t in (x, *params):
        known = type(t) in _PLAIN or isinstance(t, _TRACED)
        if not known or not t.is_cpu or t.layout is not torch.strided:
            return None
    kinds = [(p.shape, p.dtype) for p in params]
    if eps < 0 or not _kernels.fits(x.shape[1], x.dtype, *kinds):
        return None
    weight, bias = (p if p is None else p.contiguous() for p in (weight, bias))
    y: Tensor = torch.ops.groupnorm.group_norm(x, weight, bias, num_groups, eps, activation)[0]
    return y


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    """Group normalization (Wu & He, arXiv:1803.08494), as torch.nn.functional.group_norm.

    Args:
        input: [N, C, ...] in float32, float64, float16 or bfloat16, contiguous or channels_last.
        num_groups: divides C.
        weight: [C], in the dtype of input, or float32 beside the 16-bit ones; None: 1.
        bias: as weight; None: 0.
        eps: added to the variance.
        activation: applied to the result before it is stored.

    Returns:
        y of the shape, dtype and memory format of input.

    Raises:
        As torch.nn.functional.group_norm; ValueError for an unknown activation.
    """
    act = "none" if activation is None else activation_name(activation)
    # One element a group has no variance: torch refuses it, if the batch is of one example.
    if input.numel() != num_groups:
        y = _normalize(input, num_groups, weight, bias, eps, act)
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
) -> Tensor:
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

    Returns:
        y of the shape, dtype and memory format of input.

    Raises:
        As torch.nn.functional.instance_norm; ValueError for an unknown activation.
    """
    act = activation_name(activation)
    computed = use_input_stats and running_mean is None and running_var is None
    # One position has no variance: torch refuses it.
    positions = input.shape[2:].numel() if input.dim() > 2 else 0
    if computed and positions != 1 and input.dim() > 2 and input.shape[1] > 0:
        y = _normalize(input, input.shape[1], weight, bias, eps, act)
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
) -> Tensor:
    """Layer normalization (Ba et al., arXiv:1607.06450), as torch.nn.functional.layer_norm.

    Args:
        input: [..., *normalized_shape] in float32, float64, float16 or bfloat16.
        normalized_shape: the sizes that share one mean and one variance.
        weight: of normalized_shape, or None.
        bias: of normalized_shape, or None.
        eps: added to the variance.
        activation: applied to the result before it is stored.

    Returns:
        y of the shape and dtype of input, contiguous.

    Raises:
        As torch.nn.functional.layer_norm; ValueError for an unknown activation.
    """
    act = activation_name(activation)
    shape = tuple(normalized_shape)
    features = 1
    for size in shape:
        features *= size
    fits = len(shape) > 0 and features > 0 and tuple(input.shape[-len(shape) :]) == shape
    if fits and all(p is None or tuple(p.shape) == shape for p in (weight, bias)):
        # A row of the last sizes is an example of so many channels at one position.
        y = _normalize(
            input.reshape(-1, features),
            1,
            weight if weight is None else weight.reshape(-1),
            bias if bias is None else bias.reshape(-1),
            eps,
            act,
        )
        if y is not None:
            return y.view(input.shape)
    return ACTIVATIONS[act](functional.layer_norm(input, shape, weight, bias, eps))
