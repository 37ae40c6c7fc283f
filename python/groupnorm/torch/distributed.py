"""Norms of tensors whose shards lie on several ranks of torch.distributed, on CPUs (gloo).

    import groupnorm.torch.distributed as gnd
    gnd.convert_spatial_group_norm_(model, process_group)   # or gnd.GroupNorm(32, 256) and so on

Each rank calls the module on its shard of the positions (of the examples as well, for BatchNorm), of
any size, also without an element. The ranks exchange moments, 24 bytes a block, and merge them in
rank order: so all have the statistics of the whole, with the same bits. Backward exchanges the sums
of a block in the same way, 16 bytes a block, and gives dx of the sum of all ranks' losses. Gradients
of weight and bias are those of this rank's shard, as DistributedDataParallel and SyncBatchNorm have
them: the former averages them over the ranks.

All ranks of the group call the same modules in the same order, forward and backward. A rank that does
not is met by the timeout of torch.distributed; one that has died, by its error.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import _core
from .._pieces import merged
from . import _kernels, modules
from .replace import Replacement, Report, Skip

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "convert_spatial_group_norm_",
]


class _Shard(NamedTuple):
    """A rank's part of a call: how the engine sees x, and what the ranks must agree about."""

    plan: _core.Plan
    finish: _core.Plan  # whose correction and eps are those of the norm
    format: torch.memory_format
    blocks: tuple[int, ...]  # the shape of the statistics
    agreed: tuple[tuple[str, Any], ...]


def _shard(
    x: Tensor,
    groups: int,
    across_batch: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
) -> _Shard:
    """Raises before anything is sent."""
    if x.device.type != "cpu" or x.dtype not in _kernels.DTYPES:
        known = ", ".join(str(dtype) for dtype in _kernels.DTYPES)
        raise TypeError(f"input: must be on the CPU, in {known}; got {x.dtype} on {x.device}")
    n, c = x.shape[:2]
    s = x[0, 0].numel() if n and c else 0
    form = _kernels.memory_format(_kernels.see_groups, x)
    param = weight if weight is not None else bias
    data = _kernels.DTYPES[x.dtype]
    kind = data if param is None else _kernels.DTYPES[param.dtype]
    layout = "channels_first" if form is torch.contiguous_format else "channels_last"
    plan = _core.Plan(
        *(n, c, s, n if across_batch else 1, c // groups, layout, data, kind, activation, eps),
        given_statistics=True,
    )
    agreed = (
        ("normalization", "batch" if across_batch else "group"),
        ("number of groups", groups),
        ("number of channels", c),
        ("dtype", str(x.dtype)),
        ("eps", eps),
        # A rank without elements agrees with any.
        ("number of examples", n if x.numel() and not across_batch else -1),
    )
    return _Shard(plan, plan, form, (groups,) if across_batch else (n, groups), agreed)


# ---- the exchange

_HEADER = 8  # numbers
_FIRST = 512  # numbers of the first message, of one size on all ranks whatever they disagree about
_WORDS = ("group", "batch", "forward", "backward", *map(str, _kernels.DTYPES))


def _alone(group: dist.ProcessGroup | None) -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1


def _gather(message: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[ranks, numbers], in rank order."""
    everyone = message.new_empty(dist.get_world_size(group), message.numel())
    dist.all_gather(list(everyone.unbind(0)), message, group=group)
    return everyone


def _exchange(own: Tensor, shard: _Shard, group: dist.ProcessGroup | None) -> Tensor:
    """What all ranks have of each block: [ranks, blocks, numbers], in rank order.

    One all_gather where it fits the first message, which holds as well what the ranks must agree
    about; else a second one for the rest.
    """
    agreed = (("pass", "forward" if own.shape[-1] == 3 else "backward"), *shard.agreed)
    header = [_WORDS.index(value) if isinstance(value, str) else value for _, value in agreed]
    numbers = own.numel()
    first = own.new_zeros(_FIRST)
    first[: len(header)] = torch.tensor(header, dtype=own.dtype)
    first[_HEADER - 1] = numbers
    head = min(numbers, _FIRST - _HEADER)
    first[_HEADER : _HEADER + head] = own.flatten()[:head]
    everyone = _gather(first, group)
    _require_agreement(everyone, agreed, group)
    most = int(everyone[:, _HEADER - 1].max())
    found = everyone[:, _HEADER : _HEADER + most]
    if most > _FIRST - _HEADER:
        rest = own.new_zeros(most - (_FIRST - _HEADER))
        rest[: max(0, numbers - head)] = own.flatten()[head:]
        found = torch.cat([found, _gather(rest, group)], dim=1)
    return found.reshape(len(everyone), -1, own.shape[-1])


def _require_agreement(
    headers: Tensor, agreed: tuple[tuple[str, Any], ...], group: dist.ProcessGroup | None
) -> None:
    """Raises the same on every rank."""
    ranks = dist.get_process_group_ranks(group or dist.group.WORLD)
    for i, (name, own) in enumerate(agreed):
        values = headers[:, i].tolist()
        there = [pair for pair in zip(ranks, values, strict=True) if pair[1] >= 0]
        for rank, value in there[1:]:
            if value != there[0][1]:
                sides = [
                    (r, _WORDS[int(v)] if isinstance(own, str) else f"{v:g}")
                    for r, v in (there[0], (rank, value))
                ]
                raise ValueError(
                    f"process_group: its ranks must agree about the {name}; "
                    f"rank {sides[0][0]} has {sides[0][1]}, rank {sides[1][0]} has {sides[1][1]}"
                )


# ---- the norm


class _Normalize(torch.autograd.Function):
    """y of a shard, from the moments of the whole."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        total: Tensor,
        shard: _Shard,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        """`total` [blocks, 3] are the moments of the whole."""
        x = x.contiguous(memory_format=shard.format)
        statistics = torch.empty(2, len(total), dtype=torch.float64)
        shard.plan.finish(
            total.data_ptr(), len(total), statistics[0].data_ptr(), statistics[1].data_ptr()
        )
        y = torch.empty_like(x, memory_format=shard.format)
        if x.numel():
            mean, rstd = statistics
            shard.plan.forward(*_addresses(x, y, weight, bias, mean, rstd), *_threads())
        ctx.save_for_backward(x, weight, bias)
        ctx.kept = statistics, total, shard, group
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        statistics, total, shard, group = ctx.kept
        dy = dy.contiguous(memory_format=shard.format)
        asked = ctx.needs_input_grad
        dweight = torch.empty_like(weight) if weight is not None and asked[1] else None
        dbias = torch.empty_like(bias) if bias is not None and asked[2] else None
        mean, rstd = statistics
        inputs = _addresses(x, dy, weight, bias, mean, rstd)
        own = torch.zeros(_count(shard.blocks), 2, dtype=torch.float64)
        shard.plan.reduce_gradient(
            *inputs, own.data_ptr(), _address(dweight), _address(dbias), *_threads()
        )
        if not asked[0]:
            return None, dweight, dbias, None, None, None
        dx = torch.empty_like(x, memory_format=shard.format)
        # All ranks take part, whoever of them has an element.
        sums = own if _alone(group) else _exchange(own, shard, group).sum(0)
        if x.numel():
            count = float(total[0, 0])
            shard.plan.apply_gradient(*inputs, sums.data_ptr(), count, dx.data_ptr(), *_threads())
        return dx, dweight, dbias, None, None, None


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _addresses(
    x: Tensor,
    other: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[int, int, int, int, int, int]:
    """What the steps of a Plan begin with; `other` is y or dy."""
    return (
        x.data_ptr(),
        other.data_ptr(),
        _address(weight),
        _address(bias),
        mean.data_ptr(),
        rstd.data_ptr(),
    )


def _threads() -> tuple[Any, int]:
    return _kernels.THREADS, torch.get_num_threads()


def _count(blocks: tuple[int, ...]) -> int:
    return torch.Size(blocks).numel()


def _moments(x: Tensor, shard: _Shard, group: dist.ProcessGroup | None) -> Tensor:
    """[blocks, 3] of the whole, with the same bits on every rank."""
    own = torch.zeros(_count(shard.blocks), 3, dtype=torch.float64)
    dense = x.detach().contiguous(memory_format=shard.format)
    shard.plan.reduce(dense.data_ptr(), own.data_ptr(), *_threads())
    if _alone(group):
        return own
    return torch.from_numpy(merged(_exchange(own, shard, group).numpy()))


def _params(*params: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if p is None else p.contiguous() for p in params)


@torch.compiler.disable
def _normalize(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    group: dist.ProcessGroup | None,
) -> Tensor:
    """Group norm of a shard along the positions."""
    weight, bias = _params(weight, bias)
    shard = _shard(x, groups, False, weight, bias, eps, activation)
    total = _moments(x, shard, group)
    y: Tensor = _Normalize.apply(x, weight, bias, total, shard, group)
    return y


def _with_group(module: nn.Module, process_group: dist.ProcessGroup | None) -> None:
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group: must be a ProcessGroup of torch.distributed or None; "
            f"got {type(process_group).__name__}"
        )
    module.__dict__["process_group"] = process_group


class GroupNorm(modules.GroupNorm):
    """Group normalization of a tensor whose positions are sharded over the ranks.

    Its input is [N, C, ...], this rank's part of the positions of the same N examples. Ranks that
    hold other examples need nothing of each other: they belong in other process groups.

    Args:
        num_groups: divides num_channels.
        num_channels: C.
        eps: added to the variance.
        affine: whether there are weight and bias, [C].
        device: of weight and bias.
        dtype: of weight and bias.
        bias: whether there is a bias.
        activation: as groupnorm.torch.GroupNorm has it.
        process_group: of the ranks that share the tensor; None: all. Where torch.distributed is not
            initialized, the module is alone.

    Raises:
        ValueError: as groupnorm.torch.GroupNorm; in a call, where ranks disagree.
    """

    takes_activation = True
    process_group: Any = None

    def __init__(
        self, *args: Any, process_group: dist.ProcessGroup | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        _with_group(self, process_group)

    def forward(self, input: Tensor, **neighbours: Any) -> Any:
        return self.run(input, **neighbours)

    def normalize(self, input: Tensor, activation: str, **neighbours: Any) -> Any:
        if neighbours:
            return self.chain(lambda u: self.normalize(u, "none"), input, activation, **neighbours)
        if input.dim() < 2 or input.shape[1] != self.num_channels:
            raise ValueError(
                f"input: must be [N, {self.num_channels}, ...]; got {list(input.shape)}"
            )
        return _normalize(
            input,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            activation,
            self.process_group,
        )


class _InstanceNorm(modules._InstanceNorm):
    process_group: Any = None

    def __init__(
        self, *args: Any, process_group: dist.ProcessGroup | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        if self.track_running_stats:
            raise ValueError("track_running_stats: must be False; got True")
        _with_group(self, process_group)

    def forward(self, input: Tensor, **neighbours: Any) -> Any:
        return self.run(input, **neighbours)

    def normalize(self, input: Tensor, activation: str, **neighbours: Any) -> Any:
        if neighbours:
            return self.chain(lambda u: self.normalize(u, "none"), input, activation, **neighbours)
        rank = self._get_no_batch_dim()
        self._check_input_dim(input)
        batch = input.unsqueeze(0) if input.dim() == rank else input
        if batch.shape[1] != self.num_features:
            raise ValueError(
                f"input: must have {self.num_features} channels; got {list(input.shape)}"
            )
        y = _normalize(
            batch,
            self.num_features,
            self.weight,
            self.bias,
            self.eps,
            activation,
            self.process_group,
        )
        return y if batch is input else y.squeeze(0)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d over the shards of all ranks; process_group as GroupNorm."""

    takes_activation = True


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d over the shards of all ranks; process_group as GroupNorm."""

    takes_activation = True


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d over the shards of all ranks; process_group as GroupNorm."""

    takes_activation = True


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """The input is this rank's part of the examples, of the positions, or of both."""

    process_group: Any = None

    def __init__(
        self, *args: Any, process_group: dist.ProcessGroup | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        _with_group(self, process_group)

    @torch.compiler.disable
    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(input)  # each rank by itself
        self._check_input_dim(input)
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"input: must have {self.num_features} channels; got {list(input.shape)}"
            )
        weight, bias = _params(self.weight, self.bias)
        shard = _shard(input, self.num_features, True, weight, bias, self.eps, "none")
        total = _moments(input, shard, self.process_group)
        count = float(total[0, 0]) if len(total) else 0.0
        if count < 2 and self.training:
            raise ValueError(
                "input: must have two values a channel or more on all ranks together in training; "
                f"got {count:g}"
            )
        if self.training and self.track_running_stats:
            self._track(total, count)
        y: Tensor = _Normalize.apply(input, weight, bias, total, shard, self.process_group)
        return y

    def _track(self, total: Tensor, count: float) -> None:
        """Moves the running statistics as torch.nn.BatchNorm does: the same on every rank."""
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        with torch.no_grad():
            for running, batch in (
                (self.running_mean, total[:, 1]),
                (self.running_var, total[:, 2] / (count - 1)),
            ):
                if running is not None:
                    running.lerp_(batch.to(running.dtype), momentum or 0.0)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d over the shards of all ranks: a SyncBatchNorm of CPUs."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d over the shards of all ranks: a SyncBatchNorm of CPUs."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d over the shards of all ranks: a SyncBatchNorm of CPUs."""


_CONVERTED: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: GroupNorm,
    modules.GroupNorm: GroupNorm,
    nn.InstanceNorm1d: InstanceNorm1d,
    nn.InstanceNorm2d: InstanceNorm2d,
    nn.InstanceNorm3d: InstanceNorm3d,
    modules.InstanceNorm1d: InstanceNorm1d,
    modules.InstanceNorm2d: InstanceNorm2d,
    modules.InstanceNorm3d: InstanceNorm3d,
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}


def convert_spatial_group_norm_(
    model: nn.Module, process_group: dist.ProcessGroup | None = None
) -> Report:
    """Makes the norms of a model those of a tensor that is sharded over ranks, in place.

    Each GroupNorm, InstanceNorm1d, 2d, 3d and BatchNorm1d, 2d, 3d of torch.nn and of groupnorm.torch
    stays the same object and gets a class of this module: parameters, buffers, hooks and
    ``state_dict`` are untouched. Layer norms need nothing: their blocks are not cut.

    Args:
        model: any module; a norm itself is fine. The same on every rank.
        process_group: of the ranks that share a tensor; None: all.

    Returns:
        What was converted, and which norms were not and why.

    Raises:
        TypeError: model is no nn.Module, or process_group no ProcessGroup.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module; got {type(model).__name__}")
    report = Report()
    norms: Any = (nn.GroupNorm, nn.modules.batchnorm._NormBase)
    for name, module in model.named_modules():
        kind = type(module).__name__
        if not isinstance(module, norms) or type(module) in _CONVERTED.values():
            continue
        cls = _CONVERTED.get(type(module))
        if cls is None:
            report.skipped.append(Skip(name, kind, "a subclass that may compute something else"))
        elif issubclass(cls, _InstanceNorm) and module.track_running_stats:
            report.skipped.append(Skip(name, kind, "tracks running statistics"))
        else:
            _with_group(module, process_group)
            module.__class__ = cls
            report.replaced.append(Replacement(name, kind))
    return report
