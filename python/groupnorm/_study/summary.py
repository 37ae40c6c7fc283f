"""What came of a study, as plain values: means and spreads over seeds, and the claims they bear."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from . import paper
from .data import SOURCES
from .network import NETWORKS, positions_of
from .plan import SWEEP, SWEEP_BATCH, Study
from .timing import Times
from .training import Outcome, Run

Summary = dict[str, Any]  # ready for JSON
Get = Callable[[Run], Outcome | None]


_WHY_NOT_BN = {
    "residual": "in so few steps the noise of small batches costs less than seeds differ.",
    "plain": "as expected, it is the network that stays clear of the cause: its norms are of "
    "hundreds of values even in the smallest batch.",
}
_WHY_NOT_STEPS = (
    "all batches see the same examples, so they differ in the number of steps too, and a short "
    "training leaves norms at different points of their way (see the convergence)."
)
_WHY_NOT_GROUPS = (
    "where a group has more than two values, all sizes of groups lie about as far apart as seeds. "
    "The paper's differences are of 53 norms and 1000 classes; its G = 64 to 2 lie within 0.6 "
    "points as well. That ten digits can be told without comparing channels, which IN prevents, is "
    "a likely reason, and untested."
)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of one value over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(round(sum(values) / len(values), 4), min(values), max(values))


def differs(a: Spread, b: Spread, images: int) -> bool:
    """Whether two test errors in percent lie further apart than chance puts them.

    No seed of one reaches the other, and the means differ by more than two standard errors of the
    difference of two such shares of `images`.
    """
    p = (a.mean + b.mean) / 200
    chance = 100 * math.sqrt(2 * p * (1 - p) / images)
    apart = a.high < b.low or b.high < a.low
    return apart and abs(a.mean - b.mean) > 2 * chance


def _curves(runs: Sequence[Run], get: Get) -> list[Spread]:
    """The test error after each epoch."""
    outcomes = [outcome for run in runs if (outcome := get(run)) is not None]
    return [Spread.of(values) for values in zip(*(o.errors for o in outcomes), strict=True)]


def _last(runs: Sequence[Run], get: Get) -> Spread:
    return _curves(runs, get)[-1]


class _Claims:
    """What the paper says, held against the numbers."""

    def __init__(self, study: Study, get: Get) -> None:
        self._study, self._get = study, get
        self._test = SOURCES[study.data].size - study.images
        self._large, self._small = study.batches[0], study.batches[-1]

    def _error(self, network: str, norm: str, batch: int) -> Spread:
        return _last(self._study.of_norm(network, norm, batch), self._get)

    def _differs(self, a: Spread, b: Spread) -> bool:
        return differs(a, b, self._test)

    def all(self) -> list[dict[str, Any]]:
        return [
            self._bn_fails("residual"),
            self._gn_holds(),
            self._gn_beats_bn(),
            self._bn_best_at_large(),
            self._norms_at_large(),
            self._groups(),
            *([self._single()] if self._study.batches_of("residual", "GN")[-1] == 1 else []),
            self._bn_fails("plain"),
        ]

    def _claim(
        self, text: str, theirs: str, here: str, shows: bool, *, why_not: str
    ) -> dict[str, Any]:
        return {"claim": text, "paper": theirs, "here": here, "shows": shows, "why_not": why_not}

    def _bn_fails(self, network: str) -> dict[str, Any]:
        large, small = (self._error(network, "BN", b) for b in (self._large, self._small))
        return self._claim(
            f"{network} network: the error of BN grows as batches shrink, {self._large} to "
            f"{self._small}",
            f"{paper.BY_BATCH['BN'][0]} to {paper.BY_BATCH['BN'][-1]}",
            f"{large.mean:.1f} to {small.mean:.1f}",
            small.mean > large.mean and self._differs(large, small),
            why_not=_WHY_NOT_BN[network],
        )

    def _gn_holds(self) -> dict[str, Any]:
        large, small = (self._error("residual", "GN", b) for b in (self._large, self._small))
        return self._claim(
            f"that of GN does not, {self._large} to {self._small}",
            f"{paper.BY_BATCH['GN'][0]} to {paper.BY_BATCH['GN'][-1]}",
            f"{large.mean:.1f} to {small.mean:.1f}",
            small.mean <= large.mean or not self._differs(large, small),
            why_not=_WHY_NOT_STEPS,
        )

    def _gn_beats_bn(self) -> dict[str, Any]:
        bn, gn = (self._error("residual", norm, self._small) for norm in ("BN", "GN"))
        return self._claim(
            f"at batch {self._small} GN is better than BN",
            f"{paper.BY_BATCH['GN'][-1]} and {paper.BY_BATCH['BN'][-1]}",
            f"{gn.mean:.1f} and {bn.mean:.1f}",
            gn.mean < bn.mean and self._differs(gn, bn),
            why_not=_WHY_NOT_BN["residual"],
        )

    def _bn_best_at_large(self) -> dict[str, Any]:
        bn, gn = (self._error("residual", norm, self._large) for norm in ("BN", "GN"))
        return self._claim(
            f"at batch {self._large} BN is a little better than GN",
            f"{paper.AT_32['BN']} and {paper.AT_32['GN']}",
            f"{bn.mean:.1f} and {gn.mean:.1f}",
            bn.mean < gn.mean and self._differs(gn, bn),
            why_not=_WHY_NOT_STEPS,
        )

    def _norms_at_large(self) -> dict[str, Any]:
        gn, ln, instance = (
            self._error("residual", norm, self._large) for norm in ("GN", "LN", "IN")
        )
        return self._claim(
            f"at batch {self._large} GN is better than LN and IN",
            " ".join(f"{norm} {paper.AT_32[norm]}" for norm in ("GN", "LN", "IN")),
            f"GN {gn.mean:.1f} LN {ln.mean:.1f} IN {instance.mean:.1f}",
            all(gn.mean < other.mean and self._differs(gn, other) for other in (ln, instance)),
            why_not=_WHY_NOT_GROUPS,
        )

    def _groups(self) -> dict[str, Any]:
        spreads = {g: _last(self._study.of_groups(g), self._get) for g in SWEEP}
        between = {g: spreads[g] for g in SWEEP[1:-1]}
        best = min(between, key=lambda g: between[g].mean)
        ends = (spreads[SWEEP[0]], spreads[SWEEP[-1]])
        return self._claim(
            "some number of groups between 1 and C is better than both",
            f"G=32 {paper.BY_GROUPS[1]}, G=1 {paper.AT_32['LN']}, G=C {paper.AT_32['IN']}",
            f"G={best} {between[best].mean:.1f}, G=1 {ends[1].mean:.1f}, G=C {ends[0].mean:.1f}",
            all(between[best].mean < e.mean and self._differs(between[best], e) for e in ends),
            why_not=_WHY_NOT_GROUPS,
        )

    def _single(self) -> dict[str, Any]:
        single, large = (self._error("residual", "GN", b) for b in (1, self._large))
        return self._claim(
            f"GN learns from images one by one as well as from batches of {self._large}",
            "-",
            f"{single.mean:.1f} and {large.mean:.1f}",
            single.mean <= large.mean or not self._differs(single, large),
            why_not=_WHY_NOT_STEPS,
        )


def summarize(study: Study, get: Get, times: Sequence[Times]) -> Summary:
    """All numbers of the report. `get` has the outcome of every run."""
    source = SOURCES[study.data]

    def by_batch(network: str, norm: str) -> dict[str, Any]:
        return {
            str(batch): [
                dataclasses.asdict(spread)
                for spread in _curves(study.of_norm(network, norm, batch), get)
            ]
            for batch in study.batches_of(network, norm)
        }

    def sweep(runs_of: Callable[[int], list[Run]]) -> dict[str, Any]:
        return {str(size): dataclasses.asdict(_last(runs_of(size), get)) for size in SWEEP}

    return {
        "study": dataclasses.asdict(study),
        "test_images": source.size - study.images,
        "data": source.title,
        "positions": {network: positions_of(network, source.side) for network in NETWORKS},
        "claims": _Claims(study, get).all(),
        # The test error after each epoch, in percent, over seeds.
        "errors": {
            network: {norm: by_batch(network, norm) for norm in study.norms_of(network)}
            for network in NETWORKS
        },
        "sweep_batch": SWEEP_BATCH,
        "groups": sweep(study.of_groups),
        "channels": sweep(study.of_channels),
        "times": [dataclasses.asdict(each) for each in times],
    }
