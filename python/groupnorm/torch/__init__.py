"""The engine in place of torch's group, instance and layer normalization on CPUs.

    import groupnorm.torch
    groupnorm.torch.enable()                      # torch's own group norm runs it, in any model
    groupnorm.torch.replace_group_norm_(model)    # or: a model's norms, with activations fused

Same modules, same state_dict; forward, derivatives of any order, torch.func, torch.compile and
torch.export. y and dx lie in the memory format that torch suggests for x. Calls run on torch's own
threads.

A compiled or exported program calls the operators ``torch.ops.groupnorm``. Import groupnorm.torch
before torch.export.load or torch.jit.load of one, which else fail with "Unknown builtin op" or "no
such operator"; torch.package and pickles of modules import it by themselves.
"""

from . import export as export  # what it registers
from . import functional
from ._neighbours import Neighbours
from ._override import disable, enable, enabled, override
from .modules import GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, LayerNorm, RMSNorm
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
    "Neighbours",
    "RMSNorm",
    "Report",
    "batch_norm_to_group_norm_",
    "disable",
    "enable",
    "enabled",
    "functional",
    "override",
    "replace_group_norm_",
    "restore_group_norm_",
]
