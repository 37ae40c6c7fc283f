"""Norms and whole models in OpenVINO: as it runs them, and with groupnorm.openvino.optimize.

    python bench/runtimes_openvino.py --json docs/results/openvino.json
    python bench/runtimes_openvino.py --quick --json q.json   # small, few rounds: does it run
    python bench/runtimes_openvino.py --norms --json n.json   # without the models; --models: these alone

bench/report.py makes the tables of docs/openvino.md of it.

Models are those of bench/models.py, converted by OpenVINO's PyTorch frontend. Both ways of one case
run in turns, round by round, in one process, so that they meet the same machine: times are medians
of the rounds, and so is the ratio, of those of each round. Each case has a process of its own,
since OpenVINO crashes on some. Errors are the largest absolute difference from float64, of a model
over its largest absolute output. Precisions are f32 and the default of the CPU plugin.
"""

import argparse
import functools
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import models
import openvino
import torch
from openvino import opset12 as op
from results import write_results
from runtime_options import runtime_options

import groupnorm
import groupnorm.openvino

SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((2, 320, 64, 64), 32),
    ((1, 128, 512, 512), 32),
    ((1, 32, 96, 96, 96), 8),
]
QUICK_SHAPES: list[tuple[tuple[int, ...], int]] = [((2, 32, 16, 16), 8)]
MEANS = (0, 10, 1000)
MODELS = ("segresnet", "vae", "unet", "resnet50_gn", "efficientnet_b0_gn")
PRECISIONS = ("f32", "default")
EPS = 1e-5
REST = 0.03  # seconds


@dataclass
class Case:
    """What is measured: makes the model anew, and has its inputs and its output in float64."""

    make: Callable[[], openvino.Model]
    inputs: list[Any]
    exact: torch.Tensor
    scale: float = 1.0  # that errors are relative to


@dataclass
class Result:
    """A case on a number of threads. Times in milliseconds; None where OpenVINO crashed."""

    case: str
    precision: str
    threads: int
    stock: float | None
    ours: float
    ratio: float | None  # of stock to ours
    stock_error: float | None
    error: float
    layouts: dict[str, int] = field(default_factory=dict)  # how many norms: by layout, and "left"


def norm_case(shape: tuple[int, ...], groups: int, activation: str, mean: float) -> Case:
    """One norm: x -> y."""
    torch.manual_seed(0)
    x, scale, bias = torch.randn(shape) + mean, torch.randn(shape[1]), torch.randn(shape[1])
    y = torch.nn.functional.group_norm(
        x.double(), groups, scale.double(), bias.double(), float(torch.tensor(EPS))
    )
    if activation == "silu":
        y = torch.nn.functional.silu(y)

    def make() -> openvino.Model:
        made = op.parameter(list(shape), openvino.Type.f32)
        z = op.group_normalization(made, scale.numpy(), bias.numpy(), groups, EPS)
        return openvino.Model([op.swish(z) if activation == "silu" else z], [made])

    return Case(make, [x.numpy()], y)


def model_case(name: str, quick: bool) -> Case:
    """A model of bench/models.py."""
    torch.manual_seed(0)
    made = models.MODELS.get(name)
    case = models.timm_case(name, quick) if made is None else made(quick)
    case.model.eval()
    tensors = [each for each in case.inputs if isinstance(each, torch.Tensor)]

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = case.model

        def forward(self, *given: Any) -> Any:
            left = list(given)
            every = (left.pop(0) if isinstance(e, torch.Tensor) else e for e in case.inputs)
            return case.run(self.model, *every)

    with torch.no_grad():
        exact = models.double_output(case)

    def make() -> openvino.Model:
        model = openvino.convert_model(Called().eval(), example_input=tuple(tensors))
        model.reshape({i: list(each.shape) for i, each in enumerate(tensors)})
        return model

    return Case(make, [each.numpy() for each in tensors], exact, float(exact.abs().max()))


def compiled(model: openvino.Model, precision: str, threads: int) -> Callable[[list[Any]], Any]:
    """A call that computes the first output of the inputs."""
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision != "default":
        config["INFERENCE_PRECISION_HINT"] = precision
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()

    def call(inputs: list[Any]) -> Any:
        request.infer(inputs, share_inputs=True)
        return request.get_output_tensor(0).data

    return call


def measure(
    name: str, case: Case, precision: str, threads: int, seconds: float, with_stock: bool
) -> Result:
    """Rounds of both for so many seconds, and at least seven.

    Threads spin for a while when their work is done, which takes a core from the next. So each way
    waits until they rest, and warms up by a call that is not counted.
    """
    model = case.make()
    report = groupnorm.openvino.optimize(model, None if precision == "default" else precision)
    layouts = [each.layout for each in report.replaced] + ["left"] * len(report.left)
    ways = [compiled(model, precision, threads)]
    if with_stock:
        ways.append(compiled(case.make(), precision, threads))
    times: list[list[float]] = [[] for _ in ways]
    errors = []
    for way in ways:
        y = torch.from_numpy(way(case.inputs).copy()).double()
        errors.append((y - case.exact).abs().max().item() / case.scale)
    end = time.perf_counter() + seconds
    while len(times[0]) < 7 or time.perf_counter() < end:
        for way, mine in zip(ways, times, strict=True):
            time.sleep(REST)
            way(case.inputs)
            start = time.perf_counter()
            way(case.inputs)
            mine.append(1e3 * (time.perf_counter() - start))
    result = Result(
        name,
        precision,
        threads,
        stock=None,
        ours=statistics.median(times[0]),
        ratio=None,
        stock_error=None,
        error=errors[0],
        layouts={layout: layouts.count(layout) for layout in dict.fromkeys(layouts)},
    )
    if with_stock:
        ratios = [stock / ours for ours, stock in zip(*times, strict=True)]
        result.stock, result.ratio = statistics.median(times[1]), statistics.median(ratios)
        result.stock_error = errors[1]
    return result


Made = tuple[str, str, Callable[[], Case]]  # name, precision, and what makes it


def cases(options: argparse.Namespace) -> dict[str, list[Made]]:
    """The cases of each table."""
    shapes = QUICK_SHAPES if options.quick else SHAPES
    norms: list[Made] = []
    for (shape, groups), activation in itertools.product(shapes, ("none", "silu")):
        name = f"{list(shape)} G{groups}" + (" silu" if activation == "silu" else "")
        make = functools.partial(norm_case, shape, groups, activation, 0)
        norms += [(name, precision, make) for precision in PRECISIONS]
    errors: list[Made] = [
        (f"mean {mean}", "f32", functools.partial(norm_case, *shapes[0], "none", mean))
        for mean in MEANS
    ]
    whole: list[Made] = [
        (name, precision, functools.partial(model_case, name, options.quick))
        for name, precision in itertools.product(options.model, PRECISIONS)
    ]
    if options.models:
        return {"norms": [], "errors": [], "models": whole}
    return {"norms": norms, "errors": errors, "models": [] if options.norms else whole}


def run_one(options: argparse.Namespace) -> None:
    """Prints the results of one case: what a process of its own does."""
    table, index, with_stock = json.loads(options.one)
    name, precision, make = cases(options)[table][index]
    case = make()
    threads = [1] if table == "errors" else options.threads
    seconds = 0 if table == "errors" else options.seconds
    found = [measure(name, case, precision, each, seconds, with_stock) for each in threads]
    print(json.dumps([asdict(each) for each in found]))


def in_own_process(what: list[Any]) -> list[dict[str, Any]]:
    """The results of one case; of ours alone where OpenVINO crashes; none where both fail."""
    for with_stock in (True, False):
        arguments = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--one",
            json.dumps([*what, with_stock]),
        ]
        done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
            return found
        print(f"{what}: failed with {done.returncode}", file=sys.stderr)
    return []


def main() -> None:
    """Measures and writes the JSON."""
    parser = runtime_options(__doc__, MODELS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.seconds = 0.1
    if options.one:
        return run_one(options)
    rows = {
        table: [row for index in range(len(each)) for row in in_own_process([table, index])]
        for table, each in cases(options).items()
    }
    about = {
        "runtime": "openvino",
        "groupnorm": groupnorm.__version__,
        "openvino": openvino.get_version(),
        "default": groupnorm.openvino.optimize(norm_case((1, 2, 2), 1, "none", 0).make()).precision,
    }
    write_results(options.json, about, rows)
    return None


if __name__ == "__main__":
    main()
