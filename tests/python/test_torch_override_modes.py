"""groupnorm.torch.enable with the rest of torch, and its life cycle: modes, transforms, hooks,
threads, fork, long loops, what enable refuses.
"""

import gc
import os
import subprocess
import sys
import threading
import warnings
from functools import partial

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from test_torch_override import (
    EPS32,
    LAYOUTS,
    assert_same_bits,
    differentiated,
    kernels,
    leaves_of,
    make,
    ran,
)
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import groupnorm.torch as gt
from groupnorm import _core
from groupnorm.torch import _override

__all__ = ["kernels"]  # a fixture


class Net(nn.Module):
    """Convolution, norm, activation: twice."""

    def __init__(self, norm=nn.GroupNorm):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), norm(4, 8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), norm(2, 8)

    def forward(self, x):
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.silu(self.norm2(self.conv2(y))).mean((2, 3))


def make_net(dtype=torch.float32, norm=nn.GroupNorm):
    net = Net(norm).to(dtype)
    for seed, parameter in enumerate(net.parameters()):
        parameter.data = make(parameter.shape, dtype, 10 + seed)
    return net


def gradients(net, x, call=None):
    net.zero_grad()
    (net if call is None else call)(x).square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def exact_gradients(x):
    return gradients(make_net(torch.float64), x.double())


def assert_near(found, expected):
    for f, e in zip(found, expected, strict=True):
        scale = e.abs().max().clamp(min=1)
        torch.testing.assert_close(f.double() / scale, e.double() / scale, rtol=0, atol=2e-5)


X = (2, 3, 9, 9)


# ---- autograd


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant):
    net, x = make_net(), make(X)
    with ran():
        plain = gradients(net, x.requires_grad_())
        checkpointed = gradients(net, x, partial(checkpoint, net, use_reentrant=reentrant))
    assert_same_bits(checkpointed, plain)


def kept(t):
    return t


def packed_as(dtype):
    """Hooks that keep floating-point tensors in another dtype, and give them back in their own."""

    def pack(t):
        return (t.to(dtype), t.dtype) if t.is_floating_point() else (t, t.dtype)

    return pack, lambda pair: pair[0].to(pair[1])


HOOKS = {
    "nothing": (kept, kept),
    "a view": (lambda t: t.view_as(t), kept),
    "detached": (lambda t: t.detach(), kept),
    "cloned": (lambda t: t.clone(), kept),
    "by NumPy": (lambda t: t.numpy().copy(), torch.from_numpy),
    "in float64": packed_as(torch.float64),
    "deep copy": (lambda t: __import__("copy").deepcopy(t.detach()), kept),
}


@pytest.mark.parametrize("mean", [1e3, 1e4])
@pytest.mark.parametrize("hooks", HOOKS)
def test_saved_tensors_hooks_lose_no_digits(hooks, mean):
    """A copy has lost float64's statistics: the mean is made again from x."""
    x, dy = make((2, 8, 20, 20), mean=mean), make((2, 8, 20, 20), seed=1)
    weight, bias = make(8, seed=2), make(8, seed=3)
    exact = differentiated(functional.group_norm, *(t.double() for t in (dy, x, weight, bias)), 4)
    with ran(forward=1, backward=1), torch.autograd.graph.saved_tensors_hooks(*HOOKS[hooks]):
        found = differentiated(functional.group_norm, dy, x, weight, bias, 4)
    for f, e in zip(found[1:], exact[1:], strict=True):
        assert (f.double() - e).abs().max() <= 3e-7 * e.abs().max(), hooks


def test_save_on_cpu_loses_no_digits():
    x, dy = make((2, 8, 20, 20), mean=1e4), make((2, 8, 20, 20), seed=1)
    exact = differentiated(functional.group_norm, dy.double(), x.double(), None, None, 4)
    with ran(forward=1, backward=1), torch.autograd.graph.save_on_cpu():
        found = differentiated(functional.group_norm, dy, x, None, None, 4)
    assert (found[1].double() - exact[1]).abs().max() <= 3e-7 * exact[1].abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hooks_that_keep_less_are_no_worse_than_with_torch(dtype):
    x, dy = make((2, 8, 20, 20), mean=3.0), make((2, 8, 20, 20), seed=1)
    weight, bias = make(8, seed=2), make(8, seed=3)
    exact = differentiated(functional.group_norm, *(t.double() for t in (dy, x, weight, bias)), 4)

    def errors():
        with torch.autograd.graph.saved_tensors_hooks(*packed_as(dtype)):
            found = differentiated(functional.group_norm, dy, x, weight, bias, 4)
        return [
            (f.double() - e).abs().max().item() for f, e in zip(found[1:], exact[1:], strict=True)
        ]

    torchs = errors()
    with ran(forward=1, backward=1):
        mine = errors()
    for error, torch_error in zip(mine, torchs, strict=True):
        assert error <= 1.05 * torch_error + 1e-5


def test_double_backward_is_that_of_torch():
    net, x = make_net(), make(X).requires_grad_()

    def second():
        [first] = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = second()
    with ran():
        found = second()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_a_graph_survives_enable_and_disable():
    x, dy = make((2, 8, 5, 5)), make((2, 8, 5, 5), seed=1)
    expected = differentiated(functional.group_norm, dy, x, None, None, 4)[1]
    [leaf] = leaves_of(x)
    gt.enable()
    y = functional.group_norm(leaf, 4)
    gt.disable()
    z = functional.group_norm(leaf, 4)
    from_ours = torch.autograd.grad(y, leaf, dy)[0]
    gt.enable()
    from_torchs = torch.autograd.grad(z, leaf, dy)[0]
    torch.testing.assert_close(from_ours, expected, rtol=0, atol=64 * EPS32)
    torch.testing.assert_close(from_torchs, expected, rtol=0, atol=64 * EPS32)


def test_gradients_that_are_batched():
    x = make((2, 8, 5)).requires_grad_()
    dys = make((3, 2, 8, 5), seed=1)
    with ran():
        y = functional.group_norm(x, 4)
        found = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)[0]
        single = [torch.autograd.grad(y, x, dy, retain_graph=True)[0] for dy in dys]
    torch.testing.assert_close(found, torch.stack(single), rtol=0, atol=64 * EPS32)


# ---- transforms, modes


def test_vmap_jvp_and_gradients_of_each_example():
    net, x = make_net(), make((4, 3, 9, 9))
    params = dict(net.named_parameters())

    def loss(params, image):
        return functional_call(net, params, (image[None],)).square().sum()

    def all_of():
        return (
            vmap(net)(x[:, None]),
            jvp(net, (x,), (torch.ones_like(x),))[1],
            *vmap(grad(loss), (None, 0))(params, x).values(),
        )

    expected = all_of()
    with ran():
        found = all_of()
    assert_near(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    net, x = make_net(), make(X)

    def call():
        with torch.autocast("cpu", dtype=dtype):
            y = functional.group_norm(net.conv1(x), 4, net.norm1.weight, net.norm1.bias)
        return y

    expected = call()
    with ran(forward=1, backward=1):
        y = call()
        y.sum().backward()
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=2.0**-6, atol=2.0**-6)
    assert net.norm1.weight.grad.dtype == torch.float32


def test_no_grad_and_inference_mode():
    net, x = make_net(), make(X)
    expected = net(x).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with ran(forward=2, backward=0), mode():
            y = net(x)
        assert not y.requires_grad
        torch.testing.assert_close(y, expected)


def test_meta_and_fake_tensors_ask_nobody():
    from torch._subclasses.fake_tensor import FakeTensorMode

    net, x = make_net(), make(X)
    with ran(forward=0, backward=0):
        assert make_net().to("meta")(x.to("meta")).shape == (2, 8)
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert net(mode.from_tensor(x)).shape == (2, 8)


def test_subclasses_of_module_and_tensor():
    class Scaled(nn.GroupNorm):
        def forward(self, x):
            return 2 * super().forward(x)

    class Marked(torch.Tensor):
        pass

    norm, x = Scaled(4, 8), make((2, 8, 5))
    with ran(forward=2, backward=0):
        torch.testing.assert_close(norm(x), 2 * functional.group_norm(x.double(), 4).float())
    with ran(forward=1, backward=0):
        assert type(nn.GroupNorm(4, 8)(x.as_subclass(Marked))) is Marked


def test_deterministic_mode():
    x, dy = make((2, 8, 5, 5), mean=1e3), make((2, 8, 5, 5), seed=1)
    with ran():
        expected = differentiated(functional.group_norm, dy, x, None, None, 4)
        torch.use_deterministic_algorithms(True)
        try:
            found = differentiated(functional.group_norm, dy, x, None, None, 4)
        finally:
            torch.use_deterministic_algorithms(False)
    assert_same_bits(found, expected)


@pytest.mark.filterwarnings("ignore")
def test_jit_trace():
    net, x = make_net().eval(), make(X)
    with ran():
        traced = torch.jit.trace(net, x)
        torch.testing.assert_close(traced(2 * x), net(2 * x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend):
    torch._dynamo.reset()
    net, exact = make_net(), make_net(torch.float64)
    compiled = torch.compile(net, backend=backend, dynamic=True)
    with gt.override():
        for size in (9, 12):
            x = make((2, 3, size, size))
            assert_near(gradients(net, x, compiled), gradients(exact, x.double()))
    assert_near(gradients(net, x, compiled), gradients(exact, x.double()))
    torch._dynamo.reset()


def test_export_has_the_operator_of_torch():
    net, x = make_net().eval(), make(X)
    with gt.override():
        program = torch.export.export(net, (x,))
        torch.testing.assert_close(program.module()(x), net(x))
    assert "aten.group_norm" in str(program.graph)
    assert "groupnorm" not in str(program.graph)


def test_distributed_data_parallel():
    if not torch.distributed.is_available():
        pytest.skip("no torch.distributed")
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        with ran(forward=2, backward=2):
            model = nn.parallel.DistributedDataParallel(make_net())
            model(make(X)).square().sum().backward()
        assert_near([p.grad for p in model.parameters()], exact_gradients(make(X)))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("shape", [(1, 32, 8, 8), (2, 32, 40, 40)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_functions_go_by_the_same_kernels(layout, shape, activation):
    x, dy = (LAYOUTS[layout](make(shape, seed=seed, mean=mean)) for seed, mean in ((0, 9), (1, 0)))
    weight, bias = make(32, seed=2), make(32, seed=3)

    def group(x, weight, bias):
        return gt.functional.group_norm(x, 8, weight, bias, activation=activation)

    def instance(x, weight, bias):
        return gt.functional.instance_norm(x, weight=weight, bias=bias, activation=activation)

    doubles = [t.double() for t in (dy, x, weight, bias)]
    for function in (group, instance):
        before = differentiated(function, dy, x, weight, bias)
        with gt.override():
            found = differentiated(function, dy, x, weight, bias)
        exact = differentiated(function, *doubles)
        for f, b, e in zip(found, before, exact, strict=True):
            assert f.stride() == b.stride()
            torch.testing.assert_close(f.double(), e, rtol=0, atol=1e-6 * e.abs().max().item())
    with ran(forward=1, backward=1):
        differentiated(gt.functional.group_norm, dy, x, weight, bias, 8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_functions_keep_their_second_derivatives(layout):
    x = LAYOUTS[layout](make((2, 6, 4, 2), torch.float64))
    x, weight, bias = leaves_of(x, make(6, torch.float64, 1), make(6, torch.float64, 2))
    with gt.override():
        for params in ((weight, bias), (weight, None), (None, bias), (None, None)):
            given = [t for t in (x, *params) if t is not None]
            assert torch.autograd.gradgradcheck(
                lambda *_, p=params: gt.functional.group_norm(x, 3, *p), given
            )


def test_our_functions_refuse_as_before():
    x = make((1, 6, 1)).requires_grad_()
    for call in (
        lambda: gt.functional.group_norm(x, 6),
        lambda: gt.functional.group_norm(x, 4),
        lambda: gt.functional.group_norm(x, 0),
        lambda: gt.functional.group_norm(x[0, 0], 1),
        lambda: gt.functional.instance_norm(x),
    ):
        with pytest.raises(Exception) as expected:
            call()
        with gt.override(), pytest.raises(type(expected.value)) as found:
            call()
        assert str(found.value) == str(expected.value)


# ---- life cycle


def test_enable_disable_enabled_override():
    assert gt.enabled() is False
    gt.enable()
    gt.enable()
    assert gt.enabled() is True
    with gt.override():
        assert gt.enabled()
    assert gt.enabled()
    gt.disable()
    gt.disable()
    assert not gt.enabled()
    with gt.override(), gt.override():
        assert gt.enabled()
    assert not gt.enabled()
    with gt.override():
        gt.disable()
        assert not gt.enabled()
    assert not gt.enabled()
    with gt.override():
        gt.enable()
    assert gt.enabled()
    with pytest.raises(KeyError), gt.override():
        raise KeyError
    gt.disable()
    with pytest.raises(KeyError), gt.override():
        raise KeyError
    assert not gt.enabled()


def test_a_decorated_function_is_overridden():
    @gt.override()
    def call(x):
        assert gt.enabled()
        return functional.group_norm(x, 4)

    for _ in range(2):
        call(make((2, 8, 5)))
        assert not gt.enabled()


def test_enabled_says_what_runs(capsys):
    with gt.override():
        functional.group_norm(make((2, 8, 5)), 4)
        assert gt.enabled(verbose=True)
    said = capsys.readouterr().out
    assert "groupnorm.torch: enabled, torch " + torch.__version__ in said
    for word in ("forward", "backward", "left to torch", "torch.compile", "create_graph"):
        assert word in said
    assert not gt.enabled(verbose=True)
    assert "not enabled" in capsys.readouterr().out


def script(text, **environment):
    """Runs it in another interpreter; its output."""
    done = subprocess.run(
        [sys.executable, "-c", text],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_nothing_is_said_and_torch_may_come_later():
    text = """
import warnings
warnings.simplefilter("error")
import groupnorm
import torch
import groupnorm.torch
groupnorm.torch.enable()
y = torch.nn.functional.group_norm(torch.randn(2, 8, 5), 4)
groupnorm.torch.disable()
groupnorm.torch.enable()
"""
    assert script(text) == ""


def test_without_enable_torch_keeps_its_kernels():
    text = """
import torch, groupnorm.torch
from groupnorm import _core
torch.nn.functional.group_norm(torch.randn(2, 8, 5), 4)
assert _core.torch_calls() == (0, 0, 0)
assert not hasattr(torch.ops.groupnorm, "torch_native_group_norm")
"""
    assert script(text) == ""


def test_toggling_in_a_loop_leaves_nothing_behind():
    x, weight = make((2, 8, 5)), nn.Parameter(make(8, seed=1))

    def rounds(count):
        for _ in range(count):
            gt.enable()
            y = functional.group_norm(x, 4, weight)
            gt.disable()
            y.sum().backward()

    rounds(300)
    before = memory()
    rounds(1000)
    assert memory() - before < 2**20


def memory():
    """Bytes that the process has in memory now."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


long_tests = pytest.mark.skipif(not os.environ.get("GROUPNORM_LONG_TESTS"), reason="takes minutes")


@pytest.mark.parametrize("steps", [5000, pytest.param(100_000, marks=long_tests)])
def test_long_loops_do_not_grow(steps):
    net = nn.Sequential(nn.Linear(8, 16), nn.GroupNorm(4, 16), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = make((4, 8))

    def train(count):
        for _ in range(count):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()

    with ran():
        train(500)
        before = memory()
        train(steps)
    assert memory() - before < 2**20


def test_refusals_in_a_loop_do_not_grow():
    x, weight = make((2, 6, 5)), make(6, torch.float64)
    empty = make((0, 6, 5))
    with gt.override():

        def rounds(count):
            for _ in range(count):
                torch.native_group_norm(empty, None, None, 0, 6, 5, 2, 1e-5)
                with pytest.raises(RuntimeError):
                    torch.native_group_norm(x, weight, None, 2, 6, 5, 2, 1e-5)

        rounds(200)
        before = memory()
        rounds(2000)
    assert memory() - before < 2**20


def in_threads(*functions):
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - for the main thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f,)) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_two_threads_train_at_once():
    x = make((4, 3, 33, 33))
    expected = exact_gradients(x)

    def work():
        net = make_net()
        for _ in range(5):
            assert_near(gradients(net, x), expected)

    with ran():
        in_threads(work, work, work)


def test_threads_that_enable_disable_and_normalize():
    x, dy = make((2, 8, 40, 40)), make((2, 8, 40, 40), seed=1)
    expected = differentiated(functional.group_norm, dy, x, None, None, 4)
    deadline = threading.Event()
    timer = threading.Timer(2.0, deadline.set)

    def normalize():
        while not deadline.is_set():
            found = differentiated(functional.group_norm, dy, x, None, None, 4)
            for f, e in zip(found, expected, strict=True):
                torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)

    def toggle():
        while not deadline.is_set():
            gt.enable()
            gt.disable()

    def override():
        while not deadline.is_set():
            with gt.override():
                pass

    timer.start()
    in_threads(normalize, normalize, toggle, override)
    assert not gt.enabled()


def test_blocks_of_two_threads_overlap():
    entered, leave = threading.Event(), threading.Event()

    def first():
        with gt.override():
            entered.set()
            leave.wait(30)
            assert gt.enabled()

    def second():
        entered.wait(30)
        with gt.override():
            pass
        assert gt.enabled()
        leave.set()

    in_threads(first, second)
    assert not gt.enabled()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", ["ours", "torch's"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_trains(before):
    """torch's own parallel_for waits in the child for threads that it has lost by the fork."""
    text = f"""
import os, signal, sys, torch
import groupnorm.torch as gt
torch.set_num_threads(2)
x = torch.randn(8, 32, 64, 64, requires_grad=True)
if {before == "ours"}:
    gt.enable()
y = torch.nn.functional.group_norm(x, 8)
dy = torch.randn_like(y)
dx = torch.autograd.grad(y, x, dy)[0]
gt.enable()
child = os.fork()
if child == 0:
    signal.alarm(60)
    z = torch.nn.functional.group_norm(x, 8)
    found = torch.autograd.grad(z, x, dy)[0]
    worst = abs(found.numpy() - dx.numpy()).max()
    os._exit(0 if worst < 1e-4 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    script(text)


def test_workers_of_a_data_loader_normalize():
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return functional.group_norm(make((2, 8, 40, 40), seed=i), 4)

    with warnings.catch_warnings(), gt.override():
        warnings.simplefilter("ignore")
        batches = list(torch.utils.data.DataLoader(Data(), num_workers=2, timeout=60))
    for i, batch in enumerate(batches):
        expected = functional.group_norm(make((2, 8, 40, 40), seed=i).double(), 4)
        torch.testing.assert_close(batch[0].double(), expected, rtol=0, atol=64 * EPS32)


# ---- what enable refuses


@pytest.fixture
def unprepared(monkeypatch):
    """As before the first enable."""
    monkeypatch.setattr(_override, "_library", None)
    monkeypatch.setattr(_override, "_torchs", {})


@pytest.mark.usefixtures("unprepared")
def test_enable_names_a_function_that_is_missing(monkeypatch):
    functions = [*_core.torch_functions(), ("aoti_torch_of_tomorrow", True)]
    monkeypatch.setattr(_override._core, "torch_functions", lambda: functions)
    with pytest.raises(
        RuntimeError, match="needs torch 2.10 .* no function aoti_torch_of_tomorrow"
    ):
        gt.enable()
    with pytest.raises(RuntimeError), gt.override():
        pass
    assert not gt.enabled()
    gt.disable()


@pytest.mark.usefixtures("unprepared")
def test_enable_names_a_schema_that_is_another(monkeypatch):
    schemas = {"native_group_norm": "aten::native_group_norm(Tensor input) -> Tensor"}
    monkeypatch.setattr(_override, "_SCHEMAS", schemas)
    with pytest.raises(RuntimeError, match="it has aten::native_group_norm.* in place of"):
        gt.enable()
    assert not gt.enabled()


@pytest.mark.usefixtures("unprepared")
def test_enable_names_what_an_old_torch_has_not(monkeypatch):
    monkeypatch.delattr(torch.library, "get_kernel")
    with pytest.raises(RuntimeError, match="get_kernel"):
        gt.enable()
    assert not gt.enabled()


@pytest.mark.usefixtures("unprepared")
def test_enable_needs_the_library_of_torch(monkeypatch):
    monkeypatch.setattr(_override._kernels, "libtorch", lambda: None)
    with pytest.raises(RuntimeError, match=r"libtorch_cpu\.so"):
        gt.enable()
    assert not gt.enabled()


def test_what_another_library_registered_comes_back():
    """An override of somebody else's, before and after ours."""
    seen = []
    kernel = torch.library.get_kernel("aten::native_group_norm", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def theirs(*args):
        seen.append(args[0].shape)
        return kernel.call_boxed(keys, *args)

    x = make((2, 8, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = torch.library.Library("aten", "IMPL")
        library.impl("native_group_norm", theirs, "CPU")
    try:
        functional.group_norm(x, 4)
        with ran(forward=1, backward=0):
            functional.group_norm(x, 4)
        assert len(seen) == 1
        functional.group_norm(x, 4)
        assert len(seen) == 2
    finally:
        del library
        gc.collect()
    functional.group_norm(x, 4)
    assert len(seen) == 2
