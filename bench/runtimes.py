"""Norms and whole models in ONNX Runtime: its own kernels, and the operators of groupnorm.onnx.

    python bench/runtimes.py --threads 1 2 --json docs/results/onnxruntime.json
    python bench/runtimes.py --quick --json q.json   # small shapes, few rounds: does it run
    python bench/runtimes.py --norms --json n.json   # without the models, which need torch

bench/report.py makes the tables of docs/onnxruntime.md of it.

Norms are written here; models are those of bench/models.py, exported by torch at opsets 18 and 21.
All ways of one case run in turns, round by round, in one process, so that they meet the same
machine: times are medians of the rounds. Errors are the largest absolute difference from float64,
of a model over its largest absolute output. Peak memory is that of a process for itself.
"""

import argparse
import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from results import write_results
from runtime_options import runtime_options

import groupnorm
import groupnorm.onnx

SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((2, 320, 64, 64), 32),
    ((1, 128, 512, 512), 32),
    ((1, 32, 96, 96, 96), 8),
]
QUICK_SHAPES: list[tuple[tuple[int, ...], int]] = [((2, 32, 16, 16), 8)]
ACTIVATIONS = ("none", "silu")
MEANS = (0, 10, 1000)
MODELS = ("efficientnet_b0_gn", "resnet50_gn", "segresnet", "vae", "unet", "mobilevitv2_050")
EPS = float(numpy.float32(1e-5))
REST = 0.03  # seconds


@dataclass
class Way:
    """A model, and how a session runs it."""

    name: str
    file: str
    library: bool = False
    override: bool = False

    def session(self, threads: int) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if self.library:
            groupnorm.onnx.register(options, self.override)
        return onnxruntime.InferenceSession(self.file, options, ["CPUExecutionProvider"])


@dataclass
class Result:
    """One way of one case. Times in milliseconds, memory in MiB."""

    case: str
    threads: int
    way: str
    median: float
    least: float
    error: float
    nodes: int
    peak: float | None = None


# --- Norms


def norm_model(way: str, shape: Sequence[int], groups: int, activation: str) -> onnx.ModelProto:
    """x [shape] -> y by "gn-21" (GroupNormalization) or "pattern" (what torch exports before it)."""
    c = shape[1]
    random = numpy.random.default_rng(1)
    wide = [c, *([1] * (len(shape) - 2))]
    params = {
        name: random.standard_normal(c).astype("float32").reshape([c] if way == "gn-21" else wide)
        for name in ("scale", "bias")
    }
    node = helper.make_node
    if way == "gn-21":
        nodes = [node("GroupNormalization", ["x", *params], ["z"], num_groups=groups, epsilon=EPS)]
    else:
        params |= {
            "grouped": numpy.array([0, groups, -1]),
            "shape": numpy.array(shape),
            "ones": numpy.ones(groups, "float32"),
            "zeros": numpy.zeros(groups, "float32"),
        }
        nodes = [
            node("Reshape", ["x", "grouped"], ["a"]),
            node("InstanceNormalization", ["a", "ones", "zeros"], ["b"], epsilon=EPS),
            node("Reshape", ["b", "shape"], ["d"]),
            node("Mul", ["d", "scale"], ["e"]),
            node("Add", ["e", "bias"], ["z"]),
        ]
    if activation == "silu":
        nodes += [node("Sigmoid", ["z"], ["s"]), node("Mul", ["z", "s"], ["y"])]
    else:
        nodes[-1].output[0] = "y"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    weights = [numpy_helper.from_array(value, name) for name, value in params.items()]
    graph = helper.make_graph(nodes, "norm", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 21 if way == "gn-21" else 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def norm_ways(folder: pathlib.Path, shape: Sequence[int], groups: int, act: str) -> list[Way]:
    """The runtime's two ways, and ours: the same files with the override, and converted."""
    ways = []
    for name in ("gn-21", "pattern"):
        model = norm_model(name, shape, groups, act)
        ways.append(Way(name, save(folder / f"{name}.onnx", model)))
    new, _ = groupnorm.onnx.convert(ways[0].file)
    ways.append(Way("override", ways[0].file, library=True, override=True))
    ways.append(Way("ours", save(folder / "ours.onnx", new), library=True))
    return ways


def exact_norm(file: str, x: numpy.ndarray, groups: int, activation: str) -> numpy.ndarray:
    """y of a "gn-21" model in float64."""
    params = [numpy_helper.to_array(i).astype("float64") for i in onnx.load(file).graph.initializer]
    wide = (-1, *([1] * (x.ndim - 2)))
    flat = x.astype("float64").reshape(x.shape[0], groups, -1)
    centred = flat - flat.mean(-1, keepdims=True)
    xhat = (centred / numpy.sqrt((centred**2).mean(-1, keepdims=True) + EPS)).reshape(x.shape)
    z: numpy.ndarray = xhat * params[0].reshape(wide) + params[1].reshape(wide)
    return z / (1 + numpy.exp(-z)) if activation == "silu" else z


# --- Models


def model_ways(folder: pathlib.Path, name: str, quick: bool) -> tuple[list[Way], Any, Any]:
    """The ways of a model of bench/models.py, its inputs by name, and its output in float64."""
    import models
    import torch

    torch.manual_seed(0)
    made = models.MODELS.get(name)
    case = models.timm_case(name, quick) if made is None else made(quick)
    case.model.eval()

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = case.model

        def forward(self, *inputs: Any) -> Any:
            return case.run(self.model, *inputs)

    ways = []
    with torch.no_grad():
        exact = models.double_output(case).numpy()
        for opset in (18, 21):
            program = torch.onnx.export(
                Called().eval(), case.inputs, dynamo=True, opset_version=opset, verbose=False
            )
            assert program is not None
            path = save(folder / f"{name}-{opset}.onnx", program.model_proto)
            ways.append(Way(f"opset {opset}", path))
    new, report = groupnorm.onnx.convert(ways[1].file)
    print(f"{name}: {report}", file=sys.stderr)
    ways.append(Way("override", ways[1].file, library=True, override=True))
    ways.append(Way("converted", save(folder / f"{name}.onnx", new), library=True))
    names = [value.name for value in onnx.load(ways[0].file).graph.input]
    inputs = dict(zip(names, (t.numpy() for t in case.inputs), strict=True))
    return ways, inputs, exact


def save(path: pathlib.Path, model: onnx.ModelProto) -> str:
    onnx.save(model, path)
    return str(path)


def peak_memory(way: Way, inputs: dict[str, numpy.ndarray], threads: int) -> float:
    """MiB of a process that runs the model three times, without those before the model."""
    packed = io.BytesIO()
    numpy.savez(packed, **inputs)  # type: ignore[arg-type]
    arguments = [sys.executable, __file__, "--peak", json.dumps([asdict(way), threads])]
    done = subprocess.run(arguments, input=packed.getvalue(), capture_output=True, check=True)
    return float(done.stdout)


def print_peak(what: str) -> None:
    fields, threads = json.loads(what)
    inputs = dict(numpy.load(io.BytesIO(sys.stdin.buffer.read())))
    before = high_water()
    session = Way(**fields).session(threads)
    for _ in range(3):
        session.run(None, inputs)
    print((high_water() - before) / 1024)


def high_water() -> int:
    """KiB that this program had in memory at most; getrusage counts what started it as well."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


# --- Measuring


def measure(
    case: str, ways: list[Way], inputs: dict[str, numpy.ndarray], threads: int, seconds: float
) -> tuple[list[Result], list[numpy.ndarray]]:
    """Rounds of all ways for so many seconds, and at least seven; with their outputs.

    The threads of a session spin for a while when their work is done, which takes a core from the
    next session. So each way waits until they rest, and warms up by a call that is not counted.
    """
    sessions = [way.session(threads) for way in ways]
    outputs = [numpy.asarray(session.run(None, inputs)[0]) for session in sessions]
    times: list[list[float]] = [[] for _ in ways]
    end = time.perf_counter() + seconds
    while len(times[0]) < 7 or time.perf_counter() < end:
        for session, mine in zip(sessions, times, strict=True):
            time.sleep(REST)
            session.run(None, inputs)
            start = time.perf_counter()
            session.run(None, inputs)
            mine.append(1e3 * (time.perf_counter() - start))
    results = [
        Result(case, threads, way.name, statistics.median(mine), min(mine), 0, _nodes(way.file))
        for way, mine in zip(ways, times, strict=True)
    ]
    return results, outputs


def _nodes(file: str) -> int:
    return len(onnx.load(file, load_external_data=False).graph.node)


def measure_norms(folder: pathlib.Path, options: argparse.Namespace) -> list[Result]:
    results = []
    for shape, groups in QUICK_SHAPES if options.quick else SHAPES:
        for activation in ACTIVATIONS:
            ways = norm_ways(folder, shape, groups, activation)
            case = f"{list(shape)} G{groups}" + (" silu" if activation != "none" else "")
            x = numpy.random.default_rng(0).standard_normal(shape, "float32")
            for threads in options.threads:
                found, outputs = measure(case, ways, {"x": x}, threads, options.seconds)
                exact = exact_norm(ways[0].file, x, groups, activation)
                for result, y in zip(found, outputs, strict=True):
                    result.error = float(abs(y - exact).max())
                results += found
    return results


def measure_errors(folder: pathlib.Path, options: argparse.Namespace) -> list[Result]:
    """The norms at means of so many deviations."""
    shape, groups = (QUICK_SHAPES if options.quick else SHAPES)[-1 if options.quick else 1]
    ways = norm_ways(folder, shape, groups, "none")
    results = []
    for mean in MEANS:
        x = numpy.random.default_rng(0).standard_normal(shape, "float32") + numpy.float32(mean)
        exact = exact_norm(ways[0].file, x, groups, "none")
        for way in ways:
            y = way.session(1).run(None, {"x": x})[0]
            error = float(abs(y - exact).max())
            results.append(Result(f"mean {mean}", 1, way.name, 0, 0, error, 0))
    return results


def measure_models(folder: pathlib.Path, options: argparse.Namespace) -> list[Result]:
    results = []
    for name in options.model:
        try:
            ways, inputs, exact = model_ways(folder, name, options.quick)
        except Exception as error:  # noqa: BLE001 - a package that is missing, an export that fails
            print(f"{name}: skipped: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        for threads in options.threads:
            found, outputs = measure(name, ways, inputs, threads, options.seconds)
            for result, way, y in zip(found, ways, outputs, strict=True):
                result.error = float(abs(y - exact).max() / abs(exact).max())
                result.peak = peak_memory(way, inputs, threads)
            results += found
    return results


def main() -> None:
    """Measures and writes the JSON."""
    parser = runtime_options(__doc__, MODELS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return print_peak(options.peak)
    if options.quick:
        options.seconds = 0.1
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        found = {
            "norms": [] if options.models else measure_norms(folder, options),
            "errors": [] if options.models else measure_errors(folder, options),
            "models": [] if options.norms else measure_models(folder, options),
        }
    versions = {"groupnorm": groupnorm.__version__, "onnxruntime": onnxruntime.__version__}
    rows = {key: [asdict(r) for r in results] for key, results in found.items()}
    write_results(options.json, versions, rows)
    return None


if __name__ == "__main__":
    main()
