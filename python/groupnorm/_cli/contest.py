"""What is timed, in turns: calls of several contestants on the same data."""

import contextlib
import dataclasses
import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._core import allowed_memory, rotating_sets

OURS, COPY = "ours", "copy"
_WARM_US = 1000.0  # how long a contestant plays before the next one: what is its own is then warm
_MOST_CALLS = 64  # of a turn
_FEWEST_ROUNDS = 3
_MOST_SETS = 4096  # the interpreter's own objects must not become what is measured


@dataclasses.dataclass(frozen=True)
class Case:
    """A shape of a real model, [N, C, space...] whatever the layout."""

    model: str
    shape: tuple[int, ...]
    groups: int

    @property
    def text(self) -> str:
        return "x".join(map(str, self.shape))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is the same for all cases."""

    api: str
    dtype: str
    layout: str
    activation: str
    backward: bool
    hot: bool
    compile: bool
    threads: int
    eps: float = 1e-5

    @property
    def direction(self) -> str:
        return "forward+backward" if self.backward else "forward"


@dataclasses.dataclass(frozen=True)
class Rival:
    """A contestant who takes the tensors of a set in a form of its own."""

    view: Callable[[Any], Any]  # a set as `call` takes it; made once, before anything is timed
    call: Callable[[Any], Any]
    result: Callable[[Any], Any]  # what `call` returned, as `Arena.errors` takes it


@dataclasses.dataclass(frozen=True)
class Arena:
    """One case, ready to be played."""

    sets: Sequence[Any]  # the tensors of a call each, of equal values
    params: tuple[Any, Any]  # gamma and beta
    calls: Mapping[str, Callable[[Any], Any]]  # by contestant
    errors: Callable[[Mapping[str, Any]], dict[str, float]]  # of their results, in units
    bound: float  # what our error may be
    context: Callable[[], contextlib.AbstractContextManager[Any]]  # of calls
    bytes_moved: int  # read and written by a call
    absent: tuple[str, ...]  # why a contestant that was asked for does not play
    rivals: Mapping[str, Rival] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Times:
    """Microseconds a call."""

    p50: float
    p99: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one case."""

    case: Case
    times: dict[str, Times]  # by contestant; without any if our result was wrong
    errors: dict[str, float]
    bound: float
    bytes_moved: int

    @property
    def wrong(self) -> bool:
        return not self.errors[OURS] <= self.bound

    @property
    def refused(self) -> list[str]:
        """Those who were not timed, since they compute something else."""
        return [name for name in self.errors if self.times and name not in self.times]

    def ratio(self, name: str) -> float | None:
        """How many times slower than ours a contestant is."""
        return self.times[name].p50 / self.times[OURS].p50 if name in self.times else None

    def copies(self, name: str) -> float | None:
        """The time of a contestant in copies of the same bytes."""
        return self.times[name].p50 / self.times[COPY].p50 if name in self.times else None

    @property
    def faster(self) -> list[str]:
        """Those that are faster than ours."""
        return [n for n in self.times if n != COPY and self.times[n].p50 < self.times[OURS].p50]


def sets_of(set_bytes: int, hot: bool) -> int:
    """How many sets of `set_bytes` bytes a contest takes: one if they are to stay in the caches.

    Else as many as `groupnorm bench` takes, `_MOST_SETS` at most.
    """
    return 1 if hot else min(rotating_sets(set_bytes, allowed_memory()), _MOST_SETS)


class _Contestant:
    def __init__(self, call: Callable[[Any], Any], sets: Sequence[Any], kept: list[Any]) -> None:
        self._call, self._sets, self._kept = call, sets, kept
        self.microseconds: list[float] = []
        self._calls = 1

    def prepare(self, places: "itertools.cycle[int]") -> None:
        once = min(self.play(places) for _ in range(3))
        self._calls = max(1, min(_MOST_CALLS, round(_WARM_US / max(once, 1e-3))))
        self.microseconds.clear()

    def play(self, places: "itertools.cycle[int]") -> float:
        """One call to settle in, and those that count; the time of the last."""
        call, sets, kept, clock = self._call, self._sets, self._kept, time.perf_counter_ns
        place = next(places)
        kept[place] = call(sets[place])
        for _ in range(self._calls):
            place = next(places)
            tensors = sets[place]
            start = clock()
            result = call(tensors)
            self.microseconds.append((clock() - start) * 1e-3)
            # The result before goes here, perhaps another's: one who maps memory of its own takes long to
            # give it back. Its memory, which like x has left the caches by now, serves the next call.
            kept[place] = result
        return self.microseconds[-1]

    def times(self) -> Times:
        ordered = sorted(self.microseconds)
        count = len(ordered)
        return Times(ordered[count // 2], ordered[count * 99 // 100])


def _errors(arena: Arena, views: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    with arena.context():
        results = {name: call(arena.sets[0]) for name, call in arena.calls.items() if name != COPY}
        for name, rival in arena.rivals.items():
            results[name] = rival.result(rival.call(views[name][0]))
    return arena.errors(results)


def play(case: Case, arena: Arena, seconds: float, rival_bound: float = math.inf) -> Outcome:
    """Checks every contestant's result, then times them: everyone once a round.

    Nobody is timed if ours is wrong. Another is not timed if its error, in the units of
    `Arena.errors`, is not within `rival_bound`.
    """
    kept: list[Any] = [None] * len(arena.sets)
    views = {
        name: [rival.view(each) for each in arena.sets] for name, rival in arena.rivals.items()
    }
    errors = _errors(arena, views)
    outcome = Outcome(case, {}, errors, arena.bound, arena.bytes_moved)
    if outcome.wrong:
        return outcome
    calls = {name: (call, arena.sets) for name, call in arena.calls.items()}
    calls |= {name: (rival.call, views[name]) for name, rival in arena.rivals.items()}
    contestants = {
        name: _Contestant(call, sets, kept)
        for name, (call, sets) in calls.items()
        if name in (OURS, COPY) or errors[name] <= rival_bound
    }
    places = itertools.cycle(range(len(arena.sets)))
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with arena.context():
            for contestant in contestants.values():
                contestant.prepare(places)
            end = time.monotonic() + seconds
            for played in itertools.count(1):
                for contestant in contestants.values():
                    contestant.play(places)
                if played >= _FEWEST_ROUNDS and time.monotonic() >= end:
                    break
    finally:
        if collecting:
            gc.enable()
    outcome.times.update({name: each.times() for name, each in contestants.items()})
    return outcome
