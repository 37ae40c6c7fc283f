"""replace_group_norm_, restore_group_norm_ and batch_norm_to_group_norm_.

Models are compared in float64, so that an activation that got lost, doubled or moved to another
place stands out against rounding by ten orders of magnitude.
"""

import concurrent.futures
import copy
import functools
import hashlib
import importlib.util
import inspect
import math
import pickle
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch import nn

import groupnorm.torch as gt
from groupnorm.torch import known_blocks
from groupnorm.torch.replace import (
    batch_norm_to_group_norm_,
    replace_group_norm_,
    restore_group_norm_,
)

ACTIVATIONS = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "hard_swish": nn.Hardswish,
}
NORMS = {
    "GroupNorm": lambda: nn.GroupNorm(2, 6),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(6, affine=True),
    "LayerNorm": lambda: nn.LayerNorm([6, 8, 8]),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The models are small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomize(model):
    generator = torch.Generator().manual_seed(1)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    return model


def image(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape or (2, 6, 8, 8), generator=generator, dtype=torch.float64)


def assert_close(y, expected):
    """Each layer adds a few eps of its largest value; a net may triple what comes in."""
    assert y.shape == expected.shape
    assert y.dtype == expected.dtype
    error = (y - expected).abs().max().item()
    assert error <= 1000 * torch.finfo(y.dtype).eps * (1 + expected.abs().max().item())


def structure(model):
    """All that restoring has to bring back."""
    return [
        (name, id(m), type(m), [(k, id(v)) for k, v in m.__dict__.items()], [*m._modules.items()])
        for name, m in model.named_modules()
    ]


def check(model, *inputs, fused=None, **options):
    """Replaces, compares, restores, compares; returns the report."""
    before = structure(model)
    keys = list(model.state_dict())
    expected = model(*inputs)
    report = replace_group_norm_(model, **options)
    if fused is not None:
        assert {r.name: r.activation for r in report.replaced if r.activation != "none"} == fused
    assert list(model.state_dict()) == keys
    assert_close(model(*inputs), expected)
    assert restore_group_norm_(model) == [r.name for r in report.replaced]
    assert structure(model) == before
    assert torch.equal(model(*inputs), expected)
    return report


def hooked(module):
    module.register_forward_hook(lambda module, args, y: 2 * y)
    return module


class Twice(nn.Identity):
    def forward(self, input):
        return 2 * input


class Swish(nn.SiLU):
    def forward(self, input):
        return 2 * super().forward(input)


class HidesAnActivation(nn.GroupNorm):
    def forward(self, input):
        return F.silu(super().forward(input))


class Backwards(nn.Sequential):
    def forward(self, input):
        for module in reversed(self):
            input = module(input)
        return input


class Block(nn.Module):
    """One activation after two norms and on a side value [N, C], as in a diffusion UNet."""

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(2, 6), nn.GroupNorm(3, 6)
        self.a, self.idle = nn.SiLU(), nn.Identity()
        self.conv, self.fc = nn.Conv2d(6, 6, 1), nn.Linear(6, 6)
        self.factor = 1

    def forward(self, x):
        side = x[:, :, 0, 0]
        x = self.conv(self.a(self.idle(self.n1(x)))) + self.fc(self.a(side))[:, :, None, None]
        x = self.n2(x)
        if self.factor != 1:
            x = x * self.factor
        return self.conv(self.a(x))


class Subclass(Block):
    def forward(self, x):
        return super().forward(x) + self.n1(x)


class Residual(nn.Module):
    """A shortcut between norm and activation, as in a ResNet."""

    def __init__(self):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(2, 6), nn.GroupNorm(3, 6)
        self.a1, self.a2 = nn.ReLU(inplace=True), nn.SiLU(inplace=True)
        self.c1, self.c2 = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.drop, self.se = nn.Identity(), None

    def forward(self, x):
        shortcut = x
        x = self.a1(self.n1(self.c1(x)))
        x = self.n2(self.c2(x))
        if self.se is not None:
            x = self.se(x)
        x = self.drop(x)
        x += shortcut
        return self.a2(x)


class Last(nn.Module):
    """A shortcut after a norm and nothing behind it, as in an EfficientNet."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 1), NormAct(nn.Identity())

    def forward(self, x):
        return self.norm(self.conv(x)) + x


class Conditioned(nn.Module):
    """What a linear layer gives, before a norm or on its result, as in a diffusion UNet."""

    def __init__(self, mode="shift"):
        super().__init__()
        self.mode = mode
        self.fc = nn.Linear(6, 6 if mode == "shift" else 12)
        self.conv, self.norm, self.a = nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6), nn.SiLU()

    def forward(self, x):
        side = self.fc(self.a(x[:, :, 0, 0]))[:, :, None, None]
        x = self.conv(x)
        if self.mode == "shift":
            x = self.norm(x + side)
        else:
            scale, shift = torch.chunk(side, 2, dim=1)
            x = self.norm(x) * (1 + scale) + shift
        return self.a(x)


class NormAct(nn.GroupNorm):
    def __init__(self, act, drop=None, _fast_norm=False):
        super().__init__(2, 6)
        self.drop = drop or nn.Identity()
        self.act = act
        self._fast_norm = _fast_norm

    def forward(self, x):
        if self._fast_norm:
            return x
        else:
            x = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return self.act(self.drop(x))


def sha256(function):
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Rows for the blocks above."""
    fusion = known_blocks.Fusion
    a = functools.partial(fusion, ("norm",), "a", projection="fc")
    rows = {
        Block: (fusion(("n1", "n2"), "a", through=("idle",), when=lambda b: b.factor == 1),),
        Residual: (
            fusion(("n1",), "a1"),
            fusion(("n2",), "a2", ("residual",), through=("drop",), absent=("se",)),
        ),
        Last: (fusion(("norm",), neighbours=("residual",)),),
        Conditioned: (
            a(neighbours=("shift",), when=lambda b: b.mode == "shift"),
            a(neighbours=("scale_shift",), when=lambda b: b.mode != "shift"),
        ),
    }
    for cls, fusions in rows.items():
        name, digests = f"{__name__}.{cls.__name__}", ("0" * 64, sha256(cls.forward))
        row = known_blocks.KnownBlock(name, digests, fusions)
        monkeypatch.setitem(known_blocks.BLOCKS, name, row)


def network():
    norms = (nn.InstanceNorm2d(6, affine=True), nn.GELU(), nn.LayerNorm(8), nn.Hardswish())
    first = (nn.Conv2d(6, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(inplace=True), Block())
    return randomize(nn.Sequential(*first, nn.Conv2d(6, 6, 1), *norms, nn.GroupNorm(6, 6)))


NETWORK = {"1": "relu", "3.n1": "silu", "3.n2": "silu", "5": "gelu", "7": "hard_swish"}


# --- Sequences.


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_sequential(norm, activation):
    act = ACTIVATIONS[activation]()
    model = randomize(nn.Sequential(nn.Conv2d(3, 6, 1), NORMS[norm](), act, nn.Conv2d(6, 2, 1)))
    (r,) = check(model, image(2, 3, 8, 8), fused={"1": activation}).replaced
    assert (r.kind, r.activation_names, r.note) == (norm, ("2",), "")
    check(model, image(2, 3, 8, 8), fused={}, fuse_activation=False)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_instance_norms(rank):
    norm = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[rank - 1](6)
    model = nn.Sequential(norm, nn.SiLU())
    for x in (image(2, 6, *[5] * rank), image(6, *[5] * rank)):
        check(model, x, fused={"0": "silu"})
    replace_group_norm_(model)
    assert type(norm) is (gt.InstanceNorm1d, gt.InstanceNorm2d, gt.InstanceNorm3d)[rank - 1]


def test_idle_modules_between_norm_and_activation():
    model = nn.Sequential(nn.GroupNorm(2, 6, affine=False), *[nn.Identity()] * 2, nn.SiLU())
    check(model, image(), fused={"0": "silu"})


@pytest.mark.parametrize("between", [Twice(), hooked(nn.Identity()), nn.Dropout(0.0), nn.Mish()])
def test_something_that_computes_between_norm_and_activation(between):
    check(randomize(nn.Sequential(nn.GroupNorm(2, 6), between, nn.SiLU())), image(), fused={})


@pytest.mark.parametrize("activation", [Swish(), nn.Mish(), nn.PReLU(), hooked(nn.ReLU())])
def test_only_known_activations_are_fused(activation):
    check(randomize(nn.Sequential(nn.GroupNorm(2, 6), activation)), image(), fused={})


class ConvNormAct(nn.Sequential):
    """Its constructor is its own, as in torchvision; its forward is not."""

    def __init__(self, channels):
        norms = nn.GroupNorm(2, channels), nn.ReLU()
        super().__init__(nn.Conv2d(channels, channels, 1), *norms)


def test_sequentials_with_another_forward_are_not_looked_into():
    check(randomize(ConvNormAct(6)), image(), fused={"1": "relu"})
    check(randomize(Backwards(nn.GroupNorm(2, 6), nn.SiLU())), image(), fused={})
    model = randomize(nn.Sequential(nn.GroupNorm(2, 6), nn.SiLU()))
    model.forward = lambda x: model[1](x) + model[0](x)
    check(model, image(), fused={})


def test_shared_modules():
    act = nn.ReLU()
    shared = nn.GroupNorm(2, 6)
    twice = nn.Sequential(nn.GroupNorm(3, 6), act)
    model = nn.Sequential(
        *(nn.Sequential(shared, act), twice, nn.Conv2d(6, 6, 1), shared, twice),
        *(nn.Sequential(nn.GroupNorm(1, 6), act), act),
    )
    report = check(randomize(model), image(), fused={"0.0": "relu", "1.0": "relu", "5.0": "relu"})
    assert [r.name for r in report.replaced] == ["0.0", "1.0", "5.0"]


# --- Blocks and norms that are known.


def test_a_known_block():
    model = randomize(nn.Sequential(Block(), nn.Conv2d(6, 6, 1), Block()))
    report = check(model, image(), fused=dict.fromkeys(["0.n1", "0.n2", "2.n1", "2.n2"], "silu"))
    assert [r.activation_names for r in report.replaced] == [("0.a",)] * 2 + [("2.a",)] * 2
    assert not any(r.note for r in report.replaced)


UNKNOWN = (
    "a subclass of GroupNorm that may compute something else; trusted=[{}] says that it does not"
)
VERSION = "Block has a version of its forward that is not known"
SETTINGS = "Block has settings for which its forward is not known"
HOOKS = "the norm or its activation has hooks"
BETWEEN = "idle may compute something in between"


@pytest.mark.parametrize(
    ("name", "new", "reason"),
    [
        ("forward", lambda b: lambda x: b.n1(x) - b.a(x), VERSION),
        ("factor", lambda b: 2, SETTINGS),
        ("n1", lambda b: hooked(b.n1), HOOKS),
        ("idle", lambda b: Twice(), BETWEEN),
        ("idle", lambda b: hooked(b.idle), BETWEEN),
        ("a", lambda b: hooked(b.a), HOOKS),
        ("a", lambda b: nn.Mish(), None),
    ],
)
def test_a_known_block_that_was_changed(name, new, reason):
    block = Block()
    setattr(block, name, new(block))
    fused = {"n2": "silu"} if name == "n1" else {}
    first = check(randomize(block), image(), fused=fused).replaced[0]
    assert (first.name, first.note) == ("n1", f"not fused: {reason}" if reason else "")


@pytest.mark.parametrize(
    ("n2", "fused"),
    [
        (hooked(nn.GroupNorm(2, 6)), {}),
        (HidesAnActivation(2, 6), {}),
        (NormAct(nn.ReLU()), {"n2": "relu"}),
        (nn.Conv2d(6, 6, 1), {}),
    ],
)
def test_each_norm_of_a_known_block_is_fused_by_itself(n2, fused):
    block = Block()
    block.n2 = n2
    check(randomize(block), image(), fused={"n1": "silu", **fused})


def test_a_norm_of_a_known_block_that_is_filtered_out():
    keep = lambda _, name: name != "n2"
    report = check(randomize(Block()), image(), fused={"n1": "silu"}, filter_fn=keep)
    assert [r.note for r in report.replaced] == [""]


def other_forward(self, x):
    return self.conv(self.n1(x)) + self.a(x)


@functools.wraps(Block.forward)
def wrapped_forward(self, x):
    return other_forward(self, x)


class Callable:
    def __get__(self, block, cls):
        return functools.partial(other_forward, block)


@pytest.mark.parametrize(
    "forward", [other_forward, wrapped_forward, Callable(), eval("lambda s, x: s.n1(x)")]
)
def test_a_version_that_is_not_known(monkeypatch, forward):
    monkeypatch.setattr(Block, "forward", forward)
    report = check(randomize(Block()), image(), fused={})
    assert [r.note for r in report.replaced] == [f"not fused: {VERSION}"] * 2


def test_other_blocks_are_not_looked_into():
    report = check(randomize(Subclass()), image(), fused={})
    assert report.replaced[1].note == "not fused: Subclass is no block that is known"


def test_norms_with_their_own_activation():
    fast = NormAct(nn.ReLU(), _fast_norm=True)
    model = nn.Sequential(
        *(NormAct(nn.ReLU(inplace=True)), NormAct(nn.Mish()), NormAct(nn.Identity()), nn.GELU()),
        *(NormAct(nn.SiLU()), nn.ReLU(), NormAct(nn.SiLU(), nn.Hardswish()), fast),
        *(NormAct(hooked(nn.ReLU())), NormAct(nn.ReLU(), hooked(nn.Identity()))),
    )
    report = check(randomize(model), image(), fused={"0": "relu", "4": "silu"})
    (skip,) = report.skipped
    assert skip.name == "7"
    assert skip.reason == UNKNOWN.format("NormAct")
    assert {r.name for r in report.replaced if r.note} == {"1", "6", "8", "9"}
    assert report.replaced[0].activation_names == ("0.act",)
    assert report.replaced[1].note == "not fused: its own Identity and Mish"
    check(model, image(), fused={}, fuse_activation=False)


def test_norms_that_are_left_alone():
    with_forward, with_attribute = nn.GroupNorm(2, 6), nn.GroupNorm(2, 6)
    with_forward.forward = lambda x: x + 1
    with_attribute.activation = nn.SiLU()
    running = nn.InstanceNorm2d(6, track_running_stats=True).eval()
    lazy = nn.Sequential(nn.LazyInstanceNorm2d(affine=False, track_running_stats=False), nn.ReLU())
    assert [s.reason for s in replace_group_norm_(lazy).skipped] == [
        "is lazy: call the model once before"
    ]
    lazy(image())
    check(lazy, image(), fused={"0": "relu"})
    norms = (with_forward, with_attribute, running, HidesAnActivation(2, 6))
    model = randomize(nn.Sequential(*(m for norm in norms for m in (norm, nn.ReLU()))))
    report = check(model, image(), fused={})
    assert report.replaced == []
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("0", "has a forward of its own, set on the instance"),
        ("2", "has an attribute 'activation' of its own"),
        ("4", "tracks running statistics"),
        ("6", UNKNOWN.format("HidesAnActivation")),
    ]


# --- What a block adds around a norm.

AROUND = {
    "residual": (Residual, {"n2": ("residual",)}),
    "last": (Last, {"norm": ("residual",)}),
    "shift": (Conditioned, {"norm": ("shift",)}),
    "scale_shift": (functools.partial(Conditioned, "scale_shift"), {"norm": ("scale_shift",)}),
}


@pytest.mark.parametrize("name", AROUND)
def test_neighbours_of_a_known_block(name):
    build, beside = AROUND[name]
    report = check(randomize(build()), image())
    assert {r.name: r.neighbours for r in report.replaced if r.neighbours} == beside
    assert not any(r.note for r in report.replaced)
    text = " + ".join(
        ["GroupNorm" if name != "last" else "NormAct", *beside[report.replaced[-1].name]]
    )
    assert text in str(report) and "1 with what is added" in str(report)


@pytest.mark.parametrize("name", AROUND)
def test_neighbours_are_computed_in_the_call(name):
    """A compiled block is a whole graph, and shows what it calls."""
    model = randomize(AROUND[name][0]())
    twin = copy.deepcopy(model)
    replace_group_norm_(model)
    calls = []

    def backend(graph, inputs):
        calls.extend(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return graph

    assert_close(torch.compile(model, backend=backend, fullgraph=True)(image()), twin(image()))
    assert any("norm_with_neighbours" in c for c in calls)
    assert not any(word in c for c in calls for word in ("add", "mul"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", AROUND)
def test_training_of_neighbours_has_the_same_gradients(name, memory_format):
    model = randomize(AROUND[name][0]())
    twin = copy.deepcopy(model)
    replace_group_norm_(model)
    x = image().contiguous(memory_format=memory_format)
    for _ in range(2):
        for found, expected in zip(passes(model, x), passes(twin, x), strict=True):
            assert_close(found, expected)
        model, twin = copy.deepcopy(model), pickle.loads(pickle.dumps(twin))


@pytest.mark.parametrize("kind", ["forward", "full_backward"])
@pytest.mark.parametrize("name", AROUND)
def test_hooks_see_what_the_modules_of_neighbours_compute(name, kind):
    if (name, kind) == ("residual", "full_backward"):
        pytest.skip("torch refuses what changes its results in place")
    model = randomize(AROUND[name][0]())
    twin = copy.deepcopy(model)
    replace_group_norm_(model)
    for module in [*model._modules]:
        seen = []
        for each in (model, twin):

            def hook(module, inputs, outputs, seen=seen):
                seen.extend(t.detach() for t in (inputs[0], outputs) if isinstance(t, torch.Tensor))

            handle = HOOKS_OF[kind](each._modules[module], hook)
            results = passes(each, image())
            handle.remove()
            seen.append(results[0].detach())
        for found, expected in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "new", "reason"),
    [
        ("se", nn.Identity(), "se may compute something in between"),
        ("drop", nn.Dropout(0.5), "drop may compute something in between"),
        ("n2", hooked(nn.GroupNorm(3, 6)), "the norm or its activation has hooks"),
    ],
)
def test_something_between_norm_and_shortcut(name, new, reason):
    block = Residual()
    setattr(block, name, new)
    report = check(randomize(block).eval(), image(), fused={"n1": "relu"})
    last = report.replaced[-1]
    assert (last.name, last.neighbours, last.note) == ("n2", (), f"not fused: {reason}")


def test_a_shortcut_without_an_activation_of_the_engine():
    block = Residual()
    block.a2 = nn.LeakyReLU(inplace=True)
    report = check(randomize(block), image(), fused={"n1": "relu"})
    assert report.replaced[-1].neighbours == ("residual",)
    block.a2 = hooked(nn.SiLU())
    report = check(randomize(block), image(), fused={"n1": "relu"})
    assert report.replaced[-1].neighbours == ("residual",)


@pytest.mark.parametrize("build", [Residual, Last])
def test_a_shortcut_of_another_dtype(build):
    """As under autocast: x += shortcut keeps the dtype of x, x + shortcut has the wider one."""
    model = build()
    twin = copy.deepcopy(model)
    replace_group_norm_(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = model(image().float()), twin(image().float())
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_fuse_activation_off_fuses_nothing():
    block = Residual()
    report = replace_group_norm_(block, fuse_activation=False)
    assert type(block) is Residual
    assert all(not r.neighbours and r.activation == "none" for r in report.replaced)


# --- Each module stays what it is: what is done to a replaced model does to it what it does to any.


def pair(inplace=False):
    """A norm and its activation in an nn.Sequential and in a block that is known, with a twin."""
    model = nn.Sequential(nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6), nn.ReLU(inplace), Block())
    twin = copy.deepcopy(randomize(model))
    assert all(r.activation != "none" for r in replace_group_norm_(model).replaced)
    return model, twin


def passes(model, x):
    """The output and all gradients."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    y.sin().sum().backward()
    gradients = [x.grad, *(p.grad for p in model.parameters())]
    return [y, *(g for g in gradients if g is not None)]


MODULES = ["1", "2", "3.n1", "3.n2", "3.a"]
HOOKS_OF = {
    "forward": lambda m, hook: m.register_forward_hook(hook),
    "forward_pre": lambda m, hook: m.register_forward_pre_hook(hook),
    "full_backward": lambda m, hook: m.register_full_backward_hook(hook),
    "full_backward_pre": lambda m, hook: m.register_full_backward_pre_hook(hook),
    "global_forward": lambda m, hook: nn.modules.module.register_module_forward_hook(hook),
    "global_pre": lambda m, hook: nn.modules.module.register_module_forward_pre_hook(hook),
    "global_backward": lambda m, hook: nn.modules.module.register_module_full_backward_hook(hook),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", HOOKS_OF)
def test_hooks_added_later_see_what_the_modules_compute(kind, name):
    """And nothing once they are gone. torch refuses backward hooks of what is changed in place."""
    seen = []
    for model in pair(inplace="backward" not in kind):
        module = model.get_submodule(name)
        before = passes(model, image())
        values = []

        def hook(m, *tensors, module=module, values=values):
            if m is module:
                values.extend(t.detach().clone() for ts in tensors for t in ts if t is not None)

        with HOOKS_OF[kind](module, hook):
            during = passes(model, image())
        assert values
        count = len(values)
        assert all(map(torch.equal, passes(model, image()), before))
        assert len(values) == count
        seen.append([*before, *during, *values])
    for found, expected in zip(*seen, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("kind", HOOKS_OF)
def test_hooks_from_before_are_called(kind, index):
    model = randomize(nn.Sequential(nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6), nn.SiLU()))
    calls = []
    with HOOKS_OF[kind](model[index], lambda module, *_: calls.append(module)):
        report = replace_group_norm_(model)
        assert report.replaced[0].note == f"not fused: {HOOKS}"
        passes(model, image())
    assert model[index] in calls
    calls.clear()
    passes(model, image())
    assert calls == []


def test_guided_backpropagation():
    """As tools of attribution do it: each nn.ReLU lets positive gradients through alone."""
    gradients = []
    for model in pair():
        found = [m for m in model.modules() if isinstance(m, nn.ReLU | nn.SiLU)]
        assert len(found) == 2
        for m in found:
            m.register_full_backward_hook(lambda m, dx, dy: tuple(d.clamp(min=0) for d in dx))
        gradients.append(passes(model, image()))
    for found, expected in zip(*gradients, strict=True):
        assert_close(found, expected)


EDITS = {
    "a part": lambda m: m[:2],
    "the norm alone": lambda m: m[1],
    "parts in another sequence": lambda m: nn.Sequential(m[0], m[1], nn.Mish(), m[3]),
    "no activation": lambda m: m.__delitem__(2) or m,
    "an idle activation": lambda m: m.__setitem__(2, nn.Identity()) or m,
    "another activation": lambda m: m.__setitem__(2, nn.SiLU()) or m,
    "a norm that is wrapped": lambda m: m.__setitem__(1, nn.Sequential(m[1], Twice())) or m,
    "something between": lambda m: m.insert(2, Twice()) or m,
    "an activation that is wrapped": lambda m: m.__setitem__(2, nn.Sequential(m[2])) or m,
    "one more norm": lambda m: m.append(nn.GroupNorm(3, 6).double()) or m,
    "evaluation": lambda m: m.eval(),
    "another dtype": lambda m: m.float(),
    "a norm's own forward": lambda m: m[1].__setattr__("forward", torch.sin) or m,
    "an activation's own forward": lambda m: m[3].a.__setattr__("forward", torch.sin) or m,
    "a block's own forward": lambda m: m[3].__setattr__("forward", torch.sin) or m,
    "a block's norm by itself": lambda m: m[3].n1,
    "a block's norm that is replaced": lambda m: m[3].__setattr__("n2", nn.Identity()) or m,
    "a block's activation that is replaced": lambda m: m[3].__setattr__("a", nn.Tanh()) or m,
    "something between in a block": lambda m: m[3].__setattr__("idle", Twice()) or m,
    "a setting of a block": lambda m: m[3].__setattr__("factor", 2) or m,
    "a parametrization": lambda m: nn.utils.parametrizations.weight_norm(m[1]) and m,
    "an activation with a setting": lambda m: m.__setitem__(2, nn.GELU(approximate="tanh")) or m,
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edits_of_a_replaced_model(edit):
    found, expected = map(edit, pair())
    x = image().to(next(expected.parameters()).dtype)
    assert_close(found(x), expected(x))
    if not nn.utils.parametrize.is_parametrized(found):
        x = x.double()
        found, expected = found.double(), expected.double()
        for f, e in zip(passes(found, x), passes(expected, x), strict=True):
            assert_close(f, e)


def test_a_forward_that_is_patched_later(monkeypatch):
    found, expected = pair()
    monkeypatch.setattr(Block, "forward", other_forward)
    assert_close(found(image()), expected(image()))


def test_blocks_pass_for_what_they_were():
    found, expected = pair()
    for f, e in zip(found.modules(), expected.modules(), strict=True):
        assert isinstance(f, type(e))
        assert type(f).__qualname__ == type(e).__qualname__
        names = [[*inspect.signature(m.forward).parameters] for m in (f, e)]
        assert names[0] == names[1]
    assert repr(found) == repr(expected)
    assert found[3](x=image()).shape == image().shape


def test_compiled_blocks_are_whole_graphs():
    from torch._dynamo.testing import CompileCounter

    model, twin = pair()
    calls = []

    def backend(graph, inputs):
        calls.extend(n.args[-1] for n in graph.graph.nodes if "group_norm" in str(n.target))
        return graph

    assert_close(torch.compile(model, backend=backend, fullgraph=True)(image()), twin(image()))
    assert calls == ["relu", "silu", "silu"]
    counter = CompileCounter()
    torch.compile(model, backend=counter)(image())
    assert counter.frame_count == 1


def test_threads_share_a_block():
    """Each call has a view of its own."""
    model, twin = pair()
    inputs = [image(n, 6, 8, 8) for n in range(1, 9)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for y, x in zip(pool.map(model, inputs), inputs, strict=True):
            assert_close(y, twin(x))


# --- What is kept.


def test_replaced_modules_stay_the_same_objects():
    norm = nn.GroupNorm(2, 6, eps=0.25).eval()
    norm.own = "mine"
    weight, bias = norm.weight, norm.bias
    replace_group_norm_(model := nn.Sequential(norm))
    assert type(norm) is gt.GroupNorm
    assert (model[0], norm.weight, norm.bias) == (norm, weight, bias)
    assert (norm.num_groups, norm.eps, norm.training, norm.own) == (2, 0.25, False, "mine")


def test_the_model_itself_is_the_norm():
    report = check(randomize(nn.GroupNorm(3, 6)), image(), fused={})
    assert "\n  replaced  (the model)  GroupNorm\n" in str(report)
    own = check(randomize(NormAct(nn.ReLU())), image(), fused={"": "relu"})
    assert own.replaced[0].activation_names == ("act",)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_work_and_can_be_restored(way):
    model = network()
    expected = model(image())
    replace_group_norm_(model)
    other = way(model)
    assert torch.equal(other(image()), model(image()))
    assert repr(other) == repr(model)
    assert restore_group_norm_(other) == ["1", "3.n1", "3.n2", "5", "7", "9"]
    assert list(map(type, other.modules())) == list(map(type, network().modules()))
    assert repr(other) == repr(network())
    assert torch.equal(other(image()), expected)
    assert_close(model(image()), expected)  # the original is as it was
    assert type(model[1]) is gt.GroupNorm


def test_state_dicts_go_both_ways():
    model, other = network(), network()
    replace_group_norm_(model)
    for source, target in ((model, other), (other, model)):
        with torch.no_grad():
            for p in source.parameters():
                p.mul_(0.5)
        target.load_state_dict(source.state_dict())
        assert_close(model(image()), other(image()))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_has_the_same_gradients(memory_format):
    model = network().to(memory_format=memory_format)
    other = copy.deepcopy(model)
    assert {r.name: r.activation for r in replace_group_norm_(other).replaced} == {
        **NETWORK,
        "9": "none",
    }
    gradients = []
    for net in (model, other):
        x = image().to(memory_format=memory_format).requires_grad_()
        net(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in net.parameters())])
    for expected, gradient in zip(*gradients, strict=True):
        assert_close(gradient, expected)


def test_a_mode_set_after_replacing_reaches_a_restored_activation():
    model = nn.Sequential(nn.GroupNorm(2, 6), nn.SiLU())
    replace_group_norm_(model)
    model.eval()
    restore_group_norm_(model)
    assert not any(m.training for m in model.modules())


def test_parametrizations():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model = randomize(nn.Sequential(nn.GroupNorm(2, 6), nn.SiLU(), nn.GroupNorm(2, 6), nn.SiLU()))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Double())
    report = check(model, image(), fused={"2": "silu"})
    assert [(s.name, s.reason) for s in report.skipped] == [("0", "has parametrizations")]
    expected = model(image())
    replace_group_norm_(model)
    nn.utils.parametrize.register_parametrization(model[2], "weight", Double())
    parametrized = model(image())
    with pytest.raises(ValueError, match=r"2 must have the class.*parametrizations"):
        restore_group_norm_(model)
    assert torch.equal(model(image()), parametrized)
    nn.utils.parametrize.remove_parametrizations(model[2], "weight", leave_parametrized=False)
    restore_group_norm_(model)
    assert_close(model(image()), expected)


# --- Arguments, reports, restoring.


def test_filter():
    model = network()
    seen = {}
    filter_fn = lambda module, name: seen.update({name: module}) or name != "1"
    report = replace_group_norm_(model, filter_fn=filter_fn)
    assert list(seen) == ["1", "3.n1", "3.n2", "5", "7", "9"]
    assert all(model.get_submodule(name) is module for name, module in seen.items())
    assert [(s.name, s.reason) for s in report.skipped] == [("1", "filter_fn said no")]
    assert (type(model[1]), type(model[2])) == (nn.GroupNorm, nn.ReLU)


@pytest.mark.parametrize("include", [("group",), {"instance"}, ["layer", "group"], ()])
def test_include(include):
    report = replace_group_norm_(network(), include=include)
    kinds = {"group": "GroupNorm", "instance": "InstanceNorm2d", "layer": "LayerNorm"}
    assert {r.kind for r in report.replaced} == {kinds[i] for i in include}
    assert report.skipped == []


@pytest.mark.parametrize("function", [replace_group_norm_, batch_norm_to_group_norm_])
def test_wrong_arguments(function):
    with pytest.raises(TypeError, match=r"^model: must be a torch\.nn\.Module; got int$"):
        function(7)
    with pytest.raises(TypeError, match=r"^filter_fn: must be None or a function; got str$"):
        function(network(), filter_fn="norm")
    model = nn.Sequential(*(m for _ in range(3) for m in (nn.GroupNorm(2, 6), nn.BatchNorm2d(6))))
    before = structure(model)
    with pytest.raises(ZeroDivisionError):
        function(model, filter_fn=lambda _, name: 1 / (int(name) < 4))
    assert structure(model) == before


def test_wrong_arguments_of_each():
    model = network()
    for include in ("group", ["batch"]):
        with pytest.raises(ValueError, match=r"^include: must be a collection of group, .*; got "):
            replace_group_norm_(model, include=include)
    with pytest.raises(TypeError, match=r"^model: must be a torch\.nn\.Module; got str$"):
        restore_group_norm_("model")
    with pytest.raises(ValueError, match=r"^num_groups: must be at least 1; got 0$"):
        batch_norm_to_group_norm_(model, 0)
    for num_groups in (2.0, True):
        with pytest.raises(TypeError, match=rf"^num_groups: must be an int; got {num_groups}$"):
            batch_norm_to_group_norm_(model, num_groups)
    assert type(model[1]) is nn.GroupNorm


def test_the_report_reads_well():
    last = nn.Sequential(hooked(nn.GroupNorm(2, 6)), nn.SiLU())
    norms = (nn.GroupNorm(2, 6), nn.SiLU(), HidesAnActivation(2, 6), nn.LayerNorm(8))
    assert str(replace_group_norm_(nn.Sequential(*norms, last))) == (
        "3 replaced (1 with an activation, 0 with what is added or scaled beside them), 1 skipped\n"
        "  replaced  0  GroupNorm + silu of 1\n"
        "  replaced  3  LayerNorm\n"
        "  replaced  4.0  GroupNorm  (not fused: the norm or its activation has hooks)\n"
        "  skipped   2  HidesAnActivation  "
        f"({UNKNOWN.format('HidesAnActivation')})\n"
        "A norm computes its activation and its neighbours where the module that holds them is called "
        "and none has hooks. fuse_activation=False keeps all of them apart.\n"
        "torch.fx, torch.compile, torch.export and torch.onnx.export take the model as it is. Before "
        "torch.jit.script or torch.jit.trace, and before torch.save or torch.export of what has to "
        "run without groupnorm, call restore_group_norm_(model)."
    )


def test_what_is_ours_already_is_left_alone():
    model = nn.Sequential(gt.GroupNorm(2, 6, activation="silu"), *network())
    replace_group_norm_(model)
    before = structure(model)
    report = replace_group_norm_(model)
    assert report.replaced == []
    assert {s.reason for s in report.skipped} == {"is of groupnorm.torch already"}
    assert structure(model) == before
    assert len(restore_group_norm_(model)) == 6
    assert (type(model[0]), model[0].activation) == (gt.GroupNorm, "silu")
    assert restore_group_norm_(model) == []


def test_parts_are_restored_by_themselves():
    model = randomize(Block())
    expected = model(image())
    replace_group_norm_(model)
    assert restore_group_norm_(model.n1) == [""]
    assert type(model.n1) is nn.GroupNorm
    assert_close(model(image()), expected)
    assert restore_group_norm_(model) == ["n2"]
    assert type(model) is Block


# --- Batch norms.


@pytest.mark.parametrize(
    ("cls", "rank"),
    [(nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3), (nn.SyncBatchNorm, 2)],
)
def test_batch_norms_become_group_norms(cls, rank):
    model = randomize(nn.Sequential(cls(12, eps=0.5), nn.ReLU())).eval()
    norm, weight, bias = model[0], model[0].weight, model[0].bias
    calls = []
    hook = norm.register_forward_hook(lambda *_: calls.append(1))
    report = batch_norm_to_group_norm_(model, 8)
    x = image(3, 12, *[3] * rank)
    assert_close(model(x), F.relu(F.group_norm(x, math.gcd(8, 12), weight, bias, 0.5)))
    assert (model[0], type(norm), norm.weight, norm.bias) == (norm, gt.GroupNorm, weight, bias)
    assert not norm.training
    assert calls == [1]
    assert list(model.state_dict()) == ["0.weight", "0.bias"]
    made = gt.GroupNorm(4, 12, 0.5)
    assert norm.__dict__.keys() == made.__dict__.keys()
    assert repr(norm) == repr(made)
    assert str(report).endswith(f"  replaced  0  {cls.__name__}  (4 groups of 3 channels)")
    hook.remove()
    made.double().load_state_dict(norm.state_dict())
    assert torch.equal(pickle.loads(pickle.dumps(norm))(x), made(x))


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (7, 1), (32, 32), (96, 32)])
def test_groups_divide_any_channel_count(channels, groups):
    norm = nn.BatchNorm2d(channels)
    batch_norm_to_group_norm_(norm)  # the model itself
    assert (type(norm), norm.num_groups, norm.num_channels) == (gt.GroupNorm, groups, channels)


def test_batch_norm_variants():
    class Activated(nn.BatchNorm2d):
        pass

    plain = nn.BatchNorm2d(6, track_running_stats=False, affine=False)
    norms = (plain, nn.BatchNorm1d(6), nn.LazyBatchNorm2d(), Activated(6), nn.BatchNorm2d(6))
    model = nn.Sequential(*norms)
    report = batch_norm_to_group_norm_(model, 6, filter_fn=lambda _, name: name != "4")
    assert [r.name for r in report.replaced] == ["0", "1"]
    assert [(s.name, s.reason) for s in report.skipped] == [
        ("2", "is lazy: call the model once before"),
        ("3", "a subclass that may compute something else"),
        ("4", "filter_fn said no"),
    ]
    assert report.replaced[1].note == "6 groups of 1 channels: an input [N, C] becomes bias"
    assert torch.equal(model[1](torch.randn(3, 6)), model[1].bias.expand(3, 6))
    assert type(model[4]) is nn.BatchNorm2d


# --- Models of other packages, where they are installed.


@functools.cache
def bench_models():
    path = Path(__file__).parents[2] / "bench" / "models.py"
    spec = importlib.util.spec_from_file_location("bench_models", path)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def third_party(name):
    models = bench_models()
    try:
        return models._import(name.partition(".")[0], name)
    except models.Missing as missing:
        pytest.skip(f"it {missing}")


def check_third_party(model, x, run=nn.Module.__call__):
    """The names of the norms that compute an activation, of the others, and their neighbours."""
    with torch.no_grad():
        expected = run(model, x)
        report = replace_group_norm_(model)
        assert_close(run(model, x), expected)
        restore_group_norm_(model)
        assert torch.equal(run(model, x), expected)
    assert report.skipped == []
    fused = {r.name for r in report.replaced if r.activation != "none"}
    beside = {r.name: r.neighbours for r in report.replaced if r.neighbours}
    return fused, {r.name for r in report.replaced} - fused, beside


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
def test_diffusers_unet(shift):
    model = third_party("diffusers.models.unets.unet_2d").UNet2DModel(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=1,
        resnet_time_scale_shift=shift,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    run = lambda model, x: model(x, 7).sample
    fused, plain, beside = check_third_party(model.double(), image(2, 3, 16, 16), run)
    resnets = {name for name in fused | plain if "resnets" in name}
    assert len(resnets) == 16
    assert fused == {"conv_norm_out"} | resnets
    assert beside == {
        name: (shift.replace("default", "shift"),) for name in resnets if "norm2" in name
    }


def test_diffusers_autoencoder():
    model = third_party("diffusers.models.autoencoders.autoencoder_kl").AutoencoderKL(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    run = lambda model, x: model(x).sample
    fused, plain, _ = check_third_party(model.double(), image(1, 3, 16, 16), run)
    assert {"encoder.conv_norm_out", "decoder.conv_norm_out"} < fused
    assert all("attentions" in name for name in plain)


def test_monai_segresnet():
    model = third_party("monai.networks.nets.segresnet").SegResNet(init_filters=8)
    fused, plain, beside = check_third_party(randomize(model), image(1, 1, 16, 16, 16))
    assert (len(fused), plain, beside) == (25, set(), {})


def test_monai_dynunet():
    model = third_party("monai.networks.nets.dynunet").DynUNet(
        *(2, 1, 2),
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[4, 8, 8],
        res_block=True,
    )
    fused, plain, beside = check_third_party(randomize(model).eval(), image(1, 1, 16, 16))
    assert fused == set()  # its LeakyReLU is not the engine's
    assert beside == {name: ("residual",) for name in plain if "norm2" in name and "up" not in name}


def test_monai_diffusion_unet():
    model = third_party("monai.networks.nets.diffusion_model_unet").DiffusionModelUNet(
        *(2, 1, 1),
        channels=(8, 8),
        attention_levels=(False, False),
        num_res_blocks=1,
        norm_num_groups=4,
    )
    run = lambda model, x: model(x, torch.tensor([3]).double())
    fused, _, beside = check_third_party(randomize(model), image(1, 1, 8, 8), run)
    assert set(beside.values()) == {("shift",)}
    assert beside.keys() < fused


@pytest.mark.parametrize("name", ["ResNetBlock", "ResNetBottleneck"])
def test_monai_resnet(name):
    cls = getattr(third_party("monai.networks.nets.resnet"), name)
    model = cls(4 * cls.expansion, 4, spatial_dims=2, norm=("group", {"num_groups": 2}))
    fused, plain, beside = check_third_party(randomize(model), image(1, 4 * cls.expansion, 8, 8))
    assert list(beside.values()) == [("residual",)]
    assert beside.keys() < fused and plain == set()


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet50_gn", (49, 4, 16)),
        ("resnetv2_50d_gn", (51, 0, 0)),
        ("poolformer_s12", (0, 25, 0)),
        ("efficientnet_b0_gn", (33, 16, 9)),
    ],
)
def test_timm(name, counts):
    model = randomize(third_party("timm").create_model(name)).eval()
    fused, plain, beside = check_third_party(model, image(1, 3, 64, 64))
    assert (len(fused), len(plain), len(beside)) == counts
    assert set(beside.values()) <= {("residual",)}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision(name):
    third_party("timm")  # which mends it
    models = third_party("torchvision.models")
    norm = lambda channels: nn.GroupNorm(8, channels)
    model = randomize(getattr(models, name)(norm_layer=norm, num_classes=3))
    fused, _, beside = check_third_party(model.eval(), image(1, 3, 32, 32))
    assert beside and beside.keys() < fused
    assert set(beside.values()) == {("residual",)}
