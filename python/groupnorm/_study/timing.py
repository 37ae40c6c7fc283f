"""What a training step costs with each norm, in turns."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from .network import CLASSES, WIDTH, MakeNorm, Residual, make_norm
from .plan import GROUPS
from .training import convolutions, engine, optimizer_of, step


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A norm, and where its steps run."""

    norm: MakeNorm
    within: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext


CONTESTANTS: dict[str, Contestant] = {
    "none": Contestant(lambda c: nn.Identity()),
    "BN, torch": Contestant(nn.BatchNorm2d),
    "GN, torch": Contestant(lambda c: nn.GroupNorm(min(GROUPS, c), c)),
    "GN, groupnorm": Contestant(make_norm("GN", groups=GROUPS), engine),
}
_TURN = 3  # steps that count, after one that settles caches
_FEWEST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A residual network on images of one size."""

    batch: int
    side: int
    width: int = WIDTH

    @property
    def text(self) -> str:
        return f"batch {self.batch}, {self.side}x{self.side}, from {self.width} channels"


CASES = (Case(2, 28), Case(8, 28), Case(32, 28), Case(4, 56, 64))


@dataclasses.dataclass(frozen=True)
class Times:
    """Median milliseconds of a step by contestant, and over how many steps of each."""

    case: Case
    milliseconds: dict[str, float]
    steps: int

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Times":
        """Of what dataclasses.asdict made of it."""
        return cls(Case(**row["case"]), row["milliseconds"], row["steps"])


def _player(case: Case, norm: MakeNorm) -> Callable[[], object]:
    torch.manual_seed(0)
    model = Residual(case.side, norm, case.width)
    optimizer = optimizer_of(model, rate=0.0)  # the work is the same however long it goes on
    x = torch.randn(case.batch, 1, case.side, case.side)
    y = torch.randint(CLASSES, (case.batch,))
    return lambda: step(model, optimizer, x, y)


def _turn(name: str, play: Callable[[], object], into: list[float]) -> None:
    with CONTESTANTS[name].within():
        play()
        for _ in range(_TURN):
            start = time.process_time()  # of one thread: others of the machine disturb it less
            play()
            into.append(1e3 * (time.process_time() - start))


def measure(case: Case, seconds: float) -> Times:
    """Times everyone once a round until the time is over."""
    players = {name: _player(case, each.norm) for name, each in CONTESTANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in players}
    with convolutions(case.batch):
        for name, play in players.items():
            _turn(name, play, [])
        end, rounds = time.monotonic() + seconds, 0
        while rounds < _FEWEST_ROUNDS or time.monotonic() < end:
            for name, play in players.items():
                _turn(name, play, times[name])
            rounds += 1
    return Times(
        case, {name: round(statistics.median(t), 4) for name, t in times.items()}, rounds * _TURN
    )
