"""Denoising a real MR volume (data/README.md) in 3-D, with group norm at batches of one or two.

    python examples/denoise_mr.py [--batch 1] [--steps 300] [--data data] [--output denoised.png]

A small network learns from blocks of 16 slices of a head, to which noise is added anew in each
step, to take it away. It is then given the other 8 slices with noise, which it has never seen.
Batches of a volume are small because a volume is large: BN would have the statistics of one or two
blocks to go by, GN takes each block's own. All norms are groupnorm's, with the ReLU fused.

The scan stands for the truth here. It has noise of its own, which nobody can tell from it, so a
result that were better than the scan would count as an error. Needs torch and matplotlib.
"""

import argparse
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

import groupnorm.torch

TRAINING_SLICES = 16  # of 24; the others are the test
BLOCK = (8, 32, 32)  # slices, rows and columns that the network sees at once
NOISE = 0.5  # its deviation, in deviations of the volume
WIDTH, GROUPS = 12, 4


def convolution(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """3x3x3, GN and the ReLU that GN has fused: [N, C, slices, rows, columns]."""
    return nn.Sequential(
        nn.Conv3d(c_in, c_out, 3, stride, padding=1, bias=False),
        groupnorm.torch.GroupNorm(GROUPS, c_out, activation="relu"),
    )


def neighbours(x: Tensor) -> Tensor:
    """x [N, 1, slices, rows, columns] -> [N, 27, ...]: each voxel with those around it."""
    sizes = x.shape[2:]
    around = functional.pad(x, (1,) * 6, mode="replicate")
    return torch.cat(
        [
            around[:, :, i : i + sizes[0], j : j + sizes[1], k : k + sizes[2]]
            for i, j, k in itertools.product(range(3), repeat=3)
        ],
        dim=1,
    )


class Network(nn.Module):
    """x [N, 1, slices, rows, columns], of even sizes -> x without noise, in the same shape.

    It chooses for each voxel the weights of a mean of 3x3x3 (as kernel-predicting networks do).
    GN takes a block's scale away; a mean of x has it still.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fine = convolution(1, WIDTH)
        self.coarse = nn.Sequential(
            convolution(WIDTH, 2 * WIDTH, stride=2),
            convolution(2 * WIDTH, 2 * WIDTH),
            nn.Conv3d(2 * WIDTH, WIDTH, 1),
            nn.Upsample(scale_factor=2),
        )
        logits = nn.Conv3d(WIDTH, 27, 1)
        nn.init.zeros_(logits.weight)  # it begins with equal weights, or nearly
        self.weights = nn.Sequential(convolution(WIDTH, WIDTH), logits)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        weights = self.weights(fine + self.coarse(fine)).softmax(1)
        return (weights * neighbours(x)).sum(1, keepdim=True)


def blocks(volume: Tensor, count: int) -> Tensor:
    """[count, 1, *BLOCK] from anywhere in a volume [slices, rows, columns]."""
    chosen = []
    for _ in range(count):
        lows = [
            int(torch.randint(size - length + 1, ()))
            for size, length in zip(volume.shape, BLOCK, strict=True)
        ]
        place = tuple(slice(low, low + size) for low, size in zip(lows, BLOCK, strict=True))
        chosen.append(volume[place])
    return torch.stack(chosen)[:, None]


def train(model: nn.Module, volume: Tensor, batch: int, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        clean = blocks(volume, batch)
        optimizer.zero_grad()
        loss = functional.mse_loss(model(clean + NOISE * torch.randn_like(clean)), clean)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(
                f"step {step}: {loss.item() / NOISE**2:.3f} of the noise's power is left",
                flush=True,
            )


def decibels(volume: Tensor, clean: Tensor) -> float:
    """The peak signal-to-noise ratio."""
    error = functional.mse_loss(volume, clean).item()
    return 10 * math.log10(clean.max().item() ** 2 / error)


def draw(volumes: dict[str, Tensor], path: Path) -> None:
    """The middle slice of each, on one scale."""
    figure = Figure(figsize=(3.2 * len(volumes), 2.9), layout="constrained")
    middle = next(iter(volumes.values())).shape[0] // 2
    limits = [float(v) for v in (volumes["scan"].min(), volumes["scan"].max())]
    for axes, (title, volume) in zip(
        figure.subplots(1, len(volumes)), volumes.items(), strict=True
    ):
        axes.imshow(volume[middle].numpy(), cmap="gray", vmin=limits[0], vmax=limits[1])
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, choices=(1, 2), default=2, help="blocks a step")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("denoised.png"), metavar="PNG")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps: must be at least 1; got {options.steps}")
    if not options.output.parent.is_dir():
        parser.error(f"--output: '{options.output.parent}' is not a directory")

    scan = torch.from_numpy(np.load(options.data / "mr_head.npy")[0])
    scan = (scan - scan.mean()) / scan.std()
    torch.manual_seed(0)
    model = Network()
    train(model, scan[:TRAINING_SLICES], options.batch, options.steps)

    clean = scan[TRAINING_SLICES:]
    noisy = clean + NOISE * torch.randn_like(clean)
    with torch.no_grad():
        denoised = model(noisy[None, None])[0, 0]
    smooth = functional.avg_pool3d(noisy[None], 3, 1, padding=1, count_include_pad=False)[0]
    before, after, mean = (decibels(each, clean) for each in (noisy, denoised, smooth))
    print(
        f"test slices: {before:.1f} dB with noise, {after:.1f} dB denoised, {mean:.1f} dB by 3x3x3 means"
    )
    draw(
        {
            "scan": clean,
            f"with noise, {before:.1f} dB": noisy,
            f"denoised, {after:.1f} dB": denoised,
        },
        options.output,
    )
    print(f"wrote {options.output}")
    return 0 if after > before else 1


if __name__ == "__main__":
    sys.exit(main())
