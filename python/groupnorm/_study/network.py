"""The two networks of the study, with a norm of choice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import torch as ours

CLASSES = 10
WIDTH = 16  # channels of the first layer; the last has 4 times as many

MakeNorm = Callable[[int], nn.Module]  # of a number of channels


def make_norm(norm: str, groups: int | None = None, channels: int | None = None) -> MakeNorm:
    """A norm of each layer: 'BN', 'GN', 'LN' (over C, H, W) or 'IN'.

    Of GN, a layer has `groups` groups, or groups of `channels` channels: as many as it has
    channels, or one, where it has too few. BN is torch's; all others are this library's.
    """

    def groups_of(c: int) -> int:
        return min(c, groups) if groups is not None else max(1, c // (channels or 1))

    makers: dict[str, MakeNorm] = {
        "BN": nn.BatchNorm2d,
        "GN": lambda c: ours.GroupNorm(groups_of(c), c),
        "LN": lambda c: ours.GroupNorm(1, c),
        # InstanceNorm2d refuses a single position, which the last layers of Residual have.
        "IN": lambda c: ours.GroupNorm(c, c),
    }
    return makers[norm]


def _convolution(c_in: int, c_out: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    convolution = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    return convolution


class _Block(nn.Module):
    """Two convolutions beside a shortcut (He et al., arXiv:1512.03385): [N, C, H, W]."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: MakeNorm) -> None:
        super().__init__()
        self.conv1, self.norm1 = _convolution(c_in, c_out, stride), norm(c_out)
        self.conv2, self.norm2 = _convolution(c_out, c_out), norm(c_out)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else _convolution(c_in, c_out, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Sequential):
    """Nine norms; each block halves the side until one position is left.

    x [N, 1, side, side] -> logits [N, 10].
    """

    def __init__(self, side: int, norm: MakeNorm, width: int = WIDTH) -> None:
        stride = 2 if side > 16 else 1
        side = -(-side // stride)
        layers = [_convolution(1, width, stride), norm(width), nn.ReLU()]
        c = width
        for c_out in (width, 2 * width, 4 * width, 4 * width):
            stride = 2 if side > 1 else 1
            layers.append(_Block(c, c_out, stride, norm))
            side, c = -(-side // stride), c_out
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, CLASSES))


class Plain(nn.Sequential):
    """Two norms, on all positions of the image and on a quarter of them.

    x [N, 1, side, side] -> logits [N, 10].
    """

    def __init__(self, side: int, norm: MakeNorm, width: int = WIDTH) -> None:
        super().__init__(
            *(_convolution(1, width), norm(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(_convolution(width, 2 * width), norm(2 * width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(2 * width * (side // 4) ** 2, CLASSES)),
        )


NETWORKS: dict[str, type[Residual] | type[Plain]] = {"residual": Residual, "plain": Plain}


class _Recorder(nn.Module):
    def __init__(self, into: list[int]) -> None:
        super().__init__()
        self._into = into

    def forward(self, x: Tensor) -> Tensor:
        self._into.append(x.shape[2] * x.shape[3])
        return x


def positions_of(network: str, side: int) -> list[int]:
    """Over how many positions of a channel each norm goes, in order: times N, BN's m."""
    found: list[int] = []
    model = NETWORKS[network](side, lambda c: _Recorder(found))
    model(torch.zeros(1, 1, side, side))
    return found
