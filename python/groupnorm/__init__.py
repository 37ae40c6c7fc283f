"""Group normalization and its family on CPUs, for NumPy arrays and others that support DLPack.

    >>> y = groupnorm.group_norm(x, num_groups=32, weight=gamma, bias=beta, activation="silu")

Functions with their gradients, layers that keep their parameters, and groupnorm.torch for PyTorch.
"""

from typing import Any, NamedTuple

from . import _core
from ._arrays import as_integer
from ._core import ACTIVATIONS, DTYPES, LAYOUTS
from ._engine import get_num_threads, set_num_threads
from ._functional import (
    batch_norm,
    batch_norm_backward,
    group_norm,
    group_norm_backward,
    instance_norm,
    instance_norm_backward,
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from ._layers import (
    BatchNormalization,
    GroupNormalization,
    InstanceNormalization,
    LayerNormalization,
    Normalization,
    RmsNormalization,
)
from ._neighbours import NeighbourGradients, Neighbours
from ._pieces import (
    GradientSums,
    Moments,
    gradient_sums,
    moments,
    normalize,
    normalize_backward,
)

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "LAYOUTS",
    "BatchNormalization",
    "GradientSums",
    "GroupNormalization",
    "GroupSuggestion",
    "InstanceNormalization",
    "LayerNormalization",
    "Moments",
    "NeighbourGradients",
    "Neighbours",
    "Normalization",
    "RmsNormalization",
    "__version__",
    "batch_norm",
    "batch_norm_backward",
    "get_num_threads",
    "gradient_sums",
    "group_norm",
    "group_norm_backward",
    "info",
    "instance_norm",
    "instance_norm_backward",
    "layer_norm",
    "layer_norm_backward",
    "moments",
    "normalize",
    "normalize_backward",
    "rms_norm",
    "rms_norm_backward",
    "set_num_threads",
    "suggest_groups",
]

__version__ = _core.version()


class GroupSuggestion(NamedTuple):
    """What suggest_groups returns."""

    groups: int
    channels_per_group: int
    reason: str


def suggest_groups(channels: int) -> GroupSuggestion:
    """Suggests a number of groups by the defaults of arXiv:1803.08494.

    32 groups where 32 divides the channels; else the divisor nearest to 16 channels a group, the
    larger of two equally near.

    Raises:
        TypeError: channels is not an integer.
        ValueError: channels is less than 1.
    """
    return GroupSuggestion(*_core.suggest_groups(as_integer("channels", channels)))


def info() -> dict[str, Any]:
    """Returns what runs here.

    "version"; "targets", the instruction sets of this machine, best first; "target", the one in
    use (None where GROUPNORM_TARGET names none of them); "threads", how many a call may use.
    """
    return {
        "version": __version__,
        "targets": _core.targets(),
        "target": _core.active_target(),
        "threads": get_num_threads(),
    }
