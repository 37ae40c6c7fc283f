"""Norms and whole models in ExecuTorch: its own kernel, and that of groupnorm.executorch.

    python bench/runtimes_executorch.py --json docs/results/executorch.json
    python bench/runtimes_executorch.py --quick --json q.json   # small shapes, few rounds
    python bench/runtimes_executorch.py --norms --json n.json   # without the models; --models: these alone

bench/report.py makes the tables of docs/executorch.md of it.

A method keeps the kernels that it was loaded with, and XNNPACK the threads. So every program is
loaded twice, before and after groupnorm.executorch.load(), and both ways of a case run in turns;
each number of threads has a process of its own. Times are medians of the rounds. Models are those
of bench/models.py, for XNNPACK.
Errors are the largest absolute difference from float64, of a model over its largest absolute
output.
"""

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import models
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from executorch.extension.pybindings import portable_lib
from results import write_results
from runtime_options import runtime_options
from torch import Tensor, nn

import groupnorm
import groupnorm.executorch

SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((2, 320, 64, 64), 32),
    ((1, 128, 512, 512), 32),
    ((1, 32, 96, 96, 96), 8),
]
ROWS = [(1, 197, 768), (4096, 1024)]  # of layer norms
QUICK_SHAPES: list[tuple[tuple[int, ...], int]] = [((2, 32, 16, 16), 8)]
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
MEANS = (0, 10, 1000)
MODELS = ("resnet50_gn", "unet", "vae")


@dataclass
class Result:
    """One way of one case. Times in milliseconds; NaN where ExecuTorch refuses the call."""

    case: str
    threads: int
    way: str
    median: float
    least: float
    error: float


@dataclass
class Case:
    """A model that is exported, and its output in float64."""

    name: str
    program: bytes
    inputs: tuple[Tensor, ...]
    exact: Tensor
    relative: bool  # errors are of the largest output

    def error(self, y: Tensor) -> float:
        largest = float((y.double() - self.exact).abs().max())
        return largest / float(self.exact.abs().max()) if self.relative else largest


class Called(nn.Module):
    """What a case of bench/models.py runs, as a module."""

    def __init__(self, case: models.Case) -> None:
        super().__init__()
        self.model = case.model
        self.case = case

    def forward(self, *inputs: Any) -> Any:
        return self.case.run(self.model, *inputs)


def export(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """A .pte, whose parts that XNNPACK takes are XNNPACK's."""
    program = torch.export.export(model.eval(), inputs)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    # Inputs stay where they are: to copy a large one would take longer than the norm.
    planning = MemoryPlanningPass(alloc_graph_input=False)
    config = ExecutorchBackendConfig(memory_planning_pass=planning)
    return bytes(lowered.to_executorch(config).buffer)


def channels_last(x: Any) -> Any:
    """x, with its memory in that order; as it is unless it is of images."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        return x
    return x.contiguous(memory_format=torch.channels_last)


# --- Cases


def norm_case(name: str, norm: nn.Module, x: Tensor, dtype: str) -> Case:
    generator = torch.Generator().manual_seed(1)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=generator)
    norm, x = norm.to(DTYPES[dtype]), x.to(DTYPES[dtype])
    program = export(norm, (x,))
    with torch.no_grad():
        exact = norm.double()(x.double())
    return Case(name, program, (x,), exact, relative=False)


def data(shape: Sequence[int], mean: float = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + mean


def norm_cases(quick: bool) -> Iterator[Case]:
    for dtype in DTYPES:
        for shape, groups in QUICK_SHAPES if quick else SHAPES:
            norm = nn.GroupNorm(groups, shape[1])
            name = f"{list(shape)} G{groups} {dtype}"
            yield norm_case(name, norm, data(shape), dtype)
            if len(shape) == 4:  # from Python the runtime takes no volume that lies channels last
                yield norm_case(f"{name} channels last", norm, channels_last(data(shape)), dtype)
        for rows in [] if quick else ROWS:
            yield norm_case(
                f"{list(rows)} layer {dtype}", nn.LayerNorm(rows[-1]), data(rows), dtype
            )


def error_cases(quick: bool) -> Iterator[Case]:
    """Norms whose data have means of so many deviations."""
    shape, groups = QUICK_SHAPES[0] if quick else SHAPES[0]
    for mean in MEANS:
        norm = nn.GroupNorm(groups, shape[1])
        yield norm_case(f"mean {mean}", norm, data(shape, mean), "f32")


def model_cases(names: Sequence[str], quick: bool) -> Iterator[Case]:
    for name in names:
        for last in (False, True):
            torch.manual_seed(0)
            try:
                case = models.MODELS[name](quick)
                if last:
                    case.inputs = tuple(map(channels_last, case.inputs))
                with torch.no_grad():
                    exact = models.double_output(case)
                program = export(Called(case), case.inputs)
            except Exception as error:  # noqa: BLE001 - a package is missing, an export fails
                print(f"{name}: skipped: {type(error).__name__}: {error}", file=sys.stderr)
                break
            title = name + (", channels-last input" if last else "")
            yield Case(title, program, case.inputs, exact, relative=True)


# --- Measuring


def load(case: Case) -> Callable[[], Tensor]:
    """Runs the model with the kernels that are registered now. The next call overwrites y."""
    module = portable_lib._load_for_executorch_from_buffer(case.program)

    def run() -> Tensor:
        # Copies of what it returns, as executorch.runtime makes them, can take longer than the norm.
        outputs = module.run_method("forward", case.inputs, clone_outputs=False)
        y: Tensor = outputs[0]
        return y

    with suppress(RuntimeError):  # of what it refuses: the kernels are found before that
        run()
    return run


def measure(
    case: Case, ways: dict[str, Callable[[], Tensor]], threads: int, seconds: float
) -> list[Result]:
    """Rounds of all ways for so many seconds, and at least seven."""
    results: list[Result] = []
    times: dict[str, list[float]] = {}
    for way, method in ways.items():
        result = Result(case.name, threads, way, math.nan, math.nan, math.nan)
        results.append(result)
        try:
            result.error = case.error(method())
        except RuntimeError:  # the runtime refuses it, as the stock kernel does channels last
            continue
        times[way] = []
    end = time.perf_counter() + seconds
    while times and (time.perf_counter() < end or len(next(iter(times.values()))) < 7):
        for way, mine in times.items():
            start = time.perf_counter()
            ways[way]()
            mine.append(1e3 * (time.perf_counter() - start))
    for result in results:
        if result.way in times:
            mine = times[result.way]
            result.median, result.least = statistics.median(mine), min(mine)
    return results


def measured(options: argparse.Namespace, threads: int) -> dict[str, list[dict[str, Any]]]:
    """All cases, in a process that has loaded nothing yet."""
    portable_lib._unsafe_reset_threadpool(threads)
    seconds = 0.1 if options.quick else options.seconds
    cases = {
        "norms": [] if options.models else list(norm_cases(options.quick)),
        "errors": [] if options.models else list(error_cases(options.quick)),
        "models": [] if options.norms else list(model_cases(options.model, options.quick)),
    }
    stock = {kind: [load(case) for case in made] for kind, made in cases.items()}
    groupnorm.executorch.load()
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in cases}
    for kind, made in cases.items():
        for case, method in zip(made, stock[kind], strict=True):
            ways = {"stock": method, "ours": load(case)}
            if kind != "errors" or threads == options.threads[0]:
                found[kind] += map(asdict, measure(case, ways, threads, seconds))
    return found


def main() -> None:
    """Measures and writes the JSON."""
    options = runtime_options(__doc__, MODELS).parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for threads in options.threads:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            more = process.submit(measured, options, threads).result()
        for name, rows in more.items():
            found[name] = found.get(name, []) + rows
    about = {"groupnorm": groupnorm.__version__, "executorch": version("executorch")}
    write_results(options.json, about, found)


if __name__ == "__main__":
    main()
