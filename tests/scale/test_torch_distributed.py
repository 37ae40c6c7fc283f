"""groupnorm.torch.distributed on real gloo groups, against torch.nn on the whole tensor."""

import datetime
import os
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import groupnorm.torch
import groupnorm.torch.distributed as gnd

SEED = 3
# Ranks are forked from a process that has imported torch once.
CONTEXT = mp.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__, "groupnorm.torch.distributed"])


def _on_rank(
    rank: int, ranks: int, path: str, work: Callable[..., Any], queue: Any, args: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{path}",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        queue.put((rank, work(rank, ranks, *args)))
    except Exception as error:  # noqa: BLE001 - for the process that asked
        queue.put((rank, error))
    dist.destroy_process_group()


def _run(ranks: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """What `work` returns on each rank, or raises there."""
    queue = CONTEXT.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(
                target=_on_rank, args=(r, ranks, os.path.join(folder, "store"), work, queue, args)
            )
            for r in range(ranks)
        ]
        for process in processes:
            process.start()
        results = dict(queue.get() for _ in processes)
        for process in processes:
            process.join(60)
    return [results[rank] for rank in range(ranks)]


def _model() -> nn.Module:
    torch.manual_seed(SEED)
    model = nn.Sequential(
        nn.GroupNorm(3, 12),
        nn.SiLU(),
        nn.InstanceNorm3d(12, affine=True),
        nn.BatchNorm3d(12),
    )
    for p in model.parameters():
        nn.init.normal_(p, 1, 0.3)
    return model


def _data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(2, 12, 7, 5, 6, generator=generator, dtype=torch.float64) + 100
    return x.to(dtype), torch.randn(x.shape, generator=generator, dtype=torch.float64).to(dtype)


def _cut(t: Tensor, rank: int, sizes: list[int]) -> Tensor:
    return t.split(sizes, 2)[rank].clone()


def _shard_of_model(rank: int, ranks: int, sizes: list[int], dtype: torch.dtype) -> Any:
    model = _model().to(dtype)
    report = gnd.convert_spatial_group_norm_(model)
    assert len(report.replaced) == 3, report
    x, dy = (_cut(t, rank, sizes) for t in _data(dtype))
    x.requires_grad_()
    y = model(x)
    y.backward(dy)
    gradients = [p.grad for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    moments = gnd._moments(x, gnd._shard(x, 3, False, None, None, 1e-5, "none"), None)
    tensors: Any = (y, x.grad, moments, *gradients, *buffers)
    return [t.detach().numpy() for t in tensors]


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ([4, 3], torch.float32),
        ([7, 0], torch.float64),
        ([1, 0, 4, 2], torch.float32),
    ],
)
def test_shards_of_a_model_are_the_whole(sizes: list[int], dtype: torch.dtype) -> None:
    found = _run(len(sizes), _shard_of_model, sizes, dtype)
    for each in found:
        assert not isinstance(each, Exception), each
    x, dy = (t.double() for t in _data(dtype))
    model = _model().to(dtype).double()
    x.requires_grad_()
    y = model(x)
    y.backward(dy)
    dx: Any = x.grad
    atol = 2e-5 if dtype is torch.float32 else 1e-11
    for i, expected in ((0, y), (1, dx)):
        parts = torch.cat([torch.from_numpy(each[i]) for each in found], 2)
        torch.testing.assert_close(parts.double(), expected.detach(), rtol=0, atol=atol)
    count = len(list(model.parameters()))
    for i, p in enumerate(model.parameters()):
        total = sum(torch.from_numpy(each[3 + i]).double() for each in found)
        torch.testing.assert_close(total, p.grad, rtol=1e-5, atol=1e3 * atol)
    for i, b in enumerate(model.buffers()):
        for each in found:
            own = torch.as_tensor(each[3 + count + i]).double()
            torch.testing.assert_close(own, b.double(), rtol=1e-5, atol=1e-5)
    for each in found:  # the same bits on every rank
        assert each[2].tobytes() == found[0][2].tobytes()
        for own, first in zip(each[3 + count :], found[0][3 + count :], strict=True):
            assert own.tobytes() == first.tobytes()


def _batch_and_ddp(rank: int, ranks: int) -> Any:
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), gnd.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    parallel = nn.parallel.DistributedDataParallel(model)
    x = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(SEED))
    own = x.split([4, 2])[rank]
    (parallel(own).square().sum() * ranks).backward()  # DDP averages: this is the sum of all
    tensors: Any = [p.grad for p in model.parameters()] + [model[1].running_var]
    return [t.numpy() for t in tensors]


def test_batch_norm_within_ddp() -> None:
    found = _run(2, _batch_and_ddp)
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    x = torch.randn(6, 3, 9, 9, generator=torch.Generator().manual_seed(SEED))
    model(x).square().sum().backward()
    for rank, each in enumerate(found):
        assert not isinstance(each, Exception), (rank, each)
        for own, p in zip(each, model.parameters(), strict=False):
            torch.testing.assert_close(torch.from_numpy(own), p.grad, rtol=1e-3, atol=2e-3)
        torch.testing.assert_close(torch.from_numpy(each[-1]), model[1].running_var)


def _disagree(rank: int, ranks: int, what: str) -> Any:
    options: dict[str, Any] = {
        "groups": 2,
        "channels": 8,
        "dtype": torch.float32,
        "n": 2,
        "eps": 1e-5,
    }
    if rank == 1:
        changes: dict[str, dict[str, Any]] = {
            "groups": {"groups": 4},
            "channels": {"channels": 12},
            "dtype": {"dtype": torch.float64},
            "n": {"n": 3},
            "many": {"groups": 1, "channels": 2000, "n": 3},
            "eps": {"eps": 1e-3},
        }
        options |= changes[what]
    norm = gnd.GroupNorm(options["groups"], options["channels"], eps=options["eps"])
    x = torch.zeros(options["n"], options["channels"], 5, dtype=options["dtype"])
    return norm.to(options["dtype"])(x)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("groups", ("number of groups", "rank 0 has 2", "rank 1 has 4")),
        ("channels", ("number of channels", "rank 0 has 8", "rank 1 has 12")),
        ("dtype", ("dtype", "rank 0 has torch.float32", "rank 1 has torch.float64")),
        ("n", ("number of examples", "rank 0 has 2", "rank 1 has 3")),
        ("many", ("rank 0", "rank 1")),
        ("eps", ("eps", "rank 0 has 1e-05", "rank 1 has 0.001")),
    ],
)
def test_ranks_that_disagree_are_named_on_both(what: str, words: tuple[str, ...]) -> None:
    found = _run(2, _disagree, what)
    for each in found:
        assert isinstance(each, ValueError), each
        for word in words:
            assert word in str(each), str(each)


def _many_blocks(rank: int, ranks: int) -> Any:
    x = torch.randn(40, 32, 6, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    norm = gnd.InstanceNorm1d(32).double()
    own = x.split([5, 1], 2)[rank].clone().requires_grad_()
    y = norm(own)
    y.square().mul(own.detach()).sum().backward()
    return y.detach().numpy(), own.grad.numpy()


def test_more_blocks_than_the_first_message_holds() -> None:
    found = _run(2, _many_blocks)
    x = torch.randn(40, 32, 6, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    x.requires_grad_()
    y = nn.functional.instance_norm(x)
    y.square().mul(x.detach()).sum().backward()
    for i, expected in enumerate((y.detach(), x.grad)):
        parts = torch.cat([torch.from_numpy(each[i]) for each in found], 2)
        torch.testing.assert_close(parts, expected, rtol=0, atol=1e-10)


def _die(rank: int, ranks: int) -> Any:
    norm, x = gnd.GroupNorm(2, 4), torch.zeros(1, 4, 8)
    norm(x)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    norm(x)


def test_a_rank_that_is_killed_is_an_error_on_the_others() -> None:
    queue = CONTEXT.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        processes = [
            CONTEXT.Process(target=_on_rank, args=(r, 2, store, _die, queue, ())) for r in range(2)
        ]
        start = time.monotonic()
        for process in processes:
            process.start()
        rank, error = queue.get()
        for process in processes:
            process.join(60)
    assert rank == 0 and isinstance(error, RuntimeError), error
    assert time.monotonic() - start < 60


def test_alone_they_are_torchs_own() -> None:
    x = torch.randn(2, 12, 4, 5, 6)
    model, ours = _model(), _model()
    gnd.convert_spatial_group_norm_(ours)
    torch.testing.assert_close(ours(x), model(x), rtol=0, atol=2e-5)
    model.eval(), ours.eval()
    torch.testing.assert_close(ours(x), model(x), rtol=0, atol=2e-5)
    assert ours.state_dict().keys() == model.state_dict().keys()


def test_conversion_reports_what_it_leaves() -> None:
    class Own(nn.GroupNorm):
        pass

    model = nn.Sequential(
        Own(2, 4), nn.InstanceNorm2d(4, track_running_stats=True), nn.LayerNorm(3)
    )
    model.append(groupnorm.torch.GroupNorm(2, 4, activation="silu"))
    report = gnd.convert_spatial_group_norm_(model)
    assert [r.name for r in report.replaced] == ["3"]
    assert [s.name for s in report.skipped] == ["0", "1"]
    assert isinstance(model[3], gnd.GroupNorm) and model[3].activation == "silu"
    with pytest.raises(TypeError, match=r"model: .*int"):
        gnd.convert_spatial_group_norm_(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"process_group: .*str"):
        gnd.GroupNorm(2, 4, process_group="gloo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="track_running_stats"):
        gnd.InstanceNorm2d(4, track_running_stats=True)
    with pytest.raises(ValueError, match=r"input: .*4.*\[1, 3, 2\]"):
        gnd.GroupNorm(2, 4)(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="two values"):
        gnd.BatchNorm1d(4)(torch.zeros(1, 4))
