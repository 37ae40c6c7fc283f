"""What training pays for group normalization: torch's kernels against groupnorm.torch.enable.

    python bench/training.py                    # every case, on one thread and on two
    python bench/training.py --quick            # does it run
    python bench/training.py --json docs/results/training.json    # then bench/report.py

Chains of norms, forward and backward, a layer each; and steps of the study's networks (forward,
backward, SGD). The same tensors in turns, round by round, so that all meet the same machine; the
ratio is the median of the rounds' ratios. One thread is timed by the processor time of the process,
which other processes of the machine disturb less than the clock.
"""

import argparse
import contextlib
import gc
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import torch
from groupnorm._core import processor
from report import training_table
from torch import Tensor, nn
from torch.nn import functional

import groupnorm.torch
from groupnorm._cli.machine import keep_freed_memory
from groupnorm._study.network import NETWORKS
from groupnorm._study.training import convolutions, optimizer_of, step
from groupnorm.torch import functional as ours

Norm = Callable[[Tensor, int, Tensor, Tensor], Tensor]
Within = Callable[[], AbstractContextManager[None]]

CHAINS = (  # shape, groups, norms behind each other
    ((1, 32, 8, 8), 8, 20),
    ((8, 512), 32, 20),
    ((2, 64, 56, 56), 32, 8),
    ((16, 32, 64, 64), 8, 2),
)
BATCHES = (1, 2, 8, 32)
SIDE, GROUPS = 28, 8


@dataclass(frozen=True)
class Way:
    """One of those that are timed."""

    name: str
    norm: Norm
    module: Callable[[int], nn.Module]
    within: Within = contextlib.nullcontext


WAYS = (
    Way("torch", functional.group_norm, lambda c: nn.GroupNorm(GROUPS, c)),
    Way(
        "enabled",
        functional.group_norm,
        lambda c: nn.GroupNorm(GROUPS, c),
        groupnorm.torch.override,
    ),
    Way(
        "groupnorm.torch, enabled",
        ours.group_norm,
        lambda c: groupnorm.torch.GroupNorm(GROUPS, c),
        groupnorm.torch.override,
    ),
    Way("groupnorm.torch", ours.group_norm, lambda c: groupnorm.torch.GroupNorm(GROUPS, c)),
)


@dataclass
class Result:
    """Microseconds of one layer or step, and the ratio to the first way."""

    case: str
    threads: int
    way: str
    median: float
    least: float
    ratio: float
    rounds: int


Play = Callable[[], object]


def chain(shape: tuple[int, ...], groups: int, depth: int) -> Callable[[Way], Play]:
    """Forward and backward of so many norms, each on what the one before it gave."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    params = [torch.randn(shape[1], generator=generator).requires_grad_() for _ in range(2 * depth)]
    x.requires_grad_()

    def player(way: Way) -> Play:
        def play() -> object:
            y = x
            for weight, bias in zip(params[::2], params[1::2], strict=True):
                y = way.norm(y, groups, weight, bias)
            return torch.autograd.grad(y, (x, *params), dy)

        return play

    return player


def net(network: str, batch: int) -> Callable[[Way], Play]:
    """A step of one of the study's networks."""

    def player(way: Way) -> Play:
        torch.manual_seed(0)
        model = NETWORKS[network](SIDE, way.module)
        optimizer = optimizer_of(model, rate=0.0)  # the same work, however long
        x = torch.randn(batch, 1, SIDE, SIDE)
        y = torch.randint(10, (batch,))

        def play() -> object:
            with convolutions(batch):
                return step(model, optimizer, x, y)

        return play

    return player


def cases(quick: bool) -> Iterator[tuple[str, int, Callable[[Way], Play]]]:
    """A name, how many layers or steps a call has, and who plays it."""
    for shape, groups, depth in CHAINS[:2] if quick else CHAINS:
        yield f"norm of {list(shape)}, {groups} groups", depth, chain(shape, groups, depth)
    for network in NETWORKS:
        for batch in BATCHES[:1] if quick else BATCHES:
            yield f"step of {network}, batch {batch}", 1, net(network, batch)


def measure(
    case: str, parts: int, player: Callable[[Way], Play], threads: int, seconds: float
) -> list[Result]:
    """Rounds of all ways until the time is over."""
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    players = [player(way) for way in WAYS]
    times: list[list[float]] = [[] for _ in WAYS]
    end, rounds = time.monotonic() + seconds, 0
    gc.collect()
    gc.disable()
    while rounds < 5 or time.monotonic() < end:
        order = range(len(WAYS)) if rounds % 2 == 0 else reversed(range(len(WAYS)))
        for i in order:
            with WAYS[i].within():
                players[i]()  # settles caches, and what the switch has moved
                best = float("inf")
                for _ in range(3):
                    start = clock()
                    players[i]()
                    best = min(best, clock() - start)
            times[i].append(1e6 * best / parts)
        rounds += 1
    gc.enable()
    return [
        Result(
            case,
            threads,
            way.name,
            statistics.median(mine),
            min(mine),
            statistics.median(a / b for a, b in zip(mine, times[0], strict=True)),
            rounds,
        )
        for way, mine in zip(WAYS, times, strict=True)
    ]


def main() -> None:
    """Measures, prints the table, and writes what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T")
    parser.add_argument("--seconds", type=float, default=5, help="of each case and thread count")
    parser.add_argument("--case", metavar="WORD", help="those with this word in their names")
    parser.add_argument("--quick", action="store_true", help="some cases, few rounds")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    keep_freed_memory()  # else pages that come and go take the time of the larger norms
    results: list[Result] = []
    for threads in options.threads:
        for name, parts, player in cases(options.quick):
            if options.case is None or options.case in name:
                seconds = 0.05 if options.quick else options.seconds
                results += measure(name, parts, player, threads, seconds)
    rows = [asdict(result) for result in results]
    print(f"{processor()}, torch {torch.__version__}\n\n{training_table(rows)}")
    if options.json:
        context = {"processor": processor(), "torch": torch.__version__}
        found = {"context": context, "training": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
