"""What blocks in pieces cost: the steps beside one call, slabs beside a copy, an exchange, two ranks.

    python bench/scale.py                    # all but the volume that is larger than memory
    python bench/scale.py --volume 40 --folder /data     # 40 GB there, normalized within 2 GB
    python bench/scale.py --picture docs/seams.png

Each pair of things is timed in turns, round by round, in one process; the median of the rounds' ratios
counts.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import groupnorm
import groupnorm.stream

LIMITS = {"steps": 1.05, "slabs": 1.7}


def _ratio(ours: Callable[[], Any], other: Callable[[], Any], rounds: int) -> float:
    ratios = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        other()
        middle = time.perf_counter()
        ours()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios[1:])


def steps(rounds: int) -> None:
    """reduce, finish and apply of a block too large for a cache, beside one call."""
    x = np.random.default_rng(0).standard_normal((1, 32, 256, 2048), np.float32)
    y = np.empty_like(x)
    ratio = _ratio(
        lambda: groupnorm.normalize(x, groupnorm.moments(x, 1), out=y),
        lambda: groupnorm.group_norm(x, 1, out=y),
        rounds,
    )
    print(f"steps    {ratio:.3f} of one call (limit {LIMITS['steps']})")


def _copy(source: Path, target: Path, slab: int) -> None:
    with open(source, "rb") as read, open(target, "wb") as write:
        while data := read.read(slab):
            write.write(data)


def slabs(gigabytes: float, folder: Path | None, rounds: int) -> None:
    """A volume on disk within a budget, beside copying its file in the same slabs."""
    budget = min(2 << 30, int(gigabytes * (1 << 30) / 8))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, target = Path(name) / "x.npy", Path(name) / "y.npy"
        shape = (1, 32, max(1, int(gigabytes * (1 << 30)) // (4 * 32 * 1024)), 1024)
        x = np.lib.format.open_memmap(source, mode="w+", dtype="f4", shape=shape)
        random = np.random.default_rng(0).standard_normal((shape[2], 1024), np.float32)
        for channel in range(32):
            x[0, channel] = random + channel
            groupnorm.stream._forget(x)
        del x, random
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = []

        def ours() -> None:
            start = time.perf_counter()
            groupnorm.stream.group_norm(np.load(source, mmap_mode="r"), target, 8, memory=budget)
            times.append(time.perf_counter() - start)

        ratio = _ratio(ours, lambda: _copy(source, Path(name) / "copy", budget // 4), rounds)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = source.stat().st_size
        print(
            f"slabs    {size / 1e9:.1f} GB: {ratio:.2f} of a copy (limit {LIMITS['slabs']}), "
            f"{size / statistics.median(times) / 1e9:.2f} GB/s of y, peak RSS "
            f"{max(0, after - before) / 1024:.0f} MB more than before, of {budget >> 20} MB"
        )


def _exchange(rank: int, path: str, rounds: int) -> None:
    import torch
    import torch.distributed as dist

    from groupnorm.torch import distributed

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    x = torch.zeros(2, 32, 64)
    shard = distributed._shard(x, 32, False, None, None, 1e-5, "none")
    moments = torch.ones(64, 3, dtype=torch.float64)
    bytes_of_it = torch.ones(64 * 3, dtype=torch.float64)
    times: dict[str, list[float]] = {"ours": [], "all_reduce": []}
    for _ in range(rounds):
        start = time.perf_counter()
        distributed._exchange(moments, shard, None)
        middle = time.perf_counter()
        dist.all_reduce(bytes_of_it)
        times["ours"].append(middle - start)
        times["all_reduce"].append(time.perf_counter() - middle)
    if rank == 0:
        ours, other = (statistics.median(each) * 1e6 for each in times.values())
        print(
            f"exchange {ours:.0f} us for 64 blocks on 2 ranks; all_reduce of the same bytes {other:.0f} us"
        )
    dist.destroy_process_group()


def _scaling(rank: int, path: str, rounds: int) -> None:
    import torch
    import torch.distributed as dist

    import groupnorm.torch
    from groupnorm._cli.machine import keep_freed_memory
    from groupnorm.torch import distributed

    torch.set_num_threads(1)
    keep_freed_memory()  # else a result's pages are new in each call
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    x = torch.randn(1, 32, 512, 2048)  # one block of 128 MB
    half = x[:, :, 256 * rank : 256 * (rank + 1)].contiguous()
    y, half_y = torch.empty_like(x), torch.empty_like(half)
    alone = groupnorm.torch.GroupNorm(1, 32, affine=False)
    shared = distributed.GroupNorm(1, 32, affine=False)
    calls: dict[str, Callable[[], Any]] = {
        "copy of 1": lambda: y.copy_(x) if rank == 0 else None,
        "copy of 2": lambda: half_y.copy_(half),
        "norm of 1": lambda: alone(x) if rank == 0 else None,
        "norm of 2": lambda: shared(half),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            call()
            dist.barrier()
            times[name].append(time.perf_counter() - start)
    if rank == 0:
        gain = {
            what: statistics.median(
                a / b
                for a, b in zip(times[f"{what} of 1"][1:], times[f"{what} of 2"][1:], strict=True)
            )
            for what in ("norm", "copy")
        }
        print(
            f"scaling  2 ranks are {gain['norm']:.2f} times as fast as 1 on a block of 128 MB; "
            f"a copy gains {gain['copy']:.2f}"
        )
    dist.destroy_process_group()


def _on_two_ranks(program: Callable[[int, str, int], None], rounds: int) -> None:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(program, (f"{folder}/store", rounds), nprocs=2, start_method="spawn")


def picture(path: Path) -> None:
    """A slice of the head in data/: whole, in tiles of its own statistics, in tiles with moments merged."""
    from matplotlib import pyplot

    head = np.load(Path(__file__).parent.parent / "data/mr_head.npy")[0, 12]
    x = np.ascontiguousarray(head[None, None])
    cuts = [
        np.s_[:, :, a : a + 32, b : b + 32] for a in range(0, 96, 32) for b in range(0, 128, 32)
    ]
    whole = groupnorm.Moments.merge([groupnorm.moments(x[cut], 1) for cut in cuts])
    apart, merged = np.empty_like(x), np.empty_like(x)
    for cut in cuts:
        apart[cut] = groupnorm.group_norm(x[cut], 1)
        merged[cut] = groupnorm.normalize(x[cut], whole)
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    shown = (
        ("whole", groupnorm.group_norm(x, 1)),
        ("12 tiles, each by its own moments", apart),
        ("12 tiles, moments merged", merged),
    )
    for axis, (title, y) in zip(axes, shown, strict=True):
        axis.imshow(y[0, 0], cmap="gray", vmin=-1.5, vmax=3)
        axis.set_title(
            f"{title}\nlargest difference {np.abs(y - shown[0][1]).max():.2g}", fontsize=9
        )
        axis.axis("off")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--volume", type=float, default=0.5, metavar="GB", help="on disk")
    parser.add_argument(
        "--folder", type=Path, help="where the volume goes; default: of temporary files"
    )
    parser.add_argument("--picture", type=Path, help="write the picture of docs/scale.md, no more")
    options = parser.parse_args()
    if options.picture:
        picture(options.picture)
        return
    steps(options.rounds)
    _on_two_ranks(_exchange, 20 * options.rounds)
    _on_two_ranks(_scaling, options.rounds)
    slabs(options.volume, options.folder, 1 if options.volume > 4 else 3)


if __name__ == "__main__":
    main()
