"""Blocks of other packages whose forward is known: read by people, told by its digest.

A row holds for instances of exactly that class with one of these versions of its methods. What
another version does is not guessed at: nothing is fused then. To add a version, read it first.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

from torch import nn


class Fusion(NamedTuple):
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
class KnownBlock:
    """A class of modules that hold norms and the activations after them.

    Attributes:
        name: its module and qualified name.
        digests: SHA-256 of the source of its methods, one for each version.
        fusions: what its forward does with its norms.
        methods: forward, and what it calls of the block itself.
        condition: what must hold for an instance.
    """

    name: str
    digests: tuple[str, ...]
    fusions: tuple[Fusion, ...]
    methods: tuple[str, ...] = ("forward",)
    condition: Callable[[Any], bool] = lambda block: True


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
        ("e257d4e02c6f973a1fadaeed21b503d32d882aaa52805e5bc08e2200b3875efa",),  # timm 1.0.31
        methods=("forward", "forward_features"),
        fusions=(Fusion(("bn1",), "act1"),),
    ),
    KnownBlock(
        "timm.models.resnet.Bottleneck",
        ("6d62f9e26235e2c6f5fc2c5f607925e67c8add841f3ac6895b7af5703ab00dd2",),  # timm 1.0.31
        fusions=(Fusion(("bn1",), "act1"), Fusion(("bn2",), "act2", through=("drop_block",))),
    ),
)
BLOCKS = {row.name: row for row in _BLOCKS}


def class_name(cls: type[nn.Module]) -> str:
    """What the table knows a class by."""
    return f"{cls.__module__}.{cls.__qualname__}"


def difference(block: nn.Module, cls: type[nn.Module], row: KnownBlock) -> str | None:
    """What keeps a row from holding for an instance of its class; None where it holds."""
    methods = tuple(getattr(cls, name, None) for name in row.methods)
    if any(name in block.__dict__ for name in row.methods) or _digest(methods) not in row.digests:
        return "a version of its forward that is not known"
    return None if row.condition(block) else "settings for which its forward is not known"


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
