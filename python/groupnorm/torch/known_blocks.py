"""Modules of other packages whose forward is known: read by people, told by its digest.

A row holds for instances of exactly that class with one of these versions of its methods. What
another version does is not guessed at: nothing is fused then. To add a version, read it first.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Fusion:
    """An activation that takes all results of some norms.

    Attributes:
        norms: attributes of the norms; nothing else sees their results.
        activation: attribute of the activation.
        through: modules between them; they must be nn.Identity.
        side_rank: rank of what else the activation is applied to, which results of norms never
            have; None: it is applied to nothing else.
    """

    norms: tuple[str, ...]
    activation: str
    through: tuple[str, ...] = ()
    side_rank: int | None = None


@dataclass(frozen=True)
class Known:
    """A class.

    Attributes:
        name: its module and qualified name.
        digests: SHA-256 of the source of its methods, one for each version.
        methods: those that the row is about.
        condition: what must hold for an instance.
    """

    name: str
    digests: tuple[str, ...]
    methods: tuple[str, ...] = ("forward",)
    condition: Callable[[Any], bool] = lambda module: True


@dataclass(frozen=True)
class KnownBlock(Known):
    """A module that holds norms and the activations after them; no other method calls these."""

    fusions: tuple[Fusion, ...] = ()


@dataclass(frozen=True)
class KnownNorm(Known):
    """A subclass that computes what its parent does; if activated, ``act(drop(y))`` of that."""

    activated: bool = False


def _not_fast(norm: Any) -> bool:
    return norm.__dict__.get("_fast_norm") is False


_BLOCKS = (
    KnownBlock(
        "monai.networks.blocks.segresnet_block.ResBlock",
        ("a51fcb6bf07a96d54752f33218b40862118d22bcbb849b07d57308c4a6a8936b",),  # monai 1.6.1
        fusions=(Fusion(("norm1", "norm2"), "act"),),
    ),
    # The activation is applied to the time embedding [N, C], too. That is added to the input of
    # norm2 as linear(...)[:, :, None, None]: of any other rank the sum would be nothing for conv2.
    KnownBlock(
        "diffusers.models.resnet.ResnetBlock2D",
        ("e3f38e1722955caf8219056735b2d67adfdc670553e701714bc47f4dac1a31e7",),  # diffusers 0.42.1
        condition=lambda block: block.time_embedding_norm != "scale_shift",  # of norm2's result
        fusions=(Fusion(("norm1", "norm2"), "nonlinearity", side_rank=2),),
    ),
    KnownBlock(
        "diffusers.models.unets.unet_2d.UNet2DModel",
        ("7e9aa184bf0790d8cb873824539f0026d0745c9899d37192655675a1d8913aa8",),  # diffusers 0.42.1
        fusions=(Fusion(("conv_norm_out",), "conv_act"),),
    ),
    KnownBlock(
        "diffusers.models.autoencoders.vae.Encoder",
        ("cf4410532c9ebdd52968259d4663dbda6abba6fc6cf15d190d8f7545792703dc",),  # diffusers 0.42.1
        fusions=(Fusion(("conv_norm_out",), "conv_act"),),
    ),
    KnownBlock(
        "diffusers.models.autoencoders.vae.Decoder",
        ("be96bf1aec1d895a8af9bc0167c2d528aa57c382f558964cc4405a1e4c1db14c",),  # diffusers 0.42.1
        fusions=(Fusion(("conv_norm_out",), "conv_act"),),
    ),
    KnownBlock(
        "timm.models.resnet.ResNet",
        ("640928a1a1a496685c57f8ec0f40e24208552b89c14a98304e25a52ed9b8e4fb",),  # timm 1.0.31
        methods=("forward", "forward_features", "forward_intermediates"),
        fusions=(Fusion(("bn1",), "act1"),),
    ),
    KnownBlock(
        "timm.models.resnet.Bottleneck",
        ("6d62f9e26235e2c6f5fc2c5f607925e67c8add841f3ac6895b7af5703ab00dd2",),  # timm 1.0.31
        fusions=(Fusion(("bn1",), "act1"), Fusion(("bn2",), "act2", through=("drop_block",))),
    ),
)
_NORMS = (
    KnownNorm(
        "timm.layers.norm.GroupNorm",
        ("78a98bbc815290f64b76fdb5536c4ffd086479472e34652c5d2a48442aa45a84",),  # timm 1.0.31
        condition=_not_fast,
    ),
    KnownNorm(
        "timm.layers.norm.GroupNorm1",
        ("1e1c9e4e3bea4071fc4bf0ffeec0923e29cabe8e7b2ada811bee40fb9cd977c0",),  # timm 1.0.31
        condition=_not_fast,
    ),
    KnownNorm(
        "timm.layers.norm_act.GroupNormAct",
        ("754cf6d04891143c96d9da71e125199be456e58e636d0b32cba0ae03f6bcbb3f",),  # timm 1.0.31
        condition=_not_fast,
        activated=True,
    ),
)
BLOCKS = {row.name: row for row in _BLOCKS}
NORMS = {row.name: row for row in _NORMS}


def class_name(module: nn.Module) -> str:
    """What the tables know the class of a module by."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def difference(module: nn.Module, row: Known) -> str | None:
    """What keeps a row from holding for an instance of its class; None where it holds."""
    methods = tuple(getattr(type(module), name, None) for name in row.methods)
    if any(name in module.__dict__ for name in row.methods) or _digest(methods) not in row.digests:
        return "a version of its forward that is not known"
    return None if row.condition(module) else "settings for which its forward is not known"


@functools.lru_cache(maxsize=256)
def _digest(methods: tuple[Any, ...]) -> str | None:
    if not all(isinstance(method, FunctionType) for method in methods):
        return None
    try:
        # Of their code: the source of a function is that of what it wraps.
        text = "".join(inspect.getsource(method.__code__) for method in methods)
    except OSError:
        return None
    return hashlib.sha256(text.encode()).hexdigest()
