"""The methods of norms.pte, for the script that writes it and the tests that read it.

A method computes y, mean and rstd of native_group_norm in 4 groups of 8 channels, or, of the shapes
in AXES, of native_layer_norm. Its name is made of
its dtype, its shape, its parameters and, for data that lie channels last, `last`. Three more
have names of their own: EARLY is as PLAIN, NEGATIVE has an eps below 0, and "net" is a small model.
"""

import math
import pathlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PATH = pathlib.Path(__file__).parent / "norms.pte"
CHANNELS, GROUPS, EPS = 8, 4, 1e-5
DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the rank
SHAPES = {
    "2d": (3, CHANNELS),
    "3d": (2, CHANNELS, 7),
    "4d": (2, CHANNELS, 5, 7),
    "5d": (2, CHANNELS, 3, 4, 5),
    "6d": (1, CHANNELS, 2, 3, 2, 3),
    "any": (4, CHANNELS, 128, 128),  # N, H and W are at most so large
    "one": (2, CHANNELS, 1, 1),
    "batch0": (0, CHANNELS, 5, 7),
    "height0": (2, CHANNELS, 0, 7),
    "row": (CHANNELS,),
    "rows": (2, 5, CHANNELS),
    "planes": (3, 2, 4, CHANNELS),
    "rows0": (2, 0, CHANNELS),
}
AXES = {"row": 1, "rows": 1, "planes": 2, "rows0": 1}  # of a layer norm, the last ones
PARAMETERS = ("both", "weight", "bias", "none", "wide")  # wide: both, in f32


@dataclass(frozen=True)
class Kind:
    """A method."""

    dtype: str
    shape: str
    parameters: str
    last: bool

    @property
    def name(self) -> str:
        return "_".join([self.dtype, self.shape, self.parameters, *["last"] * self.last])

    @property
    def axes(self) -> int:
        """Over how many the layer norm goes; 0: it is a group norm."""
        return AXES.get(self.shape, 0)

    def x(self, mean: float = 0, seed: int = 0, shape: tuple[int, ...] | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(shape or SHAPES[self.shape], generator=generator, dtype=torch.float64)
        x = (x + mean).to(DTYPES[self.dtype])
        return x.contiguous(memory_format=LAST[x.dim()]) if self.last else x

    def weight(self) -> Tensor | None:
        return self._parameter(1.25, "weight")

    def bias(self) -> Tensor | None:
        return self._parameter(-0.5, "bias")

    def _parameter(self, first: float, name: str) -> Tensor | None:
        if self.parameters not in (name, "both", "wide"):
            return None
        dtype = torch.float32 if self.parameters == "wide" else DTYPES[self.dtype]
        shape = SHAPES[self.shape][-self.axes :] if self.axes else (CHANNELS,)
        return first + torch.arange(math.prod(shape), dtype=dtype).reshape(shape) / 8  # is exact


PLAIN, EARLY, NEGATIVE = Kind("f32", "4d", "none", last=False), "early", "negative"
VOLUME = Kind("f32", "5d", "none", last=True)  # which the runtime takes from C++ alone


def kinds() -> list[Kind]:
    found = [
        Kind(dtype, "4d", parameters, last)
        for dtype in DTYPES
        for parameters in PARAMETERS
        for last in (False, True)
        if parameters != "wide" or dtype in ("f16", "bf16")
    ]
    found += [Kind("f32", shape, "both", False) for shape in SHAPES if shape != "4d"]
    found += [Kind(dtype, "rows", "both", False) for dtype in DTYPES]
    found += [Kind("f32", "rows", parameters, False) for parameters in ("weight", "bias", "none")]
    # ExecuTorch knows no empty tensor that lies channels last.
    found += [Kind("f32", shape, "both", True) for shape in ("any", "one")]
    found += [VOLUME]
    return list(dict.fromkeys(found))


def net() -> nn.Module:
    """A convolution, a norm, an activation and a convolution, with the same weights each time."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, CHANNELS, 3), nn.GroupNorm(GROUPS, CHANNELS), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(CHANNELS, 2, 3)).eval()
