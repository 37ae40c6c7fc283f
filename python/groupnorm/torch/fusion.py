"""Blocks that compute an activation inside the norm before it.

`replace_group_norm_` gives an nn.Sequential and a block that is known (known_blocks.py) a class of
here. Its modules stay what they are, each by itself, and what is fused is decided in each call: of
a pair that has hooks, or that someone has changed, both are called as ever.
"""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import known_blocks
from ._private import has_global_hooks
from .known_blocks import Fusion
from .modules import Activated

_KINDS: dict[type, str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hard_swish"}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


def is_watched(module: nn.Module) -> bool:
    """Whether something sees or replaces the calls of a module: it has to be called then."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or has_global_hooks()
    )


def is_idle(module: nn.Module | None) -> bool:
    return type(module) is nn.Identity and not is_watched(module)


def has_kind(module: nn.Module | None) -> bool:
    """Whether the engine has an activation."""
    return type(module) in _KINDS or (type(module) is nn.GELU and module.approximate in _GELUS)


def kind_of(activation: nn.Module | None) -> str | None:
    """The engine's name of an activation; None where it has none, or the module is watched."""
    if activation is None or not has_kind(activation) or is_watched(activation):
        return None
    if isinstance(activation, nn.GELU):
        return _GELUS[activation.approximate]
    return _KINDS[type(activation)]


def _takes_activation(norm: nn.Module | None) -> bool:
    return isinstance(norm, Activated) and norm.takes_activation and norm.activation == "none"


def fused_kind(block: nn.Module, fusion: Fusion) -> str | None:
    """The activation that the norms compute if the block is called now; None where they don't."""
    for name in fusion.norms:
        norm = block._modules.get(name)
        if norm is None or not _takes_activation(norm) or is_watched(norm):
            return None
    for name in fusion.through:
        if not is_idle(block._modules.get(name)):
            return None
    return kind_of(block._modules.get(fusion.activation))


def obstacle(block: nn.Module, fusion: Fusion) -> str:
    """Why they don't."""
    modules = block._modules
    if not all(_takes_activation(modules.get(n)) for n in fusion.norms):
        return "another norm of the same activation is not replaced"
    between = [n for n in fusion.through if not is_idle(modules.get(n))]
    if between:
        return f"{' and '.join(between)} may compute something in between"
    return "the norm or its activation has hooks"


# --- Sequences.


def is_sequence(block: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether a block of a class calls its modules one after another, and does nothing else."""
    sequential = nn.Sequential
    return (
        issubclass(cls, sequential)
        and cls.forward is sequential.forward
        and cls.__iter__ is sequential.__iter__
        and "forward" not in block.__dict__
    )


def neighbours(block: nn.Module) -> list[Fusion]:
    """The norms of a sequence and the activations after them."""
    found = []
    norm = None
    between: list[str] = []
    for name, module in block._modules.items():
        if type(module) is nn.Identity:
            between.append(name)
            continue
        if norm is not None and has_kind(module):
            found.append(Fusion((norm,), name, tuple(between)))
        norm = name if _takes_activation(module) else None
        between = []
    return found


class FusedSequential(nn.Sequential):
    """Computes pairs of a norm and an activation in one call."""

    def forward(self, input: Tensor) -> Tensor:  # of Tensors in TorchScript, as its parent
        if torch.jit.is_scripting():
            for module in self:
                input = module(input)
            return input
        else:  # TorchScript compiles what is after a return
            y: Tensor = self._run(input)
            return y

    def _run(self, input: Any) -> Any:
        kinds = {}
        done = []
        for fusion in () if isinstance(input, fx.Proxy) else neighbours(self):
            kind = fused_kind(self, fusion)
            if kind is not None:
                kinds[fusion.norms[0]] = kind
                done.append(fusion.activation)
        for name, module in self._modules.items():
            called: Any = module
            if name in kinds:
                input = called.normalize(input, kinds[name])
            elif name not in done:
                input = called(input)
        return input


# --- Blocks that are known.


class FusedBlock(nn.Module):
    """A block that is known. Its own forward runs, on a `_View` of it."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.forward = _on_a_view(cls.__bases__[-1])

    def __prepare_scriptable__(self) -> nn.Module:
        return refuse_script(self)


def refuse_script(module: nn.Module) -> nn.Module:
    """For torch.jit.script, of what it can't compile."""
    raise RuntimeError(
        f"torch.jit.script: can't compile the {type(module).__name__} that replace_group_norm_ has "
        "changed; call groupnorm.torch.restore_group_norm_(model) first"
    )


def _on_a_view(origin: Any) -> Callable[..., Any]:
    row = known_blocks.BLOCKS[known_blocks.class_name(origin)]
    known = origin.forward

    @functools.wraps(known)  # for who asks for the names of its arguments
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stand_ins: dict[str, Callable[[Tensor], Tensor]] = {}
        traced = any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values()))
        if not traced and origin.forward is known and row.condition(self):
            for fusion in row.fusions:
                kind = fused_kind(self, fusion)
                if kind is not None:
                    stand_ins.update(_stand_ins(self, fusion, kind))
        return origin.forward(_View(self, stand_ins) if stand_ins else self, *args, **kwargs)

    return forward


def _stand_ins(block: Any, fusion: Fusion, kind: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """What a block's forward finds in place of its norms and their activation."""
    activation = block._modules[fusion.activation]

    def rest(input: Tensor) -> Tensor:
        y: Tensor = activation(input) if input.dim() == fusion.side_rank else input
        return y

    norms = {
        n: functools.partial(block._modules[n].normalize, activation=kind) for n in fusion.norms
    }
    return {**norms, fusion.activation: rest}


class _View:
    """A block as one call of its forward sees it, with stand-ins for some of its modules.

    Nothing of the block is changed, so calls of several threads don't meet.
    """

    def __init__(self, block: nn.Module, stand_ins: dict[str, Callable[[Tensor], Tensor]]) -> None:
        self._block = block
        self._found = {**block._modules, **stand_ins}

    def __getattr__(self, name: str) -> Any:
        if name in self._found:
            return self._found[name]
        value = getattr(self._block, name)
        if isinstance(value, MethodType) and value.__self__ is self._block:  # it calls modules, too
            return functools.partial(value.__func__, self)
        return value
