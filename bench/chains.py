"""What models compute around a norm: in one call of ours, in torch eager, and in torch.compile.

    python bench/chains.py                     # every chain, about 25 minutes on two cores
    python bench/chains.py --quick             # does it run
    python bench/chains.py --json docs/results/chains.json    # then bench/report.py

Rounds of all ways in turns, so that all meet the same machine. A time is the median over the rounds
of the best of three calls; a ratio is the median of the rounds' ratios. Beside them a copy that
moves the bytes that the chain has to move: each tensor of the size of x once, read or written. What a
neighbour adds is our time less that of the norm and its activation alone, in copies of the neighbour.
"""

import argparse
import gc
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
from groupnorm._core import processor
from report import chains_table
from results import write_results
from torch import Tensor
from torch.nn import functional

from groupnorm._cli.machine import keep_freed_memory
from groupnorm.torch import functional as ours

Tensors = dict[str, Tensor]
Way = Callable[[Tensors, int], tuple[Tensor, ...]]  # of tensors by name, and so many groups

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
_Shape = tuple[int, ...]
IMAGES: tuple[tuple[_Shape, int], ...] = (
    ((2, 320, 64, 64), 32),
    ((1, 32, 96, 96, 96), 8),
    ((2, 64, 16, 16), 32),
)
ROWS: tuple[_Shape, ...] = ((4, 1024, 1024), (1, 64, 768))
SOUNDS: tuple[_Shape, ...] = ((8, 256, 2000), (2, 64, 200))


@dataclass(frozen=True)
class Chain:
    """A chain in torch and in one call of ours.

    Attributes:
        name: as the table has it.
        torch: y, or y and the sum, in torch's functions.
        ours: the same.
        tensors: of what the chain takes besides x, weight and bias: those of the size of x.
        per_example: those of [N, C, 1, ...].
        forward: how many tensors of the size of x it reads and writes.
        both: the same of forward and backward.
        alone: its norm and activation in our call, where one tensor more is all that the chain has.
    """

    name: str
    torch: Way
    ours: Way
    tensors: tuple[str, ...] = ()
    per_example: tuple[str, ...] = ()
    forward: int = 2
    both: int = 5
    alone: Way | None = None


def _norm(t: Tensors, groups: int, x: Tensor) -> Tensor:
    return functional.group_norm(x, groups, t["weight"], t["bias"])


def _call(t: Tensors, groups: int, activation: str, **neighbours: object) -> tuple[Tensor, ...]:
    params = t["x"], groups, t["weight"], t["bias"]
    found = ours.group_norm(*params, activation=activation, **neighbours)  # type: ignore[arg-type]
    return found if isinstance(found, tuple) else (found,)


def _masked(t: Tensors, groups: int) -> tuple[Tensor, ...]:
    """As models that have padded sequences write it."""
    x, lengths = t["x"], t["lengths"]
    n, c, size = x.shape
    mask = (torch.arange(size) < lengths[:, None]).reshape(n, 1, size).to(x.dtype)
    u = (x * mask).reshape(n, groups, -1)
    count = (lengths * (c // groups)).reshape(n, 1, 1)
    mean = u.sum(-1, keepdim=True) / count
    centred = (x.reshape(n, groups, -1, size) - mean[..., None]) * mask[:, None]
    var = centred.square().sum((-2, -1), keepdim=True) / count[..., None]
    xhat = (centred * torch.rsqrt(var + 1e-5)).reshape(n, c, size).to(x.dtype)
    return ((xhat * t["weight"][:, None] + t["bias"][:, None]) * mask,)


CHAINS = (
    Chain(
        "skip + norm + silu",
        lambda t, g: (functional.silu(_norm(t, g, t["x"] + t["skip"])),),
        lambda t, g: _call(t, g, "silu", skip=t["skip"]),
        tensors=("skip",),
        forward=3,
        both=3 + 4,
        alone=lambda t, g: _call(t, g, "silu"),
    ),
    Chain(
        "shift + norm + silu",
        lambda t, g: (functional.silu(_norm(t, g, t["x"] + t["shift"])),),
        lambda t, g: _call(t, g, "silu", shift=t["shift"]),
        per_example=("shift",),
        both=2 + 3,
    ),
    Chain(
        "norm + residual + relu",
        lambda t, g: (functional.relu(_norm(t, g, t["x"]) + t["residual"]),),
        lambda t, g: _call(t, g, "relu", residual=t["residual"]),
        tensors=("residual",),
        forward=3,
        both=3 + 5,
        alone=lambda t, g: _call(t, g, "relu"),
    ),
    Chain(
        "norm (1 + scale) + shift + silu",
        lambda t, g: (functional.silu(_norm(t, g, t["x"]) * (1 + t["scale"]) + t["offset"]),),
        lambda t, g: _call(t, g, "silu", scale_shift=(t["scale"], t["offset"])),
        per_example=("scale", "offset"),
        both=2 + 3,
    ),
)


def _rms_in_torch(t: Tensors, _: int) -> tuple[Tensor, ...]:
    u = t["x"] + t["skip"]
    return functional.rms_norm(u, u.shape[-1:], t["weight"], 1e-6), u


def _rms(t: Tensors, _: int) -> tuple[Tensor, ...]:
    x = t["x"]
    found: tuple[Tensor, ...] = ours.rms_norm(
        x, x.shape[-1:], t["weight"], 1e-6, skip=t["skip"], return_sum=True
    )
    return found


RMS = Chain(
    "skip + rms norm, and the sum",
    _rms_in_torch,
    _rms,
    tensors=("skip",),
    forward=4,
    both=4 + 5,
)
LENGTHS = Chain(
    "norm of the valid part",
    _masked,
    lambda t, g: _call(t, g, "none", lengths=t["lengths"]),
    both=2 + 3,
)


@dataclass
class Case:
    """A chain on a shape. What is not in `leaves` has no gradient."""

    chain: Chain
    shape: tuple[int, ...]
    groups: int
    dtype: str
    layout: str
    tensors: Tensors
    leaves: tuple[str, ...]

    def outputs(self, way: Way) -> Tensor | tuple[Tensor, ...]:
        with torch.no_grad():
            return way(self.tensors, self.groups)

    def gradients(self, way: Way, gradients: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [self.tensors[name] for name in self.leaves]
        return torch.autograd.grad(way(self.tensors, self.groups), leaves, gradients)


def make(chain: Chain, shape: tuple[int, ...], groups: int, dtype: str, layout: str) -> Case:
    """Random tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        t = torch.randn(size, generator=generator).to(DTYPES[dtype])
        if layout == "channels_last" and len(size) > 3:
            form = torch.channels_last if len(size) == 4 else torch.channels_last_3d
            t = t.contiguous(memory_format=form)
        return t.requires_grad_()

    channels = shape[-1] if chain is RMS else shape[1]
    t = {"x": draw(*shape), "weight": draw(channels)}
    if chain is not RMS:
        t["bias"] = draw(channels)
    t |= {name: draw(*shape) for name in chain.tensors}
    t |= {name: draw(*shape[:2], *(1,) * (len(shape) - 2)) for name in chain.per_example}
    leaves = tuple(t)
    if chain is LENGTHS:
        t["lengths"] = torch.linspace(shape[2] // 2, shape[2], shape[0]).long()
    return Case(chain, shape, groups, dtype, layout, t, leaves)


def cases(quick: bool) -> Iterator[Case]:
    for dtype in DTYPES:
        for shape, groups in IMAGES[2:] if quick else IMAGES:
            for layout in ("channels_first", "channels_last"):
                for chain in CHAINS:
                    yield make(chain, shape, groups, dtype, layout)
        for shape in ROWS[1:] if quick else ROWS:
            yield make(RMS, shape, 1, dtype, "rows")
        for shape in SOUNDS[1:] if quick else SOUNDS:
            yield make(LENGTHS, shape, 1, dtype, "channels_first")


@dataclass
class Result:
    """Microseconds of each way by its name, and the rounds' median ratios to ours; and "added"."""

    chain: str
    shape: str
    dtype: str
    layout: str
    direction: str
    threads: int
    microseconds: dict[str, float]
    ratios: dict[str, float]
    rounds: int


def measure(case: Case, compiled: bool, threads: int, seconds: float) -> Iterator[Result]:
    """Forward alone, and forward and backward."""
    chain = case.chain
    ways = {"ours": chain.ours, "torch": chain.torch}
    if compiled:
        torch._dynamo.reset()
        ways["compile"] = torch.compile(chain.torch, dynamic=False)
    results = case.outputs(chain.ours)
    gradients = [torch.randn_like(t) for t in results]
    x = case.tensors["x"]
    for direction, tensors in (("forward", chain.forward), ("both", chain.both)):
        room = torch.empty(2, tensors * x.numel() // 2, dtype=x.dtype)
        plays: dict[str, Callable[[], object]] = {}
        for name, way in ways.items():
            if direction == "forward":
                plays[name] = partial(case.outputs, way)
            else:
                plays[name] = partial(case.gradients, way, gradients)
        plays["copy"] = partial(room[0].copy_, room[1])
        if chain.alone is not None and direction == "forward":
            plays["alone"] = partial(case.outputs, chain.alone)
        times = _rounds(plays, threads, seconds)
        ratios = {
            name: statistics.median(a / b for a, b in zip(mine, times["ours"], strict=True))
            for name, mine in times.items()
            if name != "alone"
        }
        if "alone" in times:
            rounds = zip(times["ours"], times["alone"], times["copy"], strict=True)
            ratios["added"] = statistics.median(
                (ours - alone) / (copy * 2 / tensors) for ours, alone, copy in rounds
            )
        yield Result(
            chain.name,
            "x".join(map(str, case.shape)),
            case.dtype,
            case.layout,
            direction,
            threads,
            {name: statistics.median(mine) for name, mine in times.items()},
            ratios,
            len(times["ours"]),
        )


def _rounds(
    plays: dict[str, Callable[[], object]], threads: int, seconds: float
) -> dict[str, list[float]]:
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    for play in plays.values():
        play()  # compiles
    times: dict[str, list[float]] = {name: [] for name in plays}
    end = time.monotonic() + seconds
    gc.collect()
    gc.disable()
    while len(times["ours"]) < 5 or time.monotonic() < end:
        names = list(plays) if len(times["ours"]) % 2 == 0 else list(reversed(plays))
        for name in names:
            play, best = plays[name], float("inf")
            play()
            for _ in range(3):
                start = clock()
                play()
                best = min(best, clock() - start)
            times[name].append(1e6 * best)
    gc.enable()
    return times


def main() -> None:
    """Measures, prints the table, and writes what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="T")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each cell")
    parser.add_argument("--chain", metavar="WORD", help="those with this word in their names")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    options = parser.parse_args()
    keep_freed_memory()  # else pages that come and go take the time of the larger ones
    rows = []
    for case in cases(options.quick):
        if options.chain is None or options.chain in case.chain.name:
            seconds = 0.02 if options.quick else options.seconds
            for result in measure(case, not options.no_compile, options.threads, seconds):
                rows.append(asdict(result))
    print(f"{processor()}, torch {torch.__version__}\n\n{chains_table(rows)}")
    if options.json:
        context = {"processor": processor(), "torch": torch.__version__}
        keys = ("chain", "shape", "dtype", "layout", "direction", "threads")
        write_results(options.json, {"context": context}, {"chains": rows}, keys)


if __name__ == "__main__":
    main()
