"""The error of every library against float64, as the mean of the data grows.

    python bench/accuracy.py --json docs/results/accuracy.json
    python bench/accuracy.py --means 0 1000 --only torch ncnn

x is normal with deviation 1 around each mean, [1, 32, 32, 32, 32] in 8 groups, f32, channels first:
131072 elements share a mean. The error is the largest |y - exact| over eps (1 + |gamma xhat| +
|beta|), where exact is the definition in float64 and eps is 2^-23. It depends on the versions and
on the instruction set, not on the load of the machine. A library that is not installed is left out
with a line that says so. bench/report.py makes a table and a plot of the JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import machine
from rivals import RIVALS, Absent, Job
from torch import Tensor

import groupnorm.torch
from groupnorm._cli import oracle
from groupnorm._cli.contest import Case, Rival, Setting
from groupnorm._cli.pending import pending

CASE = Case("", (1, 32, 32, 32, 32), 8)
SETTING = Setting("torch", "f32", "channels_first", "none", False, True, True, 1)
MEANS = (0.0, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)  # in deviations

Library = Callable[[Tensor], Tensor]


def libraries(gamma: Tensor, beta: Tensor, only: Sequence[str] | None) -> dict[str, Library]:
    """The norm of CASE by every library that can be had."""

    def by_torch(x: Tensor) -> Tensor:
        return torch.nn.functional.group_norm(x, CASE.groups, gamma, beta, SETTING.eps)

    def by_ours(x: Tensor) -> Tensor:
        return groupnorm.torch.functional.group_norm(x, CASE.groups, gamma, beta, SETTING.eps)

    found: dict[str, Library] = {"ours": by_ours, "torch": by_torch}
    for name, make in RIVALS.items():
        if only and name not in only:
            continue
        try:
            rival = make(Job(CASE, SETTING, gamma, beta))
        except (Absent, ImportError) as error:
            print(f"skipped  {name}: {error}", file=sys.stderr)
            continue
        found[name] = partial(_run, rival)
    return found


def _run(rival: Rival, x: Tensor) -> Tensor:
    y: Tensor = rival.result(rival.call(rival.view(x)))
    return y


def error_of(y: Tensor, x: Tensor, gamma: Tensor, beta: Tensor) -> float:
    """The largest error in eps (1 + |gamma xhat| + |beta|); NaN where y has one."""
    size = CASE.shape[1] // CASE.groups
    worst = 0.0
    for lo in range(0, CASE.shape[1], size):
        part = slice(lo, lo + size)
        values, found, g, b = (
            tensor.double().numpy() for tensor in (x[0, part], y[0, part], gamma[part], beta[part])
        )
        exact, unit = oracle.forward(values.reshape(size, -1), g, b, SETTING.eps, lambda z: z)
        error = np.abs(found.reshape(size, -1) - exact) / unit
        worst = float(np.maximum(worst, error.max()))
    return worst / oracle.EPS["f32"]


def measure(means: Sequence[float], only: Sequence[str] | None) -> list[dict[str, Any]]:
    """A record for each mean and library."""
    draw = torch.Generator().manual_seed(1)
    channels = CASE.shape[1]
    gamma = torch.empty(channels).normal_(1, 0.5, generator=draw)
    beta = torch.empty(channels).normal_(generator=draw)
    noise = torch.empty(CASE.shape).normal_(generator=draw)
    found = []
    for mean in means:
        x = noise + mean
        for name, call in libraries(gamma, beta, only).items():
            error = error_of(call(x), x, gamma, beta)
            print(f"{name}, mean {mean:g}: {error:.3g}")
            finite = error if np.isfinite(error) else None  # JSON has no NaN
            found.append({"library": name, "mean": mean, "max_error_eps": finite})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--means", nargs="+", type=float, default=MEANS, help="in deviations")
    parser.add_argument("--only", nargs="+", choices=sorted(RIVALS), metavar="LIBRARY")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(SETTING.threads)
    with torch.no_grad():
        found = measure(options.means, options.only)
    if options.json:
        results = {
            "context": machine(),
            "shape": CASE.text,
            "groups": CASE.groups,
            "accuracy": found,
        }
        with pending(options.json) as temporary:
            Path(temporary).write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
