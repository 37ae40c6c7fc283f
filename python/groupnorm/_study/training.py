"""One run: a network learns to read digits."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import torch as ours
from .data import Images
from .network import NETWORKS, make_norm

RATE_BATCH = 32  # the learning rate is in proportion to the batch, as in the paper
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
_ONEDNN_BATCH = 16  # from here on its faster convolutions make up for what a call of it costs
_TEST_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Run:
    """What decides the numbers of a run, beside versions and machine."""

    data: str
    images: int  # for training
    network: str
    norm: str
    groups: int | None  # of GN: this, or `channels`
    channels: int | None  # a group
    rate: float  # of learning, at batch 32
    batch: int
    epochs: int
    seed: int  # of the weights and of the order of images

    @property
    def text(self) -> str:
        size = f" G={self.groups}" if self.groups else f" {self.channels} channels a group"
        norm = self.norm + (size if self.norm == "GN" else "")
        return f"{self.network} {norm}, batch {self.batch}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A value an epoch."""

    errors: list[float]  # of the test, in percent
    losses: list[float | None]  # the mean over the epoch's steps; None where it is not finite


@contextlib.contextmanager
def convolutions(batch: int) -> Iterator[None]:
    """Chooses the faster of torch's two ways to convolve a batch of that size."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32")  # of GPUs, on every use of the flags
        with torch.backends.mkldnn.flags(enabled=batch >= _ONEDNN_BATCH):
            yield


@contextlib.contextmanager
def engine() -> Iterator[None]:
    """Group normalization on groupnorm beneath torch's autograd, where this torch allows that."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(RuntimeError):
            stack.enter_context(ours.override())
        yield


def optimizer_of(model: nn.Module, rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(),
        lr=rate,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step of gradient descent on x [n, 1, side, side], y [n]; the loss before it."""
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _test_error(model: nn.Module, images: Images) -> float:
    model.eval()
    with torch.no_grad():
        answers = [model(x).argmax(1) for x in images.test_x.split(_TEST_BATCH)]
    wrong = torch.cat(answers) != images.test_y
    model.train()
    return round(100 * wrong.double().mean().item(), 4)


@engine()
def train(run: Run, images: Images) -> Outcome:
    """Trains and tests: `run.epochs` times all training images, in whole batches."""
    torch.manual_seed(run.seed)
    model = NETWORKS[run.network](images.side, make_norm(run.norm, run.groups, run.channels))
    optimizer = optimizer_of(model, run.rate * run.batch / RATE_BATCH)
    batches = len(images.train_x) // run.batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.epochs * batches)
    errors, losses = [], []
    for _ in range(run.epochs):
        order = torch.randperm(batches * run.batch)
        total = torch.zeros((), dtype=torch.float64)
        with convolutions(run.batch):
            for chosen in order.split(run.batch):
                total += step(model, optimizer, images.train_x[chosen], images.train_y[chosen])
                schedule.step()
        loss = total.item() / batches
        losses.append(round(loss, 6) if math.isfinite(loss) else None)
        errors.append(_test_error(model, images))
    return Outcome(errors, losses)
