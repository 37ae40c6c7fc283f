"""What bench says: a table, JSON, a plot, and how far it has come."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import groupnorm

from .command import require
from .contest import COPY, OURS, Case, Outcome, Setting, Times
from .pending import pending

RIVALS = ("torch", "compile", "numpy")

_KEYS_OF_RIVAL = ("p50_us", "p99_us", "ratio", "max_error_eps")

JSON_KEYS = (
    *("model", "shape", "groups", "dtype", "layout", "activation", "direction", "api"),
    *("threads", "target", "hot", "p50_us", "p99_us", "gb_per_s", "max_error_eps"),
    *("copy_p50_us", "copy_p99_us", "copy_ratio"),
    *(f"{rival}_{key}" for rival in RIVALS for key in _KEYS_OF_RIVAL),
    *("version", "rival_version"),
)


def rival_version(setting: Setting) -> str:
    if setting.api == "torch":
        import torch

        return str(torch.__version__)
    import numpy

    return numpy.__version__


def as_json(outcome: Outcome, setting: Setting) -> dict[str, Any]:
    """The object of a case: the keys JSON_KEYS; those of who did not play are None."""
    times, errors = outcome.times, outcome.errors
    case = outcome.case
    ours = times[OURS]
    info = groupnorm.info()
    found: dict[str, Any] = {
        "model": case.model,
        "shape": case.text,
        "groups": case.groups,
        "dtype": setting.dtype,
        "layout": setting.layout,
        "activation": setting.activation,
        "direction": setting.direction,
        "api": setting.api,
        "threads": setting.threads,
        "target": info["target"],
        "hot": setting.hot,
        "p50_us": ours.p50,
        "p99_us": ours.p99,
        "gb_per_s": outcome.bytes_moved / ours.p50 * 1e-3,
        "max_error_eps": errors[OURS],
        "copy_p50_us": times[COPY].p50,
        "copy_p99_us": times[COPY].p99,
        "copy_ratio": outcome.copies(OURS),
    }
    for rival in RIVALS:
        time = times.get(rival)
        values = (
            time and time.p50,
            time and time.p99,
            outcome.ratio(rival),
            errors.get(rival),
        )
        found.update(zip((f"{rival}_{key}" for key in _KEYS_OF_RIVAL), values, strict=True))
    found.update(version=info["version"], rival_version=rival_version(setting))
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else value
        for key, value in found.items()
    }


def _us(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _columns(outcome: Outcome, rivals: Sequence[str]) -> list[str]:
    def of(name: str) -> list[str]:
        time: Times | None = outcome.times.get(name)
        return ["-", "-"] if time is None else [_us(time.p50), _us(time.p99)]

    def factor(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    def error(name: str) -> str:
        value = outcome.errors.get(name)
        return "-" if value is None else f"{value:.2f}" if value < 1000 else f"{value:.2g}"

    case = outcome.case
    faster = outcome.faster
    if not outcome.times:
        remark = "WRONG: not timed"
    else:
        remark = f"{' and '.join(faster)} faster" if faster else ""
    return [
        *(case.model, case.text, str(case.groups)),
        *of(OURS),
        *(text for rival in rivals for text in of(rival)),
        *of(COPY),
        *(factor(outcome.ratio(rival)) for rival in rivals),
        factor(outcome.copies(OURS) if outcome.times else None),
        *(error(name) for name in (OURS, *rivals)),
        remark,
    ]


def describe(setting: Setting) -> str:
    """One line: what is measured, and on what."""
    info = groupnorm.info()
    rival = "NumPy" if setting.api == "numpy" else "torch"
    place = "in buffers that stay where they are" if setting.hot else "in buffers that rotate"
    return (
        f"{setting.direction}, {setting.dtype}, {setting.layout}, activation {setting.activation}, "
        f"{place}; groupnorm {info['version']} ({info['target']}) and {rival} "
        f"{rival_version(setting)}, {setting.threads} threads"
    )


def _unit(setting: Setting) -> str:
    terms = (
        "and the sum of the absolute terms, the worst of dx, dgamma and dbeta"
        if setting.backward
        else "(1 + |gamma xhat| + |beta|)"
    )
    return f"eps of {setting.dtype} {terms}"


def table(outcomes: Sequence[Outcome], setting: Setting) -> str:
    """The text of all cases."""
    rivals = [rival for rival in RIVALS if any(rival in each.times for each in outcomes)]
    head = [
        *("model", "shape", "groups"),
        *(text for name in (OURS, *rivals, COPY) for text in (f"{name} p50", "p99")),
        *(f"{rival}/ours" for rival in rivals),
        "ours/copy",
        *(f"error {name}" for name in (OURS, *rivals)),
        "",
    ]
    rows = [head, *(_columns(outcome, rivals) for outcome in outcomes)]
    if not any(outcome.case.model for outcome in outcomes):
        rows = [row[1:] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    words = rows[0].index("groups")  # the columns before it, and the last

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            text.ljust(width) if i < words or i + 1 == len(row) else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    copy = "x.copy()" if setting.api == "numpy" else "x.clone()"
    if setting.backward:
        copy += ", of 2.5 tensors: as many bytes as both directions move"
    notes = (
        "Times in microseconds; a call allocates its result from memory that is freed and kept.",
        f"copy: {copy}.",
        f"error: the worst against float64, in units of {_unit(setting)}.",
    )
    return "\n".join((describe(setting), "", *map(line, rows), "", *notes))


def plot(outcomes: Sequence[Outcome], setting: Setting, path: Path) -> None:
    """Draws the times in copies of the same bytes as a .png."""
    figure_module = require("matplotlib.figure", "bench", "--plot")
    names = [name for name in (OURS, *RIVALS) if any(name in each.times for each in outcomes)]
    figure = figure_module.Figure(figsize=(9, 1.5 + 0.6 * len(outcomes)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        lengths = [outcome.copies(name) or 0 for outcome in outcomes]
        bars = axes.barh([row + i * height for row in range(len(outcomes))], lengths, height)
        bars.set_label(name)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(
        [row + 0.4 - height / 2 for row in range(len(outcomes))],
        [f"{each.case.model}\n{each.case.text}, {each.case.groups} groups" for each in outcomes],
        fontsize=7,
    )
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("median time, in copies of the same bytes")
    first, _, second = describe(setting).partition("; ")
    axes.set_title(f"{first}\n{second}", fontsize=8)
    axes.legend(fontsize=8)
    with pending(path) as temporary:
        figure.savefig(temporary, dpi=150)


class Progress:
    """How far it has come, to stderr: a line a case."""

    def __init__(self, total: int) -> None:
        self._total = total

    def over(self, cases: Sequence[Case]) -> Iterator[Case]:
        """The cases, each announced."""
        for done, case in enumerate(cases):
            self.show(done, f"{case.model} {case.text}".strip())
            yield case

    def show(self, done: int, text: str) -> None:
        self.note(f"{done + 1}/{self._total} {text}")

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Bar(Progress):
    """A bar by rich."""

    def __init__(self, total: int, bar: Any) -> None:
        super().__init__(total)
        self._bar, self._task = bar, bar.add_task("", total=total)

    def show(self, done: int, text: str) -> None:
        self._bar.update(self._task, completed=done, description=text)
        self._bar.refresh()

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_of(total: int) -> Iterator[Progress]:
    """A bar where stderr is a terminal and rich is installed."""
    if not (sys.stderr.isatty() and importlib.util.find_spec("rich")):
        yield Progress(total)
        return
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    # Without its thread, which would take time from what is measured, and without stdout.
    with RichProgress(
        console=Console(stderr=True),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        transient=True,
    ) as bar:
        yield _Bar(total, bar)
