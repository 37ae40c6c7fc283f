"""The plots of a study."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import paper
from .summary import Summary

_COLORS = {"BN": "tab:blue", "GN": "tab:red", "LN": "tab:green", "IN": "tab:purple"}
_SIZE = (10.0, 4.0)  # inches, of two panels
_TICKS = (1, 2, 5, 10, 20, 50, 90)  # 90: by guessing


def _panels(title: str) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=10)
    for each in axes:
        each.set_ylabel("test error, %")
        each.set_yscale("log")
        each.set_yticks(_TICKS, [str(tick) for tick in _TICKS])
        each.minorticks_off()
        each.set_ylim(1, 100)
        each.grid(alpha=0.3)
    return figure, axes


def _halving(axes: Axes, sizes: Sequence[int]) -> None:
    """Sizes from large to small, as in the paper's figures and tables."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.invert_xaxis()


def _line(axes: Axes, x: Sequence[int], spreads: Sequence[dict[str, float]], **look: Any) -> None:
    """Means, with bars from the least to the largest of the seeds."""
    mean = [each["mean"] for each in spreads]
    below = [each["mean"] - each["low"] for each in spreads]
    above = [each["high"] - each["mean"] for each in spreads]
    axes.errorbar(x, mean, yerr=(below, above), marker="o", markersize=4, capsize=3, **look)


def _title(summary: Summary, what: str) -> str:
    study = summary["study"]
    return (
        f"{what}: {study['data']}, {study['images']} images, {study['epochs']} epochs; "
        f"mean, least and largest of {study['seeds']} seed(s)"
    )


def _by_batch(summary: Summary) -> Figure:
    figure, panels = _panels(_title(summary, "error against batch"))
    for axes, (network, norms) in zip(panels, summary["errors"].items(), strict=True):
        for norm, batches in norms.items():
            x = [int(batch) for batch in batches]
            _line(axes, x, [c[-1] for c in batches.values()], label=norm, color=_COLORS[norm])
        _halving(axes, sorted({int(b) for batches in norms.values() for b in batches}))
        axes.set_title(f"{network} network", fontsize=10)
        axes.set_xlabel("images a batch")
        axes.legend()
    return figure


def _convergence(summary: Summary) -> Figure:
    figure, panels = _panels(_title(summary, "residual network"))
    batches = summary["study"]["batches"]
    for axes, batch in zip(panels, (batches[0], batches[-1]), strict=True):
        for norm, curves in summary["errors"]["residual"].items():
            curve = curves[str(batch)]
            _line(axes, range(1, len(curve) + 1), curve, label=norm, color=_COLORS[norm])
        axes.set_title(f"batch {batch}", fontsize=10)
        axes.set_xlabel("epochs")
        axes.legend()
    return figure


def _groups(summary: Summary) -> Figure:
    figure, panels = _panels(_title(summary, f"residual network, batch {summary['sweep_batch']}"))
    for axes, key, words, theirs in (
        (panels[0], "groups", "groups", paper.BY_GROUPS),
        (panels[1], "channels", "channels a group", paper.BY_CHANNELS),
    ):
        sizes = [int(size) for size in summary[key]]
        _line(axes, sizes, list(summary[key].values()), color=_COLORS["GN"], label="here")
        right = axes.twinx()
        right.plot(paper.SIZES, theirs, "s--", color="gray", markersize=4)
        right.set_ylabel("paper (ResNet-50, ImageNet), %", color="gray")
        axes.plot([], [], "s--", color="gray", markersize=4, label="paper, right scale")
        _halving(axes, sizes)
        axes.set_xlabel(words)
        axes.legend()
    return figure


def draw(summary: Summary) -> dict[str, Figure]:
    """By the names of their files."""
    return {
        "error_by_batch.png": _by_batch(summary),
        "convergence.png": _convergence(summary),
        "groups.png": _groups(summary),
    }
