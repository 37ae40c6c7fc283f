"""The names of torch that it does not document: each of them here alone, with what stands in for it.

They are known in torch 2.5 to 2.14, the range that is tested. Where a later torch has one no longer,
what stands in keeps results right and takes longer: what can't be known is taken to be so, and torch's
own functions, or the operators of _ops.py, do the work.
"""

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def _find(path: str, instead: Any) -> Any:
    """What is called module.name; `instead` where that is not there."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError):
        return instead


def _module_with(path: str, value: Any) -> Any:
    """The module of a variable that changes; where it has none of that name, one with this value."""
    module, _, name = path.rpartition(".")
    found = importlib.import_module(module)
    return found if hasattr(found, name) else SimpleNamespace(**{name: value})


# ---- who looks at a call

are_transforms_active: Callable[[], bool] = _find(
    "torch._C._are_functorch_transforms_active", lambda: True
)
dispatch_modes: Callable[[], int] = _find("torch._C._len_torch_dispatch_stack", lambda: 1)
tracing_state: Callable[[], object] = _find(
    "torch._C._get_tracing_state", lambda: torch.jit.is_tracing() or None
)
# forward_ad._current_level is -1 outside of forward-mode AD, profiler._is_profiler_enabled a bool.
forward_ad = _module_with("torch.autograd.forward_ad._current_level", 0)
profiler = _module_with("torch.autograd.profiler._is_profiler_enabled", False)
is_legacy_batched: Callable[[Tensor], bool] = _find(
    "torch._C._functorch.is_legacy_batchedtensor", lambda _: True
)
_unpack_dual = _find("torch._VF._unpack_dual", None)


def is_dual(t: Tensor) -> bool:
    """Whether t has a tangent: compiled graphs enter a dual level that forward_ad does not count."""
    if _unpack_dual is None:
        return torch.autograd.forward_ad.unpack_dual(t).tangent is not None
    return _unpack_dual(t, level=0)[1] is not None


_GLOBAL_HOOKS = ("forward_pre_hooks", "forward_hooks", "backward_pre_hooks", "backward_hooks")


def _any_global_hook() -> bool:
    hooks = [_find(f"torch.nn.modules.module._global_{name}", True) for name in _GLOBAL_HOOKS]
    return any(map(bool, hooks))


# Of all modules. torch 2.5 has the hooks alone.
has_global_hooks: Callable[[], bool] = _find(
    "torch.nn.modules.module._has_any_global_hook", _any_global_hook
)

# ---- tensors

# Types that stand for plain tensors in a graph.
TRACED: tuple[type, ...] = tuple(
    kind
    for kind in (
        _find("torch._subclasses.fake_tensor.FakeTensor", None),
        _find("torch._subclasses.functional_tensor.FunctionalTensor", None),
    )
    if kind is not None
)
statically_known_true: Callable[[Any], bool] = _find(
    "torch.fx.experimental.symbolic_shapes.statically_known_true", bool
)


def is_known(condition: Any) -> bool:
    """Whether it holds for certain, of sizes that may be symbols (or tensors, of torch.jit)."""
    return bool(condition) if isinstance(condition, Tensor) else statically_known_true(condition)


def _suggest_memory_format(x: Tensor) -> torch.memory_format:
    form = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if form is None or x.is_contiguous() or not x.is_contiguous(memory_format=form):
        return torch.contiguous_format
    return form


suggest_memory_format: Callable[[Tensor], torch.memory_format] = _find(
    "torch._prims_common.suggest_memory_format", _suggest_memory_format
)


def unsafe_view(y: Tensor, shape: Any) -> Tensor:
    """y, of nobody else, in another shape, and no view for autograd."""
    operator = getattr(torch.ops.aten, "_unsafe_view", None)
    found: Tensor = y.reshape(shape).clone() if operator is None else operator(y, shape)
    return found


# ---- autograd and decompositions

# A Function without what its apply asks about transforms.
SingleLevelFunction: Any = _find(
    "torch.autograd.function._SingleLevelFunction", torch.autograd.Function
)
_Info = _find("torch._library.autograd.Info", None)
_make_autograd_impl = _find("torch._library.autograd.make_autograd_impl", None)
# Whether the operators know tangents: those of register_autograd lose them.
OPERATORS_KEEP_TANGENTS = _Info is not None and _make_autograd_impl is not None


def autograd_kernel(
    operator: Any, setup: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any] | None:
    """What records an operator for autograd; None where it has to be register_autograd's."""
    if not OPERATORS_KEEP_TANGENTS:
        return None
    kernel: Callable[..., Any] = _make_autograd_impl(operator, _Info(backward, setup))
    return kernel


def _no_decomposition(*_: Any, **__: Any) -> Callable[[Any], Any]:
    return lambda function: function


register_decomposition: Callable[..., Any] = _find(
    "torch._decomp.register_decomposition", _no_decomposition
)


# ---- the dispatcher: without these names torch is none that enable() takes (_override.py)


def schema_of(name: str) -> str | None:
    """Of aten's operator of that name; None where there is none."""
    operator = getattr(torch.ops.aten, name, None)
    return None if operator is None else str(operator.default._schema)


def cpu_keys() -> Any:
    """The keys that a kernel for CPUs is called with."""
    return torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
