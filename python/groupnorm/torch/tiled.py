"""Inference in tiles that gives what the whole input gives: the norms of all tiles go in lockstep.

    run = groupnorm.torch.tiled.Tiled(model, tile=(96, 96, 96), overlap=32)
    y = run(x)

Ordinary tiling lets each tile normalize by its own mean and variance, which shows as seams. Here all
tiles go to the next norm, their moments are merged, and each goes on with those of the whole. So y is
that of model(x), within float rounding, if the overlap covers what a position of y sees of x. That is
measured before anything is run, with the norms held still: a model that sees all of x beside its
norms (attention, a global pooling) is refused.

One tile computes at a time. Each holds what it has at its norm, so all of them together take about
what the whole input takes there; what a layer needs while it runs is of one tile.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _core
from .._pieces import merged
from . import _kernels, functional

__all__ = ["Tiled"]


class _Tile(NamedTuple):
    """A range of each axis: what is computed, and what of that counts."""

    padded: tuple[slice, ...]
    core: tuple[slice, ...]


def _groups_of(norm: nn.Module) -> int:
    groups: Any = norm.num_groups if isinstance(norm, nn.GroupNorm) else norm.num_features
    return int(groups)


def _tiled_norms(model: nn.Module) -> list[nn.Module]:
    """The norms over positions; ValueError where one is of a kind that can't go in lockstep."""
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm):
            if getattr(module, "track_running_stats", False):
                raise ValueError(f"model: {name} must not track running statistics")
            found.append(module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and (
            module.training or module.running_mean is None
        ):
            raise ValueError(
                f"model: {name} must be in eval mode with running statistics; "
                f"it is a {type(module).__name__} that takes those of its input"
            )
    return found


@contextmanager
def _replaced(
    norms: Sequence[nn.Module], call: Callable[[nn.Module, Tensor], Tensor]
) -> Iterator[None]:
    """Each norm computes `call(norm, input)` meanwhile."""
    if any("forward" in norm.__dict__ for norm in norms):
        raise ValueError("model: its norms must not have a forward of their own")
    for norm in norms:
        norm.__dict__["forward"] = lambda input, norm=norm: call(norm, input)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def _apply(norm: nn.Module, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """y by statistics [N, G], float64."""
    weight: Any = norm.weight
    bias: Any = norm.bias
    x = x.contiguous(memory_format=_kernels.memory_format(_kernels.see_groups, x))
    plan = _plan(norm, x, weight if weight is not None else bias)
    y = torch.empty_like(x)
    plan.forward(
        x.data_ptr(),
        y.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        _kernels.THREADS,
        torch.get_num_threads(),
    )
    activation = getattr(norm, "activation", "none")
    return functional.ACTIVATIONS[activation](y)


def _plan(norm: nn.Module, x: Tensor, param: Tensor | None) -> _core.Plan:
    form = _kernels.memory_format(_kernels.see_groups, x)
    n, c = x.shape[:2]
    data = _kernels.DTYPES[x.dtype]
    eps: Any = norm.eps
    return _core.Plan(
        *(n, c, math.prod(x.shape[2:]), 1, c // _groups_of(norm)),
        "channels_first" if form is torch.contiguous_format else "channels_last",
        data,
        data if param is None else _kernels.DTYPES[param.dtype],
        "none",
        eps,
        given_statistics=True,
    )


def _moments(norm: nn.Module, x: Tensor) -> Tensor:
    """[N, G, 3] of x."""
    x = x.contiguous(memory_format=_kernels.memory_format(_kernels.see_groups, x))
    found = torch.zeros(x.shape[0], _groups_of(norm), 3, dtype=torch.float64)
    _plan(norm, x, None).reduce(
        x.data_ptr(), found.data_ptr(), _kernels.THREADS, torch.get_num_threads()
    )
    return found


class _Lockstep:
    """Threads of which one runs at a time, each to its next norm, in the order of the tiles."""

    def __init__(self, tiles: Sequence[_Tile]) -> None:
        self.tiles = tiles
        self.turn = threading.Condition()
        self.running = 0  # the tile that may run
        self.norms: list[nn.Module | None] = [None] * len(tiles)
        self.parts: list[Tensor | None] = [None] * len(tiles)
        self.statistics: tuple[Tensor, Tensor] | None = None
        self.done = [False] * len(tiles)
        self.error: BaseException | None = None
        self.of_thread = threading.local()

    def wait(self, tile: int) -> None:
        """Until it is this tile's turn."""
        with self.turn:
            self.turn.wait_for(lambda: self.running == tile or self.error is not None)
            if self.error is not None:
                raise _Stopped

    def give(self, tile: int) -> None:
        """The turn to the next tile; behind the last one a norm has what it needs."""
        with self.turn:
            self.running = (tile + 1) % len(self.tiles)
            if self.running == 0:
                self._merge()
            self.turn.notify_all()

    def stop(self, error: BaseException) -> None:
        with self.turn:
            self.error = self.error or error
            self.turn.notify_all()

    def _merge(self) -> None:
        if all(self.done):
            return
        if any(self.done) or len({id(norm) for norm in self.norms}) > 1:
            raise ValueError(
                "model: must call the same norms in the same order for every tile; it did not"
            )
        norm = self.norms[0]
        parts = torch.stack([part for part in self.parts if part is not None])
        total = torch.from_numpy(merged(parts.numpy()))
        mean, rstd = torch.empty(2, *total.shape[:2], dtype=torch.float64)
        assert norm is not None
        eps: Any = norm.eps
        plan = _core.Plan(
            *(1, 1, 1, 1, 1, "channels_first", "f64", "f64", "none", eps), given_statistics=True
        )
        plan.finish(total.data_ptr(), mean.numel(), mean.data_ptr(), rstd.data_ptr())
        self.statistics = mean, rstd

    def norm(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Of the tile whose thread calls."""
        index, size = self.of_thread.index, self.of_thread.size
        core = _scaled(self.tiles[index], size, tuple(x.shape[2:]))
        self.norms[index], self.parts[index] = norm, _moments(norm, _part(x, core))
        self.give(index)
        self.wait(index)
        assert self.statistics is not None
        return _apply(norm, x, *self.statistics)


class _Stopped(Exception):
    """Another tile has failed."""


def _scaled(tile: _Tile, size: tuple[int, ...], now: tuple[int, ...]) -> tuple[slice, ...]:
    """Where the core of a tile lies in a tensor of another resolution."""
    found = []
    for padded, core, whole, length in zip(tile.padded, tile.core, size, now, strict=True):
        start, stop = core.start - padded.start, core.stop - padded.start
        if start * length % whole or stop * length % whole:
            raise ValueError(
                f"tile: must end where all resolutions of the model have a position; {stop - start} "
                f"of {whole} is not whole at {length}"
            )
        found.append(slice(start * length // whole, stop * length // whole))
    return tuple(found)


class Tiled:
    """A model that runs over tiles of its input, with the norms of the whole.

    Its GroupNorm and InstanceNorm modules, of torch.nn or groupnorm.torch, go in lockstep; batch norms
    in eval mode and layer norms over channels are as they are.

    Args:
        model: from [N, C, ...] to [N, K, ...], a tensor each, in eval mode; of the same positions or
            a whole multiple or fraction of them. It is not changed.
        tile: positions of a tile on each axis behind [N, C]; the steps between tiles. A multiple of
            all strides of the model.
        overlap: positions that a tile has beside those that count, on each side; an int, or one for
            each axis. A multiple of all strides as well, and at least what the model sees.

    Raises:
        TypeError: model is no nn.Module.
        ValueError: model is in training mode, or has a norm that can't go in lockstep; in a call,
            where the model sees more than the overlap: it names how much.
    """

    def __init__(
        self, model: nn.Module, tile: int | Sequence[int], overlap: int | Sequence[int]
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: must be a torch.nn.Module; got {type(model).__name__}")
        if any(module.training for module in model.modules()):
            raise ValueError("model: must be in eval mode: call model.eval()")
        self.model, self.tile, self.overlap = model, tile, overlap
        self.norms = _tiled_norms(model)
        self._checked: set[Any] = set()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """y of model(x), within float rounding."""
        size = tuple(x.shape[2:])
        tile = _each("tile", self.tile, size, 1)
        overlap = _each("overlap", self.overlap, size, 0)
        axes = [_ranges(*each) for each in zip(size, tile, overlap, strict=True)]
        tiles = [
            _Tile(tuple(p for p, _ in each), tuple(c for _, c in each))
            for each in itertools.product(*axes)
        ]
        if len(tiles) == 1:
            y: Tensor = self.model(x)
            return y
        for axis, ranges in enumerate(axes):
            key = (axis, tile, overlap, x.shape[1], x.dtype)
            if len(ranges) > 1 and key not in self._checked:
                self._check(axis, x, tile, overlap[axis])
                self._checked.add(key)
        return _joined(self._run(x, tiles), tiles, size)

    def _check(self, axis: int, x: Tensor, tile: tuple[int, ...], overlap: int) -> None:
        """Refuses a model that sees beyond the overlap, norms aside: NaN show how far it sees."""
        own = tile[axis]
        length = 2 * own + overlap
        shape = [*tile[:axis], length, *tile[axis + 1 :]]
        for begin, end in ((own + overlap, length), (0, own)):
            probe = torch.zeros(1, x.shape[1], *shape, dtype=x.dtype)
            probe.narrow(2 + axis, begin, end - begin).fill_(math.nan)
            with _replaced(self.norms, lambda norm, input: input):
                y = self.model(probe)
            if not isinstance(y, Tensor) or y.dim() != x.dim():
                raise ValueError(
                    f"model: must give a tensor of {x.dim()} axes; got {type(y).__name__}"
                )
            others = [i for i in range(y.dim()) if i != 2 + axis]
            seen = y.isnan().amax(others).nonzero().flatten() * length // y.shape[2 + axis]
            if len(seen) == 0:
                raise ValueError(
                    "model: must give NaN where its input has NaN, which tell how far it sees"
                )
            reach = begin - int(seen[0]) if begin else int(seen[-1]) + 1 - end
            if reach > overlap:
                what = "all of it" if reach >= own + overlap else f"{reach} positions"
                raise ValueError(
                    f"overlap: must be at least what the model sees beside a position, norms aside: "
                    f"on axis {2 + axis} of x that is {what}; got {overlap}"
                )

    def _run(self, x: Tensor, tiles: Sequence[_Tile]) -> list[Tensor]:
        """The core of each tile's result."""
        step = _Lockstep(tiles)
        results: list[Any] = [None] * len(tiles)

        def work(index: int) -> None:
            padded = tiles[index].padded
            step.of_thread.index = index
            step.of_thread.size = tuple(s.stop - s.start for s in padded)
            try:
                step.wait(index)
                with torch.no_grad():
                    y = self.model(_part(x, padded).contiguous())
                core = _scaled(tiles[index], step.of_thread.size, tuple(y.shape[2:]))
                results[index] = _part(y, core).clone()
                del y
                step.done[index] = True
                step.give(index)
            except _Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - raised by the caller's thread
                step.stop(error)

        with _replaced(self.norms, step.norm):
            threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tiles))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if step.error is not None:
            raise step.error
        return results


def _part(t: Tensor, place: Sequence[slice]) -> Tensor:
    """The positions there, of all examples and channels: a view."""
    part: Tensor = t[(slice(None), slice(None), *place)]
    return part


def _each(
    name: str, value: int | Sequence[int], size: tuple[int, ...], least: int
) -> tuple[int, ...]:
    values = (value,) * len(size) if isinstance(value, int) else tuple(value)
    if len(values) != len(size) or min(values, default=least) < least:
        raise ValueError(
            f"{name}: must be {least} at least, one number or one for each of {len(size)} axes; "
            f"got {value}"
        )
    return values


def _ranges(size: int, tile: int, overlap: int) -> list[tuple[slice, slice]]:
    """(padded, core) of the tiles of an axis."""
    cores = [slice(a, min(a + tile, size)) for a in range(0, size, tile)]
    return [(slice(max(0, c.start - overlap), min(size, c.stop + overlap)), c) for c in cores]


def _joined(results: Sequence[Tensor], tiles: Sequence[_Tile], size: tuple[int, ...]) -> Tensor:
    first, core = results[0], tiles[0].core
    own = [c.stop - c.start for c in core]
    lengths = [s * r // o for s, r, o in zip(size, first.shape[2:], own, strict=True)]
    y = first.new_empty(*first.shape[:2], *lengths)
    for result, tile in zip(results, tiles, strict=True):
        starts = [c.start * n // s for c, n, s in zip(tile.core, lengths, size, strict=True)]
        place = [slice(a, a + r) for a, r in zip(starts, result.shape[2:], strict=True)]
        _part(y, place).copy_(result)
    return y
