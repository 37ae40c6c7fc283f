"""Puts the modules of groupnorm.torch into a model, and takes them out again.

A norm is replaced by giving the module another class: it stays the same object, with its
parameters, buffers, hooks, mode and names. Where an activation follows it, the module that holds
both gets a class that computes the pair in one call (fusion.py).
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from . import fusion, known_blocks, known_norms
from .derived import Derived, derive, origin_of
from .known_blocks import Fusion
from .modules import (
    Activated,
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LayerNorm,
)

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
# In the __dict__ of a norm of torch.nn that was replaced: its class.
_ORIGIN = "_groupnorm_origin"


@dataclass
class Replacement:
    """A norm that was replaced.

    Attributes:
        name: its qualified name; "" for the model itself.
        kind: the class it had.
        activation: what is computed in the same call: 'none', 'relu', 'silu', ...
        activation_names: qualified names of the activations that this is: none or one.
        neighbours: what else its block computes around it and is computed in the call: 'shift',
            'scale_shift' or 'residual'; see groupnorm.torch.Neighbours.
        note: why nothing more is, where there is something; or what to know.
    """

    name: str
    kind: str
    activation: str = "none"
    activation_names: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        text = " + ".join((f"{self.name or '(the model)'}  {self.kind}", *self.neighbours))
        if self.activation != "none":
            text += f" + {self.activation} of {' and '.join(self.activation_names)}"
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
    advice: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        fused = sum(r.activation != "none" for r in self.replaced)
        beside = sum(bool(r.neighbours) for r in self.replaced)
        head = f"{len(self.replaced)} replaced ({fused} with an activation, {beside} with what is "
        lines = [head + f"added or scaled beside them), {len(self.skipped)} skipped"]
        lines += [f"  replaced  {r}" for r in self.replaced]
        lines += [f"  skipped   {s}" for s in self.skipped]
        return "\n".join(lines + self.advice)


_FUSED = (
    "A norm computes its activation and its neighbours where the module that holds them is called "
    "and none has hooks. fuse_activation=False keeps all of them apart."
)
_EXPORT = (
    "torch.fx, torch.compile, torch.export and torch.onnx.export take the model as it is. Before "
    "torch.jit.script or torch.jit.trace, and before torch.save or torch.export of what has to "
    "run without groupnorm, call restore_group_norm_(model)."
)


def replace_group_norm_(
    model: nn.Module,
    *,
    filter_fn: _FilterFn | None = None,
    fuse_activation: bool = True,
    fuse_neighbours: bool = True,
    include: Collection[str] = _INCLUDE,
    trusted: Collection[type[nn.Module]] = (),
) -> Report:
    """Puts groupnorm.torch's modules in place of torch.nn's, in place.

    Each GroupNorm, InstanceNorm1d, 2d, 3d and LayerNorm of the model stays the same object and
    gets our class: parameters, hooks, mode, dtype, device and ``state_dict`` are untouched. So does
    a subclass, and it stays an instance of it, where its forward is that of torch, or computes it
    in float32 and gives the dtype of the input back (GroupNorm32), or over the channels of
    [N, C, H, W] (LayerNorm2d), or is one that known_norms.py has otherwise. Others are skipped.

    Where an nn.SiLU, ReLU, GELU or Hardswish follows such a norm in an nn.Sequential, or in a block
    of monai, diffusers or timm whose forward is known (known_blocks.py), the module that holds both
    gets a class that computes them in one call. So it does with what such a block adds to the
    input or the result of a norm: an embedding of time (shift, scale_shift), the shortcut
    (residual). The modules stay as they are: each gives its own
    result when it is called by itself or taken elsewhere, and a pair of which one has hooks when
    the call comes, whenever they were added, is called as two modules.

    torch.fx, torch.compile, torch.export and torch.onnx.export take the model as it is. For
    torch.jit.script, and for files that are to be read without this package, call
    `restore_group_norm_` first.

    Args:
        model: any module; a norm itself is fine.
        filter_fn: called with each norm and its qualified name; False leaves it as it is.
        fuse_activation: whether activations are computed in norms.
        fuse_neighbours: whether shortcuts and embeddings are, too. (Not without activations.)
        include: which norms: of 'group', 'instance' and 'layer'.
        trusted: subclasses of torch's norms that you know to compute what their parent does; of a
            16-bit input maybe in float32, rounded to the dtype of the input.

    Returns:
        What was replaced, and what was skipped and why. ``print`` shows it.

    Raises:
        TypeError: model is no nn.Module, filter_fn can't be called, or trusted holds something
            other than classes.
        ValueError: include names something else, or trusted a class that is no subclass of a norm
            of torch.
    """
    _check(model, filter_fn)
    if isinstance(include, str) or not set(include) <= set(_INCLUDE):
        raise ValueError(f"include: must be a collection of {', '.join(_INCLUDE)}; got {include!r}")
    _check_trusted(trusted)
    report = Report()
    plans: dict[nn.Module, tuple[type[nn.Module], Replacement]] = {}
    for name, module in model.named_modules():
        classes = (*type(module).__mro__, getattr(module, "cls_to_become", None))
        parent = next((c for c in classes if c in _NORMS), None)
        channel_norm = parent is None and known_norms.is_channel_norm(module)
        if (_NORMS[parent][0] if parent else "layer" if channel_norm else "") not in include:
            continue
        kind = type(module).__name__
        reason = _refusal(module, name, filter_fn)
        if reason is not None:
            report.skipped.append(Skip(name, kind, reason))
            continue
        cls = _class_for(module, parent, fuse_activation, type(module) in trusted)
        if cls is not None:
            plans[module] = cls, Replacement(name, kind)
        elif parent is not None:
            reason = f"a subclass of {parent.__name__} that may compute something else; "
            reason += f"trusted=[{kind}] says that it does not"
            report.skipped.append(Skip(name, kind, reason))
    for module, (cls, replacement) in plans.items():
        if cls in _OURS:
            module.__dict__[_ORIGIN] = type(module)
        module.__class__ = cls
        report.replaced.append(replacement)
    if fuse_activation:
        for name, block in model.named_modules():
            norms = {n: plans[m][1] for n, m in block._modules.items() if m in plans}
            _fuse(name, block, norms, fuse_neighbours)
        for module, (_, replacement) in plans.items():
            if isinstance(module, known_norms.WithActivation):
                _report_own(module, replacement)
    if any(r.activation != "none" or r.neighbours for r in report.replaced):
        report.advice.append(_FUSED)
    if report.replaced:
        report.advice.append(_EXPORT)
    return report


def restore_group_norm_(model: nn.Module) -> list[str]:
    """Undoes `replace_group_norm_`: the classes are what they were.

    Modules of groupnorm.torch that were made as such stay.

    Args:
        model: what was given to `replace_group_norm_`, a part or a copy of it.

    Returns:
        The qualified names of the norms that were restored.

    Raises:
        TypeError: model is no nn.Module.
        ValueError: the class of a module was changed after it was replaced. Nothing is restored
            then.
    """
    _check(model, None)
    origins = {}
    for name, module in model.named_modules():
        origin = module.__dict__.get(_ORIGIN) if type(module) in _OURS else origin_of(module)
        if origin is not None:
            origins[module] = name, origin
        elif _ORIGIN in module.__dict__ or isinstance(module, Derived):
            raise ValueError(
                f"model: {name or 'it'} must have the class that replace_group_norm_ gave "
                f"it; got {type(module).__name__} (take its parametrizations off first)"
            )
    norms = [name for module, (name, _) in origins.items() if isinstance(module, Activated)]
    for module, (_, origin) in origins.items():
        module.__class__ = origin
        module.__dict__.pop(_ORIGIN, None)
    return norms


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


def _check_trusted(trusted: Collection[type[nn.Module]]) -> None:
    if isinstance(trusted, str | type) or not all(isinstance(cls, type) for cls in trusted):
        raise TypeError(f"trusted: must be a collection of classes; got {trusted!r}")
    strange = [cls.__name__ for cls in trusted if not issubclass(cls, tuple(_NORMS))]
    if strange:
        known = ", ".join(parent.__name__ for parent in _NORMS)
        raise ValueError(f"trusted: must be subclasses of {known}; got {', '.join(strange)}")


def _refusal(module: nn.Module, name: str, filter_fn: _FilterFn | None) -> str | None:
    """Why a norm is left alone, whatever its forward computes."""
    if isinstance(module, Activated):
        return "is of groupnorm.torch already"
    if "forward" in module.__dict__:
        return "has a forward of its own, set on the instance"
    if isinstance(module, LazyModuleMixin):
        return "is lazy: call the model once before"
    if is_parametrized(module):
        return "has parametrizations"  # which take the class to be theirs
    if hasattr(module, "activation"):
        return "has an attribute 'activation' of its own"
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        return "tracks running statistics"
    if filter_fn is not None and not filter_fn(module, name):
        return "filter_fn said no"
    return None


def _class_for(
    module: nn.Module, parent: type[nn.Module] | None, fuse_activation: bool, trusted: bool
) -> type[nn.Module] | None:
    """The class that a norm gets; None where it is not known what it computes."""
    cls = type(module)
    if parent is None:
        return derive(known_norms.ChannelNorm, cls)
    if cls is parent:
        return _NORMS[parent][1]
    mixins = (known_norms.KnownNorm,) if trusted else known_norms.of_subclass(module, parent)
    if mixins == (known_norms.WithActivation,) and not fuse_activation:
        mixins = (known_norms.WithActivationApart,)
    return None if mixins is None else derive(*mixins, _NORMS[parent][1], cls)


def _fuse(
    name: str, block: nn.Module, norms: dict[str, Replacement], fuse_neighbours: bool
) -> None:
    """Gives the block of these norms its class, and reports what is fused in it and why not."""
    if not norms or is_parametrized(block):
        return
    origin = origin_of(block) or type(block)
    fusions: Collection[Fusion] = ()
    unknown = None
    block_mixin = fusion.FusedBlock if fuse_neighbours else fusion.FusedActivations
    mixin: type[nn.Module] = block_mixin
    row = known_blocks.BLOCKS.get(known_blocks.class_name(origin))
    if fusion.is_sequence(block, origin):
        mixin, fusions = fusion.FusedSequential, fusion.neighbours(block)
    elif row is None:
        if any(map(fusion.has_kind, block._modules.values())):
            unknown = f"{origin.__name__} is no block that is known"
    elif (difference := known_blocks.difference(block, origin, row)) is not None:
        unknown = f"{origin.__name__} has {difference}"
    else:
        known = block_mixin.fusions(row)
        fusions = [f for f in known if f.neighbours or _has_activation(block, f)]
    for n, replacement in norms.items():
        all_mine = [f for f in fusions if n in f.norms]
        mine = next((f for f in all_mine if f.when(block)), None)
        found = fusion.fused(block, mine, n) if mine else None
        if mine and found:
            replacement.neighbours = found.neighbours
            if found.kind:
                replacement.activation = found.kind
                replacement.activation_names += (f"{name}.{mine.activation}".removeprefix("."),)
        elif mine:
            replacement.note = f"not fused: {fusion.obstacle(block, mine)}"
        elif unknown or any(f.activation for f in all_mine):
            settings = f"{origin.__name__} has settings for which its forward is not known"
            replacement.note = f"not fused: {unknown or settings}"
    if fusions and origin is type(block):
        block.__class__ = derive(mixin, origin)


def _has_activation(block: nn.Module, f: Fusion) -> bool:
    return fusion.has_kind(block._modules.get(f.activation or ""))


def _report_own(norm: known_norms.WithActivation, replacement: Replacement) -> None:
    """Of a norm that holds a drop and an activation."""
    kind = norm.fused_kind()
    if kind is not None:
        replacement.activation = kind
        replacement.activation_names = (f"{replacement.name}.act".removeprefix("."),)
    elif not fusion.is_idle(norm.act):
        kinds = " and ".join(type(m).__name__ for m in (norm.drop, norm.act))
        replacement.note = f"not fused: its own {kinds}"
