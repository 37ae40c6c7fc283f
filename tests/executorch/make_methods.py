"""Writes norms.pte, the methods of kinds.py, by torch 2.13, executorch 1.5.1 and torchao 0.18.

python tests/executorch/make_methods.py
"""

import math

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from kinds import EARLY, EPS, GROUPS, NEGATIVE, PATH, PLAIN, Kind, kinds, net
from torch import Tensor, nn


class Norm(nn.Module):
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, kind: Kind, eps: float) -> None:
        super().__init__()
        self.eps, self.axes = eps, kind.axes
        self.register_buffer("weight", kind.weight())
        self.register_buffer("bias", kind.bias())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.axes:
            row = x.shape[-self.axes :]
            return torch.native_layer_norm(x, row, self.weight, self.bias, self.eps)
        n, c, s = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        return torch.native_group_norm(x, self.weight, self.bias, n, c, s, GROUPS, self.eps)


def export(kind: Kind, eps: float = EPS) -> torch.export.ExportedProgram:
    dynamic = None
    if kind.shape == "any":
        sizes = {0: (1, 4), 2: (1, 128), 3: (1, 128)}
        dynamic = ({i: torch.export.Dim(f"d{i}", min=a, max=b) for i, (a, b) in sizes.items()},)
    return torch.export.export(Norm(kind, eps), (kind.x(),), dynamic_shapes=dynamic)


programs = {kind.name: export(kind) for kind in kinds()}
programs[EARLY] = export(PLAIN)
programs[NEGATIVE] = export(PLAIN, eps=-0.5)
programs["net"] = torch.export.export(net().eval(), (torch.zeros(1, 3, 16, 16),))
lowered = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()])
PATH.write_bytes(lowered.to_executorch().buffer)
