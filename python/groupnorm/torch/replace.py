"""Puts the modules of groupnorm.torch into a model, and takes them out again.

A norm is replaced by giving the module another class: it stays the same object, with its
parameters, buffers, hooks, mode and names. An activation moves into the norm before it in an
nn.Sequential and in blocks that are known (known_blocks.py); a `FusedActivation` holds its place.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn

from . import known_blocks
from .known_blocks import Fusion
from .modules import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm

_FilterFn = Callable[[nn.Module, str], bool]

# Class of torch.nn -> (its name in `include`, ours).
_NORMS: dict[type[nn.Module], tuple[str, type[nn.Module]]] = {
    nn.GroupNorm: ("group", GroupNorm),
    nn.InstanceNorm1d: ("instance", InstanceNorm1d),
    nn.InstanceNorm2d: ("instance", InstanceNorm2d),
    nn.InstanceNorm3d: ("instance", InstanceNorm3d),
    nn.LayerNorm: ("layer", LayerNorm),
}
_OURS = tuple(ours for _, ours in _NORMS.values())
_INCLUDE = ("group", "instance", "layer")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ORIGIN = "_groupnorm_origin"


@dataclass
class Replacement:
    """A norm that was replaced.

    Attributes:
        name: its qualified name; "" for the model itself.
        kind: the class it had.
        activation: what was fused into it: 'none', 'relu', 'silu', ...
        activation_names: qualified names of the activations that it took over: none or one.
        note: why no activation was fused, where there is one beside it; or what to know.
    """

    name: str
    kind: str
    activation: str = "none"
    activation_names: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        text = f"{self.name or '(the model)'}  {self.kind}"
        if self.activation != "none":
            text += f" + {self.activation}"
        return f"{text}  ({self.note})" if self.note else text


@dataclass
class Skip:
    """A norm that was left as it is: its qualified name, its class, and why."""

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name or '(the model)'}  {self.kind}  ({self.reason})"


@dataclass
class Report:
    """What became of each norm of a model, in the order of ``model.named_modules()``."""

    replaced: list[Replacement] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)

    def __str__(self) -> str:
        fused = sum(r.activation != "none" for r in self.replaced)
        head = f"{len(self.replaced)} replaced ({fused} with an activation), "
        lines = [head + f"{len(self.skipped)} skipped"]
        lines += [f"  replaced  {r}" for r in self.replaced]
        lines += [f"  skipped   {s}" for s in self.skipped]
        return "\n".join(lines)


class FusedActivation(nn.Module):
    """Holds the place of an activation that the norm before it has taken over.

    Args:
        original: the activation.
        side_rank: inputs of so many axes come from no norm: the activation is applied to them.
            None: there are none.
    """

    original: nn.Module

    def __init__(self, original: nn.Module, side_rank: int | None = None) -> None:
        super().__init__()
        # No submodule: whoever walks the model should not find what is not called.
        self.__dict__["original"] = original
        self.side_rank = side_rank
        self.training = original.training

    def forward(self, input: Tensor) -> Tensor:
        y: Tensor = self.original(input) if input.dim() == self.side_rank else input
        return y

    def extra_repr(self) -> str:
        return repr(self.original)


class _GroupNormAct(GroupNorm):
    """A group norm with a drop and an activation of its own (KnownNorm.activated)."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        return y if self.activation != "none" else self.act(self.drop(y))


@dataclass
class _Origin:
    """How to undo a replacement: kept in the module."""

    cls: type[nn.Module]
    slots: list[FusedActivation] = field(default_factory=list)


# Norm -> the class that it gets, and what to report of it.
_Plans = dict[nn.Module, tuple[type[nn.Module], Replacement]]


def replace_group_norm_(
    model: nn.Module,
    *,
    filter_fn: _FilterFn | None = None,
    fuse_activation: bool = True,
    include: Collection[str] = _INCLUDE,
) -> Report:
    """Puts groupnorm.torch's modules in place of torch.nn's, in place.

    Each GroupNorm, InstanceNorm1d, 2d, 3d and LayerNorm of the model stays the same object and
    gets our class: parameters, hooks, mode, dtype, device and ``state_dict`` are untouched. A
    subclass is skipped, but for those whose forward is known (GroupNorm, GroupNorm1 and
    GroupNormAct of timm).

    An nn.SiLU, ReLU, GELU or Hardswish is computed inside the norm before it where the two are
    neighbours in an nn.Sequential, and in the blocks of monai, diffusers and timm whose forward is
    known (known_blocks.py). A FusedActivation holds its place. Where your code calls children of
    such a module itself, or takes an nn.Sequential apart between the two, pass
    ``fuse_activation=False``.

    Args:
        model: any module; a norm itself is fine.
        filter_fn: called with each norm and its qualified name; False leaves it as it is.
        fuse_activation: whether activations are moved into norms.
        include: which norms: of 'group', 'instance' and 'layer'.

    Returns:
        What was replaced, and what was skipped and why. ``print`` shows it.

    Raises:
        TypeError: model is no nn.Module, or filter_fn can't be called.
        ValueError: include names something else.
    """
    _check(model, filter_fn)
    if isinstance(include, str) or not set(include) <= set(_INCLUDE):
        raise ValueError(f"include: must be a collection of {', '.join(_INCLUDE)}; got {include!r}")
    report = Report()
    plans: _Plans = {}
    for name, module in model.named_modules():
        parent = next((c for c in type(module).__mro__ if c in _NORMS), None)
        if parent is None or _NORMS[parent][0] not in include:
            continue
        kind = type(module).__name__
        reason = _refusal(module, name, filter_fn)
        cls = _NORMS[parent][1]
        if reason is None and type(module) is not parent:
            row = known_blocks.NORMS.get(known_blocks.class_name(module))
            if row is None:
                reason = f"a subclass of {parent.__name__} that may compute something else"
            elif (difference := known_blocks.difference(module, row)) is not None:
                reason = f"a subclass of {parent.__name__} with {difference}"
            elif row.activated:
                cls = _GroupNormAct
        if reason is None:
            plans[module] = cls, Replacement(name, kind)
        else:
            report.skipped.append(Skip(name, kind, reason))
    fusions = _fusions(model, plans) if fuse_activation else []
    for module, (cls, replacement) in plans.items():
        module.__dict__[_ORIGIN] = _Origin(type(module))
        module.__class__ = cls
        report.replaced.append(replacement)
        if fuse_activation and cls is _GroupNormAct:
            _fuse_own(module, replacement)
    for name, block, fusion in fusions:
        _fuse(name, block, fusion, plans)
    return report


def restore_group_norm_(model: nn.Module) -> list[str]:
    """Undoes `replace_group_norm_`: the classes and activations are what they were.

    Modules of groupnorm.torch that were made as such stay.

    Args:
        model: what was given to `replace_group_norm_`, or a module that holds each norm together
            with the activation that it took over.

    Returns:
        The qualified names of the norms that were restored.

    Raises:
        TypeError: model is no nn.Module.
        ValueError: an activation that a norm took over lies outside model, or the class of a norm
            was changed after it was replaced. Nothing is restored then.
    """
    _check(model, None)
    norms = {
        name: (module, module.__dict__[_ORIGIN])
        for name, module in model.named_modules()
        if _ORIGIN in module.__dict__
    }
    slots = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, FusedActivation)
    ]
    held = {slot for _, _, slot in slots}
    for name, (module, origin) in norms.items():
        if not held.issuperset(origin.slots):
            raise ValueError(
                f"model: must hold the activation that {name or 'the norm'} took over; "
                "got a part of the model without it"
            )
        if type(module) not in (*_OURS, _GroupNormAct):
            raise ValueError(
                f"model: {name or 'the norm'} must have the class that replace_group_norm_ gave "
                f"it; got {type(module).__name__} (take its parametrizations off first)"
            )
    for parent, name, slot in slots:
        parent._modules[name] = slot.original.train(slot.training)
    for module, origin in norms.values():
        module.__class__ = origin.cls
        module.__dict__.pop("activation", None)
        del module.__dict__[_ORIGIN]
    return list(norms)


def batch_norm_to_group_norm_(
    model: nn.Module, num_groups: int = 32, *, filter_fn: _FilterFn | None = None
) -> Report:
    """Turns batch normalizations into group normalizations, in place.

    Each BatchNorm1d, 2d, 3d and SyncBatchNorm of the model stays the same object and becomes a
    groupnorm.torch.GroupNorm of gcd(num_groups, C) groups, so that any channel count C works. It
    keeps its weight and bias, eps, hooks, mode, dtype and device; running statistics go, from the
    ``state_dict`` too. The model computes something else then, and wants training. There is no way
    back.

    Args:
        model: any module; a batch norm itself is fine.
        num_groups: the largest number of groups.
        filter_fn: called with each batch norm and its qualified name; False leaves it as it is.

    Returns:
        What was replaced, and what was skipped and why.

    Raises:
        TypeError: model is no nn.Module, num_groups no int, or filter_fn can't be called.
        ValueError: num_groups is below 1.
    """
    _check(model, filter_fn)
    if not isinstance(num_groups, int) or isinstance(num_groups, bool):
        raise TypeError(f"num_groups: must be an int; got {num_groups!r}")
    if num_groups < 1:
        raise ValueError(f"num_groups: must be at least 1; got {num_groups}")
    report = Report()
    chosen = []
    for name, module in model.named_modules():
        # _BatchNorm is the base of the lazy ones and of third parties' as well.
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        reason = _refusal(module, name, filter_fn)
        if reason is None and type(module) not in _BATCH_NORMS:
            reason = "a subclass that may compute something else"
        if reason is None:
            chosen.append((name, module, module.num_features))
        else:
            report.skipped.append(Skip(name, type(module).__name__, reason))
    for name, module, channels in chosen:
        groups = math.gcd(num_groups, channels)
        note = f"{groups} groups of {channels // groups} channels"
        if groups == channels and isinstance(module, nn.BatchNorm1d | nn.SyncBatchNorm):
            note += ": an input [N, C] becomes bias"  # a single value is its own mean
        report.replaced.append(Replacement(name, type(module).__name__, note=note))
        _to_group_norm(module, groups, channels)
    return report


def _to_group_norm(module: nn.Module, groups: int, channels: int) -> None:
    for name in ("num_features", "momentum", "track_running_stats", "process_group"):
        module.__dict__.pop(name, None)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        module._buffers.pop(name, None)
    module.__dict__ |= {"num_groups": groups, "num_channels": channels}
    module.__class__ = GroupNorm


def _check(model: object, filter_fn: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module; got {type(model).__name__}")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"filter_fn: must be None or a function; got {type(filter_fn).__name__}")


def _refusal(module: nn.Module, name: str, filter_fn: _FilterFn | None) -> str | None:
    """Why a norm is left alone, whatever its forward computes."""
    if isinstance(module, (*_OURS, _GroupNormAct)):
        return "is of groupnorm.torch already"
    if "forward" in module.__dict__:
        return "has a forward of its own, set on the instance"
    if hasattr(module, "activation"):
        return "has an attribute 'activation' of its own"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        return "tracks running statistics"
    if filter_fn is not None and not filter_fn(module, name):
        return "filter_fn said no"
    return None


def _has_hooks(module: nn.Module) -> bool:
    """Whether anything watches or replaces the calls of a module."""
    hooks = (
        *(module._forward_hooks, module._forward_pre_hooks),
        *(module._backward_hooks, module._backward_pre_hooks),
    )
    return any(hooks) or "forward" in module.__dict__


def _kind_of(activation: nn.Module | None) -> str | None:
    """The engine's name of an activation; None where it has none, or someone watches its calls."""
    if activation is None or _has_hooks(activation):
        return None
    if type(activation) is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(activation.approximate)
    names: dict[type, str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hard_swish"}
    return names.get(type(activation))


def _is_idle(module: nn.Module | None) -> bool:
    return type(module) is nn.Identity and not _has_hooks(module)


def _fusions(model: nn.Module, plans: _Plans) -> list[tuple[str, nn.Module, Fusion]]:
    """What can be fused, in which module; the reports of norms that can't be get a note."""
    places = Counter(m for parent in model.modules() for m in parent._modules.values())
    fusions = []
    for name, block in model.named_modules():
        norms = {
            n: plans[m][1]
            for n, m in block._modules.items()
            if m in plans and plans[m][0] is not _GroupNormAct
        }
        activations = {n for n, m in block._modules.items() if _kind_of(m) is not None}
        if not norms or not activations:
            continue
        candidates, unknown = _candidates(block, norms, activations)
        notes = dict.fromkeys(norms, unknown)
        for fusion in candidates:
            reason = _obstacle(block, fusion, norms, places)
            notes |= dict.fromkeys(fusion.norms, reason)
            if reason is None:
                fusions.append((name, block, fusion))
        for n, replacement in norms.items():
            if notes[n] is not None:
                replacement.note = f"not fused: {notes[n]}"
    return fusions


def _candidates(
    block: nn.Module, norms: Collection[str], activations: Collection[str]
) -> tuple[list[Fusion], str | None]:
    """Which activations follow which norms of a module; or why that is not known."""
    if type(block) is nn.Sequential and "forward" not in block.__dict__:
        working = [n for n, m in block._modules.items() if not _is_idle(m)]
        pairs = [(n, a) for n, a in pairwise(working) if n in norms and a in activations]
        return [Fusion((n,), a) for n, a in pairs], None
    row = known_blocks.BLOCKS.get(known_blocks.class_name(block))
    if row is None:
        return [], f"{type(block).__name__} is no block that is known"
    if (difference := known_blocks.difference(block, row)) is not None:
        return [], f"{type(block).__name__} has {difference}"
    return [fusion for fusion in row.fusions if fusion.activation in activations], None


def _obstacle(
    block: nn.Module, fusion: Fusion, norms: Collection[str], places: Counter[nn.Module | None]
) -> str | None:
    """Why the norms can't take over what follows them."""
    if not set(fusion.norms) <= set(norms):
        return "another norm of the same activation is not replaced"
    modules = [block.get_submodule(n) for n in fusion.norms]
    if any(places[module] > 1 for module in modules):
        return "a norm is used in several places"
    if any(map(_has_hooks, modules)):
        return "a norm has hooks"
    between = [n for n in fusion.through if not _is_idle(block._modules.get(n))]
    return f"{' and '.join(between)} may compute something in between" if between else None


def _fuse(name: str, block: nn.Module, fusion: Fusion, plans: _Plans) -> None:
    original = block.get_submodule(fusion.activation)
    place = block._modules[fusion.activation] = FusedActivation(original, fusion.side_rank)
    for norm in fusion.norms:
        module = block.get_submodule(norm)
        module.__dict__[_ORIGIN].slots.append(place)
        _activate(module, original, f"{name}.{fusion.activation}", plans[module][1])


def _activate(norm: nn.Module, activation: nn.Module, name: str, report: Replacement) -> None:
    kind = _kind_of(activation)
    assert kind is not None
    norm.__dict__["activation"] = report.activation = kind
    report.activation_names = (name.removeprefix("."),)


def _fuse_own(norm: nn.Module, report: Replacement) -> None:
    """Of a norm that holds a drop and an activation."""
    drop, act = norm._modules.get("drop"), norm._modules.get("act")
    if act is not None and _kind_of(act) is not None and _is_idle(drop):
        _activate(norm, act, f"{report.name}.act", report)
    elif not _is_idle(act):
        report.note = f"not fused: its own {type(drop).__name__} and {type(act).__name__}"
