"""Blocks that compute an activation inside the norm before it, and what is added around it.

`replace_group_norm_` gives an nn.Sequential and a block that is known (known_blocks.py) a class of
here. Its modules stay what they are, each by itself, and what is fused is decided in each call: of
a pair that has hooks, or that someone has changed, both are called as ever.
"""

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from . import known_blocks
from ._private import has_global_hooks
from .derived import Derived
from .known_blocks import Fusion, KnownBlock
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


class Fused(NamedTuple):
    """What a norm computes if its block is called now: an activation, and neighbours by name."""

    kind: str | None
    neighbours: tuple[str, ...] = ()


def fused(block: nn.Module, fusion: Fusion, name: str) -> Fused | None:
    """Of a norm of a fusion; None where it is called by itself."""
    norm = block._modules.get(name)
    if norm is None or is_watched(norm) or _between(block, fusion) or not fusion.when(block):
        return None
    kind = kind_of(block._modules.get(fusion.activation or ""))
    there = fusion.projection is None or block._modules.get(fusion.projection) is not None
    if there and fusion.neighbours and isinstance(norm, Activated) and norm.takes_neighbours():
        return Fused(kind, fusion.neighbours)
    return Fused(kind) if kind is not None and _takes_activation(norm) else None


def _between(block: nn.Module, fusion: Fusion) -> list[str]:
    """What may compute something between the norm and the rest of its fusion."""
    between = [n for n in fusion.through if not is_idle(block._modules.get(n))]
    return between + [n for n in fusion.absent if getattr(block, n, None) is not None]


def obstacle(block: nn.Module, fusion: Fusion) -> str:
    """Why nothing is fused."""
    between = _between(block, fusion)
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
            found.append(Fusion((norm,), name, through=tuple(between)))
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
            found = fused(self, fusion, fusion.norms[0])
            if found is not None:
                kinds[fusion.norms[0]] = found.kind
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
        if cls.__bases__[0] is Derived:
            cls.forward = _on_a_view(cls.__bases__[-1], cls.fusions)

    @staticmethod
    def fusions(row: KnownBlock) -> tuple[Fusion, ...]:
        """What of a row is fused."""
        return row.fusions

    def __prepare_scriptable__(self) -> nn.Module:
        return refuse_script(self)


class FusedActivations(FusedBlock):
    """The same without neighbours."""

    @staticmethod
    def fusions(row: KnownBlock) -> tuple[Fusion, ...]:
        return tuple(alone for f in row.fusions if (alone := f.alone()) is not None)


def refuse_script(module: nn.Module) -> nn.Module:
    """For torch.jit.script, of what it can't compile."""
    raise RuntimeError(
        f"torch.jit.script: can't compile the {type(module).__name__} that replace_group_norm_ has "
        "changed; call groupnorm.torch.restore_group_norm_(model) first"
    )


def _on_a_view(origin: Any, of: Callable[[KnownBlock], tuple[Fusion, ...]]) -> Callable[..., Any]:
    fusions = of(known_blocks.BLOCKS[known_blocks.class_name(origin)])
    known = origin.forward

    @functools.wraps(known)  # for who asks for the names of its arguments
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stand_ins: dict[str, Callable[..., Any]] = {}
        traced = any(isinstance(value, fx.Proxy) for value in (*args, *kwargs.values()))
        if not traced and origin.forward is known:
            for fusion in fusions:
                stand_ins.update(_stand_ins(self, fusion))
        if not stand_ins:
            return origin.forward(self, *args, **kwargs)
        y = origin.forward(_View(self, stand_ins), *args, **kwargs)
        return y.make() if isinstance(y, _Result) else y

    return forward


def _stand_ins(block: Any, fusion: Fusion) -> dict[str, Callable[..., Any]]:
    """What a block's forward finds in place of some modules."""
    found: dict[str, Callable[..., Any]] = {}
    kind = None
    for name in fusion.norms:
        norm = fused(block, fusion, name)
        if norm is not None:
            kind = norm.kind
            found[name] = functools.partial(_Result, block._modules[name].normalize)
    if found and fusion.activation is not None:
        activation = block._modules[fusion.activation]
        found[fusion.activation] = functools.partial(_activate, activation, kind)
    projection = block._modules.get(fusion.projection or "")
    if found and fusion.projection is not None and projection is not None:
        found[fusion.projection] = functools.partial(_project, projection)
    return found


def _project(projection: nn.Module, input: Tensor) -> "_Projected":
    """The linear layer whose result a norm takes."""
    return _Projected(projection(input))


def _activate(activation: nn.Module, kind: str | None, input: Any) -> Any:
    """An activation: of what has no norm before it, and where it is not the engine's, the module."""
    if not isinstance(input, _Result):
        return activation(input)
    return activation(input.make()) if kind is None else input.make(kind)


class _Waiting:
    """What stands for a tensor that is not made yet, in the forward of a block that is known.

    Operations that belong to the norm are taken down; for any other the tensors are made. It is
    known to torch, so that compiled blocks stay whole graphs.
    """

    def plus(self, other: Any) -> Any:
        """The sum, as it waits; None where it can't."""
        raise NotImplementedError

    def make(self) -> Tensor:
        """The tensor."""
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        found = self.plus(other)
        return self.make() + other if found is None else found

    __radd__ = __add__

    def __iadd__(self, other: Any) -> Any:
        found = self.plus(other)
        if found is None:
            found = self.make()
            found += other
        return found

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in _ADDITIONS:
            a, b = args
            found = a.plus(b) if isinstance(a, _Waiting) else b.plus(a)
            if found is not None:
                return found
        if function is torch.chunk and isinstance(args[0], _Projected):
            parts = torch.chunk(args[0].value, *args[1:], **(kwargs or {}))
            return tuple(_Projected(part) for part in parts)
        made = [a.make() if isinstance(a, _Waiting) else a for a in args]
        return function(*made, **(kwargs or {}))


_ADDITIONS = frozenset(
    (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)
)


class _Projected(_Waiting):
    """A value for each example and channel, which is added before a norm or scales what it gives."""

    def __init__(self, value: Tensor, one_more: bool = False) -> None:
        self.value = value
        self.one_more = one_more  # whether it stands for 1 + value

    def __getitem__(self, index: Any) -> "_Projected":
        return _Projected(self.value[index])

    def plus(self, other: Any) -> Any:
        if isinstance(other, int) and other == 1:
            return _Projected(self.value, one_more=True)
        if type(other) is Tensor and other.dtype is self.value.dtype and not self.one_more:
            return _Shifted(other, self.value)
        return None

    def make(self) -> Tensor:
        return 1 + self.value if self.one_more else self.value


class _Shifted(_Waiting):
    """x + shift, for a norm."""

    def __init__(self, x: Tensor, shift: Tensor) -> None:
        self.x, self.shift = x, shift

    def plus(self, other: Any) -> Any:
        return None

    def make(self) -> Tensor:
        return self.x + self.shift


class _Result(_Waiting):
    """What a norm gives, with what is done to it."""

    def __init__(self, normalize: Callable[..., Tensor], x: Any, **neighbours: Any) -> None:
        if isinstance(x, _Shifted):
            neighbours["shift"] = x.shift
            x = x.x
        self.normalize, self.x, self.neighbours = normalize, x, neighbours
        self.scale: Tensor | None = None

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, _Projected) and other.one_more and not self.changed():
            found = _Result(self.normalize, self.x, **self.neighbours)
            found.scale = other.value
            return found
        return self.make() * (other.make() if isinstance(other, _Waiting) else other)

    def plus(self, other: Any) -> Any:
        if self.scale is not None and isinstance(other, _Projected) and not other.one_more:
            pair = self.scale, other.value
            return _Result(self.normalize, self.x, **self.neighbours, scale_shift=pair)
        fits = isinstance(other, Tensor) and other.dtype is self.x.dtype
        if fits and other.shape == self.x.shape and self.scale is None and not self.has_sum():
            return _Result(self.normalize, self.x, **self.neighbours, residual=other)
        return None

    def changed(self) -> bool:
        return self.scale is not None or "scale_shift" in self.neighbours or self.has_sum()

    def has_sum(self) -> bool:
        return "residual" in self.neighbours

    def make(self, activation: str = "none") -> Tensor:
        y = self.normalize(self.x, activation=activation, **self.neighbours)
        return y if self.scale is None else y * (1 + self.scale)


class _View:
    """A block as one call of its forward sees it, with stand-ins for some of its modules.

    Nothing of the block is changed, so calls of several threads don't meet.
    """

    def __init__(self, block: nn.Module, stand_ins: dict[str, Callable[..., Any]]) -> None:
        self._block = block
        self._found = {**block._modules, **stand_ins}

    def __getattr__(self, name: str) -> Any:
        if name in self._found:
            return self._found[name]
        value = getattr(self._block, name)
        if isinstance(value, MethodType) and value.__self__ is self._block:  # it calls modules, too
            return functools.partial(value.__func__, self)
        return value
