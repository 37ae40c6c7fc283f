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
    """What a block computes around some norms, which nothing else sees the results of.

    Attributes:
        norms: attributes of the norms.
        activation: attribute of the activation that takes their results; it may take others, too.
        neighbours: what is added to them or to their inputs besides (see Neighbours).
        through: modules between a norm and the rest; they must be nn.Identity.
        absent: what else could be between; it must be None.
        projection: attribute of the linear layer that gives shift or scale_shift.
        when: what must hold for an instance.
    """

    norms: tuple[str, ...]
    activation: str | None = None
    neighbours: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    projection: str | None = None
    when: Callable[[Any], bool] = lambda block: True

    def alone(self) -> "Fusion | None":
        """Without neighbours; None where one stands between norm and activation."""
        if {"residual", "scale_shift"} & set(self.neighbours):
            return None
        return self._replace(neighbours=(), projection=None)


@dataclass(frozen=True)
class KnownBlock:
    """A class of modules that hold norms and the activations after them.

    Attributes:
        name: its module and qualified name.
        digests: SHA-256 of the source of its methods, one for each version.
        fusions: what its forward does with its norms.
        methods: forward, and what it calls of the block itself.
    """

    name: str
    digests: tuple[str, ...]
    fusions: tuple[Fusion, ...]
    methods: tuple[str, ...] = ("forward",)


def _last(norm: str) -> Fusion:
    """The last norm of a block of EfficientNet: its result and the shortcut are added."""
    return Fusion(
        (norm,),
        neighbours=("residual",),
        through=("drop_path",),
        when=lambda block: bool(block.has_skip),
    )


_BLOCKS = (
    KnownBlock(
        "monai.networks.blocks.segresnet_block.ResBlock",
        ("a51fcb6bf07a96d54752f33218b40862118d22bcbb849b07d57308c4a6a8936b",),  # monai 1.6.1
        fusions=(Fusion(("norm1", "norm2"), "act"),),
    ),
    KnownBlock(
        "diffusers.models.resnet.ResnetBlock2D",
        ("e3f38e1722955caf8219056735b2d67adfdc670553e701714bc47f4dac1a31e7",),  # diffusers 0.42.1
        fusions=(
            Fusion(("norm1",), "nonlinearity"),
            Fusion(
                ("norm2",),
                "nonlinearity",
                ("shift",),
                projection="time_emb_proj",
                when=lambda block: block.time_embedding_norm != "scale_shift",
            ),
            Fusion(
                ("norm2",),
                "nonlinearity",
                ("scale_shift",),
                projection="time_emb_proj",
                when=lambda block: block.time_embedding_norm == "scale_shift",
            ),
        ),
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
        "timm.models.resnet.BasicBlock",
        ("71ec36ab9b7237a2040f533a58c64eb44eb67db4a4f62c1f0b6e13cc3fb92b23",),  # timm 1.0.31
        fusions=(
            Fusion(("bn1",), "act1", through=("drop_block",)),
            Fusion(("bn2",), "act2", ("residual",), absent=("se", "drop_path")),
        ),
    ),
    KnownBlock(
        "timm.models.resnet.Bottleneck",
        ("6d62f9e26235e2c6f5fc2c5f607925e67c8add841f3ac6895b7af5703ab00dd2",),  # timm 1.0.31
        fusions=(
            Fusion(("bn1",), "act1"),
            Fusion(("bn2",), "act2", through=("drop_block",)),
            Fusion(("bn3",), "act3", ("residual",), absent=("se", "drop_path")),
        ),
    ),
    KnownBlock(
        "timm.models._efficientnet_blocks.DepthwiseSeparableConv",
        ("9933da8dd03375d407181a3524a490c287ef3a664519c08759413359a1fd2187",),  # timm 1.0.31
        fusions=(_last("bn2"),),
    ),
    KnownBlock(
        "timm.models._efficientnet_blocks.InvertedResidual",
        ("79b9321db3aa7ecf2886516c56cb5ee094b486beb1e44c68ecb79e9842eda8be",),  # timm 1.0.31
        fusions=(_last("bn3"),),
    ),
    KnownBlock(
        "timm.models._efficientnet_blocks.EdgeResidual",
        ("2493bbc00ebc551d78accf670e65b614dd533c6b5776874a7817a0164f63f038",),  # timm 1.0.31
        fusions=(_last("bn2"),),
    ),
    KnownBlock(
        "torchvision.models.resnet.BasicBlock",
        ("5149f5a6ca0ed162615ddd79b90804b855b52f1d10eccb823f82b58ff210df0e",),  # torchvision 0.29
        fusions=(Fusion(("bn1",), "relu"), Fusion(("bn2",), "relu", ("residual",))),
    ),
    KnownBlock(
        "torchvision.models.resnet.Bottleneck",
        ("d92f494e60f1c0fa1a193d69d6bc92974d09fee9ab427c5c55914ef7234987a1",),  # torchvision 0.29
        fusions=(Fusion(("bn1", "bn2"), "relu"), Fusion(("bn3",), "relu", ("residual",))),
    ),
    KnownBlock(
        "monai.networks.nets.resnet.ResNetBlock",
        ("f3be58c3ff01022ed9f1ca00f68383e5e4d57472664a6c62e0fc25fea3fda0cc",),  # monai 1.6.1
        fusions=(Fusion(("bn1",), "act"), Fusion(("bn2",), "act", ("residual",))),
    ),
    KnownBlock(
        "monai.networks.nets.resnet.ResNetBottleneck",
        ("5e341b9c2e5bebd8c551dff25ddb5cd2e3bdaa19c6a57ded48ffcb70f85567f9",),  # monai 1.6.1
        fusions=(Fusion(("bn1", "bn2"), "act"), Fusion(("bn3",), "act", ("residual",))),
    ),
    KnownBlock(
        "monai.networks.blocks.dynunet_block.UnetBasicBlock",
        ("419afe831eb6b38b5fa4cf813bc712fe69bca743b10d8b74d4ea77cf0ad74ff2",),  # monai 1.6.1
        fusions=(Fusion(("norm1", "norm2"), "lrelu"),),
    ),
    KnownBlock(
        "monai.networks.blocks.dynunet_block.UnetResBlock",
        ("120a1fc252157b43466d6ebf9420af43344a518293e2a9ed19e07fba9cdef4e2",),  # monai 1.6.1
        fusions=(Fusion(("norm1",), "lrelu"), Fusion(("norm2",), "lrelu", ("residual",))),
    ),
    KnownBlock(
        "monai.networks.nets.diffusion_model_unet.DiffusionUNetResnetBlock",
        ("40622b31a35fb4627e3ffc04c7e4b8eebd0f100701ab531a61804631bdfebc1e",),  # monai 1.6.1
        fusions=(
            Fusion(("norm1",), "nonlinearity"),
            Fusion(("norm2",), "nonlinearity", ("shift",), projection="time_emb_proj"),
        ),
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
    return None


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
