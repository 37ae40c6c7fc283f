"""Tables and plots of the JSON that the programs of bench/ write; docs/results/ holds that JSON.

    python bench/report.py docs/results/*.json                        # print every table
    python bench/report.py docs/results/*.json --update README.md docs/*.md --plots docs/plots

--update replaces the text between `<!-- bench:NAME -->` and `<!-- /bench -->`, where NAME is one of
the tables that are printed; a file without such a place stays as it is. A number that misses its
target, or a library that is faster than ours, is bold. Several files may hold parts of one table;
if a case occurs twice, the last one counts.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from groupnorm._cli.command import BadInput
from groupnorm._cli.pending import pending

LAYOUTS = ("channels_first", "channels_last")

# What must hold for f32, in copies of the same bytes: (shape, groups) to a pair by layout.
FORWARD_LIMITS = {
    ("16x32x64x64", 8): (1.3, 1.5),
    ("2x320x64x64", 32): (1.3, 1.5),
    ("1x128x512x512", 32): (1.5, 1.6),
    ("2x64x56x56", 32): (1.3, 1.6),
    ("2x2048x7x7", 32): (1.6, 2.0),
    ("1x32x96x96x96", 8): (1.5, 1.6),
    ("32x256x56x56", 32): (1.2, 1.5),
}
BACKWARD_LIMITS = {
    ("16x32x64x64", 8): (1.6, 1.8),
    ("2x320x64x64", 32): (1.6, 1.8),
    ("1x128x512x512", 32): (1.7, 1.8),
    ("2x64x56x56", 32): (1.6, 1.8),
    ("2x2048x7x7", 32): (2.2, 2.5),
    ("1x32x96x96x96", 8): (1.7, 1.8),
    ("32x256x56x56", 32): (1.4, 1.7),
}
IN_PLACE_LIMITS = {("32x256x56x56", 32): (1.0, 1.3), ("1x128x512x512", 32): (1.3, 1.5)}
HALF_LIMIT = 1.6  # bf16 and f16, in copies of their bytes
SILU_LIMITS = {"rotating": 1.3, "hot": 1.5}  # of the call without it
OPENVINO_LIMIT = 0.98  # OpenVINO's time for a model, in that with groupnorm: at least
SMALL_LIMITS = {("1x32x8x8", 8): 0.25, ("8x512", 32): 0.8}  # microseconds, one thread, hot
THREADS_LIMIT = 1.6  # times faster on two threads, where the copy gains that
SWEEP_LIMIT = 1.2  # the dearest element over the cheapest, past the last-level cache
FORWARD_BOUND = 3.0  # the error that is promised, in eps (1 + |gamma xhat| + |beta|)

HEADLINE = ("2x320x64x64", 32)  # the layer that the README names
_README_SHAPES = ("2x320x64x64", "1x128x512x512", "1x32x96x96x96", "32x256x56x56")
_NAMES = {  # of libraries, as they write themselves
    "ours": "groupnorm",
    "torch": "PyTorch",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "ncnn": "ncnn",
    "jax": "JAX",
}

_NAME = re.compile(
    r"(?P<direction>forward|backward)(\+(?P<activation>\w+?))?(?P<in_place>,in_place)?"
    r"/(?P<dtype>\w+)/(?P<layout>\w+)/(?P<shape>[0-9x]+)/g(?P<groups>\d+)"
    r"/threads:(?P<threads>\d+)/(?P<place>rotating|hot)"
)
_MARKED = re.compile(r"(<!-- bench:(?P<name>[\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


@dataclass(frozen=True)
class Key:
    """A case of the C++ benchmark."""

    direction: str  # forward, forward+silu, forward,in_place, backward
    dtype: str
    layout: str
    shape: str
    groups: int
    threads: int
    place: str  # rotating, hot


@dataclass
class Results:
    """All that was read."""

    cases: dict[Key, dict[str, Any]]  # counters
    compared: dict[tuple[Any, ...], dict[str, Any]]
    contexts: list[dict[str, Any]]
    instructions: dict[tuple[str, str, int], dict[str, Any]]  # direction, shape, groups: by layout
    accuracy: list[dict[str, Any]]  # of accuracy.py: library, mean, max_error_eps
    runtimes: dict[str, list[dict[str, Any]]]  # of runtimes.py: norms, errors, models
    openvino: dict[str, list[dict[str, Any]]]  # of runtimes_openvino.py: the same
    executorch: dict[str, list[dict[str, Any]]]  # of runtimes_executorch.py: the same
    values: list[dict[str, Any]]  # of groupnorm_values: a row each
    jvm: list[dict[str, Any]]  # cases of java/bench
    training: list[dict[str, Any]]  # of training.py
    chains: list[dict[str, Any]]  # of chains.py
    models: list[dict[str, Any]]  # of models.py, with batch and memory format


def _key(name: str) -> Key | None:
    if (found := _NAME.match(name)) is None:
        return None
    activation = f"+{found['activation']}" if found["activation"] else ""
    return Key(
        direction=found["direction"] + activation + (found["in_place"] or ""),
        dtype=found["dtype"],
        layout=found["layout"],
        shape=found["shape"],
        groups=int(found["groups"]),
        threads=int(found["threads"]),
        place=found["place"],
    )


def read(paths: Iterable[Path]) -> Results:
    """What the files hold; of a case that occurs twice, the last.

    Raises:
        BadInput: a file cannot be read, or none of the programs wrote it.
    """
    results = Results({}, {}, [], {}, [], {}, {}, {}, [], [], [], [], [])
    for path in paths:
        try:
            found = json.loads(path.read_text())
            if "instructions" in found:
                for each in found["instructions"]:
                    key = (each["direction"], each["shape"], each["groups"])
                    results.instructions.setdefault(key, {})[each["layout"]] = each
                continue
            if "training" in found:
                results.training = found["training"]
                continue
            if "chains" in found:
                results.chains = found["chains"]
                continue
            if "channels_last" in found:
                layout = LAYOUTS[found["channels_last"]]
                run = {"layout": layout, "batch": found["batch"] or 1}
                results.models += [row | run for row in found["results"]]
                continue
            if "jvm" in found:
                results.jvm = found["jvm"]
                continue
            if "values" in found:
                results.values += found["values"]
                continue
            if found.get("runtime") == "openvino":
                results.openvino = {name: found[name] for name in ("norms", "errors", "models")}
                continue
            if "executorch" in found:
                results.executorch = {name: found[name] for name in ("norms", "errors", "models")}
                continue
            if "norms" in found:
                results.runtimes = {name: found[name] for name in ("norms", "errors", "models")}
                continue
            results.contexts.append(found["context"])
            if "accuracy" in found:
                results.accuracy += found["accuracy"]
                continue
            if "benchmarks" in found:
                for each in found["benchmarks"]:
                    case = _key(each["name"])
                    if case is not None and not each.get("error_occurred"):
                        results.cases[case] = each
                continue
            for each in found["cases"]:
                names = ("direction", "dtype", "layout", "shape", "groups", "threads", "hot")
                results.compared[tuple(each[name] for name in names)] = each
        except OSError as error:
            raise BadInput(f"'{path}': cannot be read: {error.strerror}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"'{path}': is not JSON of a program of bench/ ({error!r})") from error
    return results


def _shape(text: str, groups: int) -> str:
    return f"[{text.replace('x', ', ')}], {groups}"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _marked(text: str, mark: bool) -> str:
    return f"**{text}**" if mark else text


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    rule = ["---" if i < words else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows)) + "\n"


# --- Of the C++ benchmark: each makes the text of a table, or nothing where there are no cases.

_PLACES = tuple((place, threads) for place in ("rotating", "hot") for threads in (1, 2))
_PLACES_HEAD = tuple(
    f"{threads} thread{'s' * (threads > 1)}, {place}" for place, threads in _PLACES
)


def _shapes(results: Results, direction: str, dtype: str) -> list[tuple[str, int]]:
    """Those of the table in its order: the sweep has shapes of its own."""
    keys = (key for key in results.cases if (key.direction, key.dtype) == (direction, dtype))
    sweep = set(_sweep_shapes(results))
    return [pair for pair in dict.fromkeys((k.shape, k.groups) for k in keys) if pair not in sweep]


def _sweep_shapes(results: Results) -> list[tuple[str, int]]:
    pairs = dict.fromkeys((key.shape, key.groups) for key in results.cases)
    return [pair for pair in pairs if re.fullmatch(r"\d+x64x(125x125|1562500*)", pair[0])]


def _ratios(
    results: Results,
    direction: str,
    dtype: str,
    counter: str,
    limit: Callable[[tuple[str, int], int, str], float | None],
) -> str:
    """Shapes down, places across, both layouts in a cell; bold beyond `limit`."""
    rows = []
    for pair in _shapes(results, direction, dtype):
        cells = []
        for place, threads in _PLACES:
            texts = []
            for i, layout in enumerate(LAYOUTS):
                case = results.cases.get(Key(direction, dtype, layout, *pair, threads, place))
                most = limit(pair, i, place)
                value: float | None = None if case is None else case[counter]
                beyond = value is not None and most is not None and round(value, 2) > most
                texts.append("-" if value is None else _marked(f"{value:.2f}", beyond))
            cells.append("-" if set(texts) == {"-"} else " / ".join(texts))
        rows.append([_shape(*pair), *cells, _limits_text(pair, limit)])
    return _table(["shape, groups", *_PLACES_HEAD, "at most"], rows) if rows else ""


def _limits_text(
    pair: tuple[str, int], limit: Callable[[tuple[str, int], int, str], float | None]
) -> str:
    def both(place: str) -> str:
        found = [limit(pair, i, place) for i in range(len(LAYOUTS))]
        return " / ".join("-" if value is None else f"{value:g}" for value in found)

    rotating, hot = both("rotating"), both("hot")
    return rotating if rotating == hot else f"{rotating}, hot {hot}"


def _by_shape(
    limits: dict[tuple[str, int], tuple[float, float]],
) -> Callable[[tuple[str, int], int, str], float | None]:
    return lambda pair, i, place: limits[pair][i] if pair in limits else None


def _half(pair: tuple[str, int], i: int, place: str) -> float | None:
    return None if pair in SMALL_LIMITS else HALF_LIMIT


def _silu(pair: tuple[str, int], i: int, place: str) -> float | None:
    return SILU_LIMITS[place]


def _small(results: Results) -> str:
    rows = []
    for pair, most in SMALL_LIMITS.items():
        case = results.cases.get(Key("forward", "f32", LAYOUTS[0], *pair, 1, "hot"))
        if case is not None:
            time = case["p50_us"]
            rows.append([_shape(*pair), _marked(_number(time), time > most), f"{most:g}"])
    return _table(["shape, groups", "us a call", "at most"], rows) if rows else ""


def _threads(results: Results) -> str:
    """What a second thread gains: the call and the copy."""
    rows = []
    timed = {key: case for key, case in results.cases.items() if "copy_p50_us" in case}
    for pair in _shapes(results, "forward", "f32"):
        cells = []
        for layout in LAYOUTS:
            one, two = (
                timed.get(Key("forward", "f32", layout, *pair, threads, "rotating"))
                for threads in (1, 2)
            )
            if one is None or two is None:
                cells += ["-", "-"]
                continue
            gain = one["p50_us"] / two["p50_us"]
            copy = one["copy_p50_us"] / two["copy_p50_us"]
            short = pair[1] == 1 and gain < THREADS_LIMIT <= copy
            cells += [_marked(f"{gain:.2f}", short), f"{copy:.2f}"]
        rows.append([_shape(*pair), *cells])
    head = [f"{layout}: {who}" for layout in LAYOUTS for who in ("call", "copy")]
    return _table(["shape, groups", *head], rows) if rows and timed else ""


def _sweep(results: Results) -> str:
    """Nanoseconds an element, bold where it is beyond the cheapest that is past the cache."""
    pairs = _sweep_shapes(results)
    columns = [(layout, threads) for layout in LAYOUTS for threads in (1, 2)]
    found: dict[tuple[Any, ...], float] = {}
    past: dict[tuple[Any, ...], float] = {}
    last = max((int(each.get("last_level_cache", 0)) for each in results.contexts), default=0)
    for pair in pairs:
        family = pair[0].count("x")
        for layout, threads in columns:
            case = results.cases.get(Key("forward", "f32", layout, *pair, threads, "rotating"))
            if case is None:
                continue
            each = case["p50_us"] * 1e3 / case["elements"]
            found[pair, layout, threads] = each
            if case["set_bytes"] > last:
                key = (family, layout, threads)
                past[key] = min(past.get(key, each), each)
    rows = []
    for pair in pairs:
        cells = []
        for layout, threads in columns:
            value = found.get((pair, layout, threads))
            least = past.get((pair[0].count("x"), layout, threads))
            beyond = value is not None and least is not None and value > SWEEP_LIMIT * least
            cells.append("-" if value is None else _marked(f"{value:.3f}", beyond))
        rows.append([_shape(*pair), *cells])
    head = [f"{layout}, {threads} thread{'s' * (threads > 1)}" for layout, threads in columns]
    return _table(["shape, groups", *head], rows) if rows else ""


# --- Of compare.py


def _compared(results: Results, direction: str, dtype: str, layout: str) -> str:
    cases = [
        each
        for key, each in results.compared.items()
        if key[:3] == (direction, dtype, layout) and not each["hot"]
    ]
    cases.sort(key=lambda each: each["threads"])
    names = list(dict.fromkeys(name for each in cases for name in each["contestants"]))
    names = ["ours", *(name for name in names if name not in ("ours", "copy")), "copy"]
    rows = []
    for case in cases:
        contestants = case["contestants"]
        ours = contestants["ours"]["p50_us"]
        cells = []
        for name in names:
            if name not in contestants:
                cells.append("-")
                continue
            each = contestants[name]
            ahead = not _is_ours(name) and name != "copy" and each["p50_us"] < ours
            error = each["max_error_eps"]
            text = _marked(_number(each["p50_us"]), ahead)
            cells.append(text if error is None else f"{text} ({_number(error)})")
        rows.append([_shape(case["shape"], case["groups"]), str(case["threads"]), *cells])
    return _table(["shape, groups", "threads", *names], rows) if rows else ""


def _is_ours(name: str) -> bool:
    return name.partition("-")[0] == "ours"


def _rivals(case: dict[str, Any]) -> dict[str, float]:
    """Microseconds of who is neither ours, in whatever framework, nor a copy."""
    contestants = case["contestants"]
    return {
        name: each["p50_us"]
        for name, each in contestants.items()
        if not _is_ours(name) and name != "copy"
    }


def _first(results: Results) -> str:
    """For each direction, dtype and layout: where ours is first, and how far ahead of the next."""
    rows = []
    for kind in dict.fromkeys(key[:3] for key in results.compared):
        ratios = []
        for key, case in results.compared.items():
            rivals = _rivals(case)
            if key[:3] == kind and rivals:
                ratios.append(min(rivals.values()) / case["contestants"]["ours"]["p50_us"])
        if not ratios:
            continue
        ratios.sort()
        first = sum(ratio >= 1 for ratio in ratios)
        span = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        rows.append([" ".join(kind), f"{first} of {len(ratios)}", span])
    return _table(["", "ours is first in", "time of the best rival, in ours"], rows) if rows else ""


def _behind(results: Results) -> str:
    """Every cell in which a rival is ahead of ours."""
    rows = []
    for (direction, dtype, layout, shape, groups, threads, hot), case in results.compared.items():
        place = "hot" if hot else "rotating"
        ours = case["contestants"]["ours"]["p50_us"]
        for name, time in _rivals(case).items():
            if time < ours:
                where = (
                    f"{direction} {dtype} {layout}, {threads} thread{'s' * (threads > 1)}, {place}"
                )
                rows.append([_shape(shape, groups), where, _number(ours), name, _number(time)])
    head = ["shape, groups", "where", "ours, us", "rival", "its us"]
    return _table(head, rows, words=2) if rows else "None.\n"


def _instructions(results: Results, direction: str) -> str:
    """In kernels + around them, for 8 elements."""
    head = ["shape, groups", *LAYOUTS]
    rows = []
    for (of, shape, groups), by_layout in results.instructions.items():
        if of == direction:
            cells = [
                f"{each['kernels']:.1f} + {each['around']:.1f}" if each else "-"
                for each in map(by_layout.get, LAYOUTS)
            ]
            rows.append([_shape(shape, groups), *cells])
    return _table(head, rows) if rows else ""


def _jvm(results: Results) -> str:
    """Microseconds of each on one thread, and of the loops how many times ours on buffers."""
    rows = []
    for case in results.jvm:
        times = case["p50_us"]
        ours = next(iter(times.values()))
        cells = [
            f"{_number(time)} ({time / ours:.1f})" if name.startswith("loop") else _number(time)
            for name, time in times.items()
        ]
        rows.append([_shape(case["shape"], case["groups"]), *cells])
    if not rows:
        return ""
    names = (f"`{name}`" for name in results.jvm[0]["p50_us"])  # else [][] would be a link
    return _table(["shape, groups", *names], rows)


def training_table(rows: list[dict[str, Any]]) -> str:
    """A row for each case and number of threads: microseconds of torch, and ratios to them."""
    if not rows:
        return ""
    first, *others = dict.fromkeys(row["way"] for row in rows)
    lines = [f"| forward + backward | threads | {first}, us | {' | '.join(others)} |"]
    lines.append("|---|---:|---:" + "|---:" * len(others) + "|")
    for case, threads in dict.fromkeys((row["case"], row["threads"]) for row in rows):
        of = {row["way"]: row for row in rows if (row["case"], row["threads"]) == (case, threads)}
        ratios = " | ".join(f"{of[name]['ratio']:.2f}" for name in others)
        lines.append(f"| {case} | {threads} | {of[first]['median']:.1f} | {ratios} |")
    return "\n".join(lines) + "\n"


def chains_table(rows: list[dict[str, Any]]) -> str:
    """A row for each chain, shape and dtype: both layouts in a cell, as times of ours.

    Bold: another that is ahead of ours.
    """
    names = [n for n in ("torch", "compile", "copy") if any(n in row["ratios"] for row in rows)]
    if not rows:
        return ""
    columns = [(d, n) for d in ("forward", "both") for n in ("ours", *names)]
    if any("added" in row["ratios"] for row in rows):
        columns.insert(1 + len(names), ("forward", "added"))
    words = {"ours": "us", "torch": "eager", "compile": "compile"}
    lines = ["| chain | shape | dtype |" + "".join(f" {words.get(n, n)} |" for _, n in columns)]
    lines.append("|---|---|---|" + "---:|" * len(columns))
    for chain, shape, dtype in dict.fromkeys((r["chain"], r["shape"], r["dtype"]) for r in rows):
        cells = []
        for direction, name in columns:
            found = [
                row
                for row in rows
                if (row["chain"], row["shape"], row["dtype"]) == (chain, shape, dtype)
                and row["direction"] == direction
            ]
            values = [
                f"{row['microseconds']['ours']:.0f}"
                if name == "ours"
                else _marked(
                    f"{row['ratios'][name]:.2f}", name in words and row["ratios"][name] < 1
                )
                for row in found
                if name in row["ratios"]
            ]
            cells.append(" / ".join(values))
        lines.append(f"| {chain} | {shape} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# --- Of the other programs


def _accuracy(results: Results) -> str:
    """Libraries down, means across; bold where the error is beyond what we promise."""
    means = list(dict.fromkeys(each["mean"] for each in results.accuracy))
    rows = []
    for library in dict.fromkeys(each["library"] for each in results.accuracy):
        cells = []
        for mean in means:
            error = _error(results, library, mean)
            cells.append(_marked(_number(error), not error <= FORWARD_BOUND))
        rows.append([library, *cells])
    head = ["library", *(f"{mean:g}" for mean in means)]
    return _table(head, rows) if rows else ""


def _error(results: Results, library: str, mean: float) -> float:
    for each in results.accuracy:
        if (each["library"], each["mean"]) == (library, mean) and each["max_error_eps"] is not None:
            return float(each["max_error_eps"])
    return math.nan


def _values(results: Results) -> str:
    """The time of a call on ordinary values, and of others as a multiple of that."""
    if not results.values:
        return ""
    kinds = list(results.values[0]["ratios"])
    rows = [
        [
            f"{_shape(each['shape'], each['groups'])}, {each['layout']}",
            f"{each['us']:.2f}",
            *(f"{each['ratios'][kind]:.2f}" for kind in kinds),
        ]
        for each in results.values
    ]
    return _table([f"{results.values[0]['dtype']}, forward", "us", *kinds], rows)


def _runtimes(rows: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str], case: str) -> str:
    """A row for each case and number of threads, a column for each way."""
    ways = list(dict.fromkeys(each["way"] for each in rows))
    cells = {(each["case"], each["threads"], each["way"]): cell(each) for each in rows}
    lines = [
        [name, str(threads), *(cells[name, threads, way] for way in ways)]
        for name, threads in dict.fromkeys((each["case"], each["threads"]) for each in rows)
    ]
    return _table([case, "threads", *ways], lines) if lines else ""


def models_table(rows: list[dict[str, Any]]) -> str:
    """A row for each model, batch and memory format: torch's time, ours, and their ratio.

    Below it the memory format in which each model is faster with groupnorm.
    """
    lines = []
    names = list(dict.fromkeys(row["model"] for row in rows))
    for row in sorted(rows, key=lambda row: names.index(row["model"])):
        low, high = row["speedup_quartiles"]
        line = [row["model"], str(row["batch"]), row["layout"], str(row["threads"])]
        line += [f"{row['torch_median']:.1f}", f"{row['ours_median']:.1f}"]
        line += [
            f"{row['alone_speedup']:.2f}",
            _marked(f"{row['speedup']:.2f}", row["speedup"] < 1),
            f"{low:.2f} to {high:.2f}",
        ]
        lines.append([*line, f"{row['torch_error']:.0e}", f"{row['ours_error']:.0e}"])
    head = ["model", "batch", "memory format", "threads", "torch, ms", "groupnorm, ms"]
    head += ["norms alone", "with neighbours", "quartiles", "torch, error", "groupnorm, error"]
    return _table(head, lines, words=3) + _faster_formats(rows) if lines else ""


def _faster_formats(rows: list[dict[str, Any]]) -> str:
    """Of models that were measured in both memory formats."""
    times: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in rows:
        of_model = times.setdefault((row["model"], row["batch"], row["threads"]), {})
        of_model[row["layout"]] = row["ours_median"]
    parts = []
    for (model, batch, threads), by_format in times.items():
        if len(by_format) > 1:
            fast, slow = sorted(by_format, key=lambda name: by_format[name])
            ratio = f"{by_format[slow] / by_format[fast]:.2f}"
            parts.append(f"{model}, batch {batch}, {threads} threads: {fast} {ratio}")
    return f"\nThe faster memory format, and how many times: {'; '.join(parts)}.\n" if parts else ""


def _openvino(rows: list[dict[str, Any]], case: str, with_layouts: bool) -> str:
    """A row for each case: OpenVINO's own time and error, and with groupnorm; bold if slower."""
    lines = []
    for each in rows:
        crashed = each["stock"] is None
        stock = "crashes" if crashed else f"{each['stock']:.2f}"
        ratio = "" if crashed else _marked(f"{each['ratio']:.2f}", each["ratio"] < OPENVINO_LIMIT)
        error = "" if crashed else f"{each['stock_error']:.0e}"
        layouts = ", ".join(f"{count} {name}" for name, count in each["layouts"].items())
        line = [each["case"], each["precision"], str(each["threads"]), stock]
        line += [f"{each['ours']:.2f}", ratio, error, f"{each['error']:.0e}"]
        lines.append(line + [layouts] * with_layouts)
    head = [case, "precision", "threads", "openvino, ms", "groupnorm, ms", "ratio"]
    head += ["openvino, error", "groupnorm, error", *["norms"] * with_layouts]
    return _table(head, lines, words=2) if lines else ""


def _openvino_errors(rows: list[dict[str, Any]]) -> str:
    lines = [
        [each["case"], f"{each['stock_error']:.0e}", f"{each['error']:.0e}"]
        for each in rows
        if each["stock_error"] is not None
    ]
    return _table(["largest error", "openvino", "groupnorm"], lines) if lines else ""


def _of_model(row: dict[str, Any]) -> str:
    memory = f"{row['peak'] or 0:.0f} MiB"
    return f"{row['median']:.1f} ms, {row['error']:.0e}, {memory}, {row['nodes']} nodes"


def _timed_cell(row: dict[str, Any]) -> str:
    if math.isnan(row["median"]):
        return "refused"
    return f"{row['median']:.2f} ms, {_error_cell(row)}"


def _error_cell(row: dict[str, Any]) -> str:
    return f"{row['error']:.0e}"


def _headline(results: Results) -> str:
    """What the README says first: time and error beside the others, on the layer of HEADLINE."""
    case = results.compared.get(("forward", "f32", LAYOUTS[0], *HEADLINE, 1, False))
    if case is None or not results.accuracy:
        return ""
    ours = case["contestants"]["ours"]["p50_us"]
    ratios = {name: time / ours for name, time in _rivals(case).items() if name != "compile"}
    times = ", ".join(
        f"{_NAMES.get(name, name)} {ratio:.1f}"
        for name, ratio in sorted(ratios.items(), key=lambda pair: pair[1])
    )
    worst = max(each["mean"] for each in results.accuracy)
    errors = {
        each["library"]: _error(results, each["library"], mean)
        for each in results.accuracy
        if (mean := each["mean"]) == worst
    }
    others = min(
        error for name, error in errors.items() if name != "ours" and not math.isnan(error)
    )
    shape = _shape(HEADLINE[0], HEADLINE[1]).rpartition(",")[0]
    return (
        f"On {shape} in {HEADLINE[1]} groups (f32, one thread, from memory) groupnorm takes "
        f"{ours / 1e3:.2f} ms. Others take longer: {times} times. At a mean of {worst:g} standard "
        f"deviations its error is {errors['ours']:.1f} units of eps (1 + |gamma xhat| + |beta|); "
        f"the smallest of the others is {_number(others)}.\n"
    )


def _slower(results: Results) -> str:
    """How often another library is faster, and by how much at most, by direction."""
    parts = []
    for directions, words in (
        (("forward", "forward+silu"), "forward"),
        (("forward+backward",), "forward and backward"),
    ):
        ratios = [
            case["contestants"]["ours"]["p50_us"] / min(_rivals(case).values())
            for key, case in results.compared.items()
            if key[0] in directions and _rivals(case)
        ]
        slower = [ratio for ratio in ratios if ratio > 1]
        if not ratios:
            continue
        most = f", by at most {max(slower):.2f} times" if slower else ""
        parts.append(f"in {len(slower)} of {len(ratios)} cases of {words}{most}")
    return f"Another library is faster {'; '.join(parts)}.\n" if parts else ""


def _skipped(results: Results) -> str:
    rows = dict.fromkeys(
        (name, why) for each in results.compared.values() for name, why in each["skipped"].items()
    )
    return _table(["rival", "does not play where"], sorted(rows), words=2) if rows else ""


def tables(results: Results) -> dict[str, str]:
    """Markdown by the name of the table; those without any case are missing."""
    found = {
        "forward": _ratios(results, "forward", "f32", "copy_ratio", _by_shape(FORWARD_LIMITS)),
        "backward": _ratios(results, "backward", "f32", "copy_ratio", _by_shape(BACKWARD_LIMITS)),
        "in-place": _ratios(
            results, "forward,in_place", "f32", "copy_ratio", _by_shape(IN_PLACE_LIMITS)
        ),
        "silu": _ratios(results, "forward+silu", "f32", "plain_ratio", _silu),
        "small": _small(results),
        "threads": _threads(results),
        "sweep": _sweep(results),
    }
    for dtype in ("bf16", "f16"):
        found[f"forward-{dtype}"] = _ratios(results, "forward", dtype, "copy_ratio", _half)
        found[f"backward-{dtype}"] = _ratios(results, "backward", dtype, "copy_ratio", _half)
    for direction, dtype, layout in dict.fromkeys(key[:3] for key in results.compared):
        name = f"compare-{direction}-{dtype}-{layout}".replace("+", "-").replace("_", "-")
        found[name] = _compared(results, direction, dtype, layout)
    if results.compared:
        found["compare-first"] = _first(results)
        found["compare-behind"] = _behind(results)
    for direction in ("forward", "backward"):
        found[f"instructions-{direction}"] = _instructions(results, direction)
    found["compare-skipped"] = _skipped(results)
    found["jvm"] = _jvm(results)
    found["training"] = training_table(results.training)
    found["chains"] = chains_table(results.chains)
    found["models"] = models_table(results.models)
    found["accuracy"] = _accuracy(results)
    found["values"] = _values(results)
    found["headline"] = _headline(results)
    found["slower"] = _slower(results)
    for name, cell, case in (
        ("norms", lambda row: f"{row['median']:.2f}", "norm, ms"),
        ("errors", lambda row: f"{row['error']:.0e}", "largest error"),
        ("models", _of_model, "model"),
    ):
        found[f"onnxruntime-{name}"] = _runtimes(results.runtimes.get(name, []), cell, case)
    found["openvino-norms"] = _openvino(results.openvino.get("norms", []), "norm", False)
    found["openvino-errors"] = _openvino_errors(results.openvino.get("errors", []))
    found["openvino-models"] = _openvino(results.openvino.get("models", []), "model", True)
    for name, case in (("norms", "norm"), ("errors", "largest error"), ("models", "model")):
        timed = _error_cell if name == "errors" else _timed_cell
        found[f"executorch-{name}"] = _runtimes(results.executorch.get(name, []), timed, case)
    found["machine"] = _machine(results) if results.contexts else ""
    return {name: text for name, text in found.items() if text}


def _machine(results: Results) -> str:
    """One line on what all of it was measured."""
    seen: dict[str, None] = {}
    for context in results.contexts:
        versions = context.get("versions") or {"groupnorm": context.get("groupnorm", "unknown")}
        words = ", ".join(f"{name} {version}" for name, version in versions.items())
        last = int(context.get("last_level_cache", 0)) >> 20
        where = f"{context.get('processor', 'unknown')}, {last} MB last-level cache"
        seen[f"{where}, {context.get('target', 'unknown')}; {words}."] = None
    return "\n".join(seen) + "\n"


def fill(text: str, found: dict[str, str], where: str) -> str:
    """`text` with the tables between its markers.

    Raises:
        BadInput: it names a table that there is not.
    """
    names = [match["name"] for match in _MARKED.finditer(text)]
    if missing := [name for name in names if name not in found]:
        raise BadInput(f"'{where}': asks for table {missing[0]}; there are: {', '.join(found)}")
    return _MARKED.sub(lambda match: match[1] + found[match["name"]] + match[3], text)


# --- Plots


def _plot_ratios(results: Results, direction: str, figure: Any) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    pairs = _shapes(results, direction, "f32")
    pairs = [pair for pair in pairs if pair not in SMALL_LIMITS]
    for threads, ax in zip((1, 2), axes, strict=True):
        for i, layout in enumerate(LAYOUTS):
            cases = (
                results.cases.get(Key(direction, "f32", layout, *pair, threads, "rotating"))
                for pair in pairs
            )
            ratios = [case["copy_ratio"] if case else 0 for case in cases]
            ax.barh([row + 0.4 * i for row in range(len(pairs))], ratios, 0.4, label=layout)
        ax.axvline(1, color="black", linewidth=0.8, linestyle=":")
        ax.set_title(f"{direction}, f32, rotating, {threads} threads", fontsize=8)
        ax.set_xlabel("copies of the same bytes", fontsize=8)
    axes[0].set_yticks(
        [row + 0.2 for row in range(len(pairs))], [_shape(*pair) for pair in pairs], fontsize=7
    )
    axes[0].invert_yaxis()
    axes[0].legend(fontsize=7)


def _plot_sweep(results: Results, figure: Any) -> None:
    ax = figure.subplots()
    pairs = _sweep_shapes(results)
    for by, sizes in (("examples", 3), ("positions", 2)):
        for layout in LAYOUTS:
            cases = [
                results.cases.get(Key("forward", "f32", layout, *pair, 1, "rotating"))
                for pair in pairs
                if pair[0].count("x") == sizes
            ]
            points = [(c["elements"], c["p50_us"] * 1e3 / c["elements"]) for c in cases if c]
            ax.plot(*zip(*points, strict=True), marker="o", label=f"{layout}, more {by}")
    ax.set_xscale("log")
    ax.set_ylim(bottom=0)
    ax.set_xlabel("elements")
    ax.set_ylabel("ns an element, 1 thread, rotating")
    ax.legend(fontsize=7)


def _libraries(names: Iterable[str]) -> dict[str, str]:
    """The libraries of a plot and their colours, which are the same in every plot. Ours is first."""
    present = set(names)
    colours = {"ours": "black"} | {name: f"C{i}" for i, name in enumerate([*_NAMES, "mlx"][1:])}
    return {name: colour for name, colour in colours.items() if name in present}


def _draw_accuracy(results: Results, ax: Any) -> None:
    means = sorted({each["mean"] for each in results.accuracy})
    colours = _libraries(dict.fromkeys(each["library"] for each in results.accuracy))
    for name, colour in colours.items():
        errors = [_error(results, name, mean) for mean in means]
        width = 2.5 if name == "ours" else 1.2
        ax.plot(means, errors, color=colour, linewidth=width, label=_NAMES.get(name, name))
    ax.axhline(FORWARD_BOUND, color="black", linewidth=0.8, linestyle=":")
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(left=0)
    ax.set_yscale("log")
    ax.set_xlabel("|mean| / standard deviation")
    ax.set_ylabel("largest error, eps (1 + |gamma xhat| + |beta|)")
    ax.legend(fontsize=7)


def _plot_accuracy(results: Results, figure: Any) -> None:
    _draw_accuracy(results, figure.subplots())


def _plain_cases(results: Results) -> list[dict[str, Any]]:
    """Forward, f32, channels_first, one thread, from memory."""
    plain = ("forward", "f32", LAYOUTS[0])
    return [
        each
        for key, each in results.compared.items()
        if key[:3] == plain and key[5] == 1 and not each["hot"]
    ]


def _plot_headline(results: Results, figure: Any) -> None:
    """Left: the time of others in ours, on the larger shapes. Right: the error by the mean."""
    left, right = figure.subplots(1, 2)
    cases = [each for each in _plain_cases(results) if each["shape"] in _README_SHAPES]
    names = _libraries(dict.fromkeys(n for each in cases for n in each["contestants"]))
    height = 0.8 / len(names)
    for i, (name, colour) in enumerate(names.items()):
        found = [each["contestants"].get(name) for each in cases]
        ours = [each["contestants"]["ours"]["p50_us"] for each in cases]
        ratios = [f["p50_us"] / o if f else 0 for f, o in zip(found, ours, strict=True)]
        rows = [row + i * height for row in range(len(cases))]
        left.barh(rows, ratios, height, color=colour, label=_NAMES.get(name, name))
    labels = [_shape(each["shape"], each["groups"]) for each in cases]
    left.set_yticks([row + 0.4 - height / 2 for row in range(len(cases))], labels, fontsize=8)
    left.invert_yaxis()
    left.set_xscale("log")
    left.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    left.minorticks_off()
    left.set_xlabel("time / groupnorm's time (forward, f32, 1 thread)")
    left.set_title("Time: shorter is better", fontsize=10)
    _draw_accuracy(results, right)
    right.legend(*left.get_legend_handles_labels(), fontsize=7)
    right.set_title("Error: lower is better; dotted: groupnorm's bound", fontsize=10)


def _plot_sizes(results: Results, figure: Any) -> None:
    """Microseconds by the number of elements, for every library."""
    ax = figure.subplots()
    cases = sorted(_plain_cases(results), key=lambda each: int(each["bytes_moved"]))
    names = _libraries(dict.fromkeys(n for each in cases for n in each["contestants"]))
    for name, colour in (names | {"copy": "grey"}).items():
        points = [
            (each["bytes_moved"] / 8, each["contestants"][name]["p50_us"])
            for each in cases
            if name in each["contestants"]
        ]
        style = "--" if name == "copy" else "-"
        label = "a copy" if name == "copy" else _NAMES.get(name, name)
        ax.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("elements of x (shapes of the table)")
    ax.set_ylabel("us a call (forward, f32, 1 thread)")
    ax.legend(fontsize=7)


def plot(results: Results, folder: Path) -> list[Path]:
    """Draws what there are results for; the files that were written."""
    from matplotlib.figure import Figure

    drawings: list[tuple[str, Callable[[Any], None]]] = []
    for direction in ("forward", "backward"):
        if _shapes(results, direction, "f32"):
            drawings.append((direction, partial(_plot_ratios, results, direction)))
    if _sweep_shapes(results):
        drawings.append(("sweep", partial(_plot_sweep, results)))
    if _plain_cases(results):
        drawings.append(("sizes", partial(_plot_sizes, results)))
    if results.accuracy:
        drawings.append(("accuracy", partial(_plot_accuracy, results)))
    if results.accuracy and any(e["shape"] in _README_SHAPES for e in _plain_cases(results)):
        drawings.append(("headline", partial(_plot_headline, results)))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in drawings:
        figure = Figure(figsize=(9, 5), layout="constrained")
        draw(figure)
        path = folder / f"{name}.png"
        with pending(path) as temporary:
            figure.savefig(temporary, dpi=120)
        written.append(path)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", nargs="+", type=Path)
    parser.add_argument("--update", nargs="+", type=Path, metavar="FILE", default=[])
    parser.add_argument("--plots", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        results = read(options.json)
        found = tables(results)
        texts = {}
        for path in options.update:  # all of them, before one is written
            if not path.is_file():
                raise BadInput(f"--update: '{path}': is not a file")
            text = path.read_text()
            if (filled := fill(text, found, str(path))) != text:
                texts[path] = filled
        for path, text in texts.items():
            with pending(path) as temporary:
                temporary.write_text(text)
        written = plot(results, options.plots) if options.plots else []
    except BadInput as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    if not options.update and not options.plots:
        for name, text in found.items():
            print(f"<!-- bench:{name} -->\n{text}<!-- /bench -->\n")
    for path in (*texts, *written):
        print(f"wrote    {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
