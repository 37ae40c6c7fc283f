"""The engine in place of torch's group, instance and layer normalization on CPUs.

    import groupnorm.torch
    groupnorm.torch.replace_group_norm_(model)

Same modules, same state_dict, same memory formats; forward and backward, torch.compile and
torch.export. Calls run on torch's own threads.
"""

from . import export as export  # what it registers
from . import functional
from .modules import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm
from .replace import (
    Report,
    batch_norm_to_group_norm_,
    replace_group_norm_,
    restore_group_norm_,
)

__all__ = [
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "Report",
    "batch_norm_to_group_norm_",
    "functional",
    "replace_group_norm_",
    "restore_group_norm_",
]
