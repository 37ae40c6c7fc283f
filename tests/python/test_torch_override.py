"""torch's own group normalization with the engine beneath it (groupnorm.torch.enable): numbers.

The oracle is torch in float64 by its own kernels, or the same engine by the path of
groupnorm.torch.functional, whose bits these must be.
"""

import copy
import itertools
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch", minversion="2.10")

from torch import nn
from torch.nn import functional

import groupnorm.torch as gt
from groupnorm import _core
from groupnorm.torch import functional as ours

EPS32 = 2.0**-23
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(6, 8), (3, 8, 11), (2, 8, 5, 7), (2, 8, 3, 4, 5)]
aten = torch.ops.aten


@pytest.fixture(autouse=True)
def kernels():
    """Each test begins with torch's kernels and leaves them so."""
    assert not gt.enabled()
    yield
    gt.disable()


def make(shape, dtype=torch.float32, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (mean + torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def channels_last(x):
    """x with the strides of N, spatial..., C: torch's own, where it has them."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = {"channels_first": lambda x: x, "channels_last": channels_last}


@contextmanager
def ran(forward=None, backward=None, left=0):
    """Enabled, and so many calls were ours or left to torch; None: some forward, any backward."""
    before = _core.torch_calls()
    with gt.override():
        yield
    counts = [b - a for a, b in zip(before, _core.torch_calls(), strict=True)]
    expected = [
        c if e is None else e for c, e in zip(counts, (forward, backward, left), strict=True)
    ]
    assert counts == expected
    assert forward is not None or counts[0] > 0


def leaves_of(*tensors):
    return [
        None if t is None else t.clone(memory_format=torch.preserve_format).requires_grad_()
        for t in tensors
    ]


def differentiated(function, dy, x, weight, bias, *args):
    """y, and the gradients of what is there."""
    leaves = leaves_of(x, weight, bias)
    y = function(leaves[0], *args[:1], *leaves[1:], *args[1:])
    there = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad(y, there, dy)]


def assert_same_bits(found, expected):
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype
        assert f.stride() == e.stride()
        assert torch.equal(f, e), (f.double() - e.double()).abs().max()


@pytest.mark.parametrize("mean", [0.0, 1e3, 1e4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_bits_are_those_of_groupnorm_torch(dtype, shape, layout, mean):
    x, dy = (LAYOUTS[layout](make(shape, dtype, seed, m)) for seed, m in ((0, mean), (1, 0.0)))
    for kind in {dtype, torch.float32 if dtype.itemsize == 2 else dtype}:
        weight, bias = make(8, kind, 2), make(8, kind, 3)
        for params in ((weight, bias), (weight, None), (None, None)):
            expected = differentiated(ours.group_norm, dy, x, *params, 4)
            with ran(forward=1, backward=1):
                found = differentiated(functional.group_norm, dy, x, *params, 4)
            assert_same_bits(found, expected)


@pytest.mark.parametrize("mean", [1e3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_keep_their_digits_at_a_large_mean(layout, dtype, mean):
    """What torch's statistics in the dtype of the parameters lose: 2e-4 of dgamma at 1e4."""
    x, dy = (
        LAYOUTS[layout](make((4, 32, 20, 20), dtype, seed, m)) for seed, m in ((0, mean), (1, 0.0))
    )
    weight, bias = make(32, seed=2), make(32, seed=3)
    doubles = [t.double() for t in (dy, x, weight, bias)]
    exact = differentiated(functional.group_norm, *doubles, 8)
    with ran(forward=1, backward=1):
        found = differentiated(functional.group_norm, dy, x, weight, bias, 8)
    # dgamma and dbeta are sums over the examples and positions: an error is one of their terms.
    terms = (dy.double() * exact[0], dy.double())
    for f, e, t in zip(found[2:], exact[2:], terms, strict=True):
        scale = t.abs().sum((0, 2, 3)).max()
        assert (f.double() - e).abs().max() <= 1e-7 * scale, mean
    if dtype == torch.float32:
        assert (found[1].double() - exact[1]).abs().max() <= 4 * EPS32 * exact[1].abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias_alone", [True, False])
def test_parameters_one_without_the_other(bias_alone, dtype):
    """torch's own backward refuses a bias without a weight: "tensor does not have a device"."""
    x, dy = make((3, 8, 11), dtype), make((3, 8, 11), dtype, seed=1)
    params = (None, make(8, dtype, 2)) if bias_alone else (make(8, dtype, 2), None)
    weight, bias = (torch.full((8,), 1 - i) if p is None else p for i, p in enumerate(params))
    doubles = [t.double() for t in (dy, x, weight, bias)]
    exact = differentiated(functional.group_norm, *doubles, 4)
    del exact[2 if bias_alone else 3]
    with ran(forward=1, backward=1):
        found = differentiated(functional.group_norm, dy, x, *params, 4)
    for f, e in zip(found, exact, strict=True):
        step = torch.finfo(dtype).eps * e.abs().max() if dtype.itemsize == 2 else 0
        assert (f.double() - e).abs().max() <= 64 * EPS32 + step


@pytest.mark.parametrize("mask", list(itertools.product((False, True), repeat=3)), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mask_of_frozen_inputs(layout, mask):
    x, dy = (LAYOUTS[layout](make((2, 8, 5, 7), seed=seed)) for seed in (0, 1))
    tensors = x, make(8, seed=2), make(8, seed=3)
    expected = differentiated(ours.group_norm, dy, *tensors, 4)[1:]
    leaves = leaves_of(*tensors)
    for leaf, asked in zip(leaves, mask, strict=True):
        leaf.requires_grad_(asked)
    with ran(forward=1, backward=int(any(mask))):
        y = functional.group_norm(leaves[0], 4, *leaves[1:])
        assert y.requires_grad == any(mask)
        if any(mask):
            assert type(y.grad_fn).__name__ == "NativeGroupNormBackward0"
            y.backward(dy)
    for leaf, asked, gradient in zip(leaves, mask, expected, strict=True):
        assert (leaf.grad is not None) == asked
        if asked:
            assert torch.equal(leaf.grad, gradient)


def strided(shape):
    """Views of [2, 8, 6, 4] or the like that lie in no layout, or in both."""
    n, c, h, w = shape
    wide = make((n, c, h, 2 * w))
    yield wide[..., ::2]
    yield wide.flip(0)[..., :w]
    yield make((n, c, w, h)).transpose(2, 3)
    yield make((c, n, h, w)).transpose(0, 1)
    yield make((1, c, h, w)).expand(n, c, h, w)
    yield make((n, c, 1, 1)).expand(n, c, h, w)
    yield channels_last(make((n, c + 2, h, w)))[:, :c]
    yield make((n, c, 1, 1)).contiguous(memory_format=torch.channels_last)
    yield make((n, 1, h, w)).contiguous(memory_format=torch.channels_last)
    yield make((1, c, 1, w)).contiguous(memory_format=torch.channels_last)
    yield torch.as_strided(make(n * c * h * w), (n, c, 1, 1), (c, 1, 777, 888))
    yield torch.as_strided(make(n * c * h * w), (1, c, h, w), (0, h * w, w, 1))


def native_y(x, groups, weight, bias):
    """As torch.nn.functional.group_norm, which refuses one value to a group."""
    n, c = x.shape[:2]
    return aten.native_group_norm(x, weight, bias, n, c, x[0, 0].numel(), groups, 1e-5)[0]


def test_results_lie_where_those_of_torch_do():
    taken = 0
    shapes = [(2, 8, 6, 4), (1, 8, 6, 4), (2, 1, 3, 5), (3, 4, 1, 1), (1, 1, 4, 1)]
    for shape in shapes:
        for i, x in enumerate(strided(shape)):
            groups = min(2, x.shape[1])
            dy = make(tuple(x.shape), seed=1)
            for y_like in (dy, channels_last(dy), dy[:1].expand(dy.shape)):
                case = f"{shape} view {i} {x.stride()} dy {y_like.stride()}"
                weight = make(x.shape[1], seed=2)
                try:
                    expected = differentiated(native_y, y_like, x, weight, None, groups)
                except RuntimeError:  # torch does not take what its memory format is ambiguous of
                    continue
                with ran(forward=1, backward=1):
                    found = differentiated(native_y, y_like, x, weight, None, groups)
                taken += 1
                doubles = (t.double().contiguous() for t in (y_like, x, weight))
                exact = differentiated(native_y, *doubles, None, groups)
                for f, t, e in zip(found, expected, exact, strict=True):
                    # That of an axis of size 1 says nothing, and differs by torch's version.
                    longer = [i for i, size in enumerate(t.shape) if size > 1]
                    assert [f.stride(i) for i in longer] == [t.stride(i) for i in longer], case
                    scale = e.abs().max().clamp(min=1)
                    assert (f - e).abs().max() <= 64 * EPS32 * scale, case
    assert taken > 100


def test_channels_last_in_three_dimensions():
    x = make((2, 8, 3, 4, 5)).contiguous(memory_format=torch.channels_last_3d)
    with ran(forward=1, backward=1):
        y, dx = differentiated(functional.group_norm, torch.ones_like(x), x, None, None, 4)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    assert dx.is_contiguous(memory_format=torch.channels_last_3d)


def test_statistics_are_those_of_torch_in_dtype_and_shape():
    for dtype, params, expected in (
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float16, None, torch.float16),
        (torch.float64, torch.float64, torch.float64),
    ):
        x = make((3, 8, 11), dtype)
        weight = None if params is None else make(8, params, 1)
        args = (x, weight, None, 3, 8, 11, 4, 1e-5)
        torchs = aten.native_group_norm(*args)
        with ran(forward=1, backward=0):
            found = aten.native_group_norm(*args)
        for f, t in zip(found, torchs, strict=True):
            assert (f.dtype, f.shape, f.stride()) == (t.dtype, t.shape, t.stride())
            assert f.storage_offset() == 0
        assert found[1].dtype == expected
        blocks = x.double().reshape(3, 4, -1)
        mean, var = blocks.mean(-1), blocks.var(-1, correction=0)
        # Sums of numbers near 1 in float32 at least, rounded once.
        steps = max(torch.finfo(expected).eps, EPS32 if dtype != torch.float64 else 0)
        for f, e in zip(found[1:], (mean, (var + 1e-5).rsqrt()), strict=True):
            assert ((f.double() - e).abs() <= steps * e.abs().clamp(min=1)).all()


# ---- what goes on to torch's kernels, and its words


def both(call):
    """What a call gives or raises by torch's kernels, and with ours enabled."""

    def outcome():
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
            return error

    expected = outcome()
    with gt.override():
        found = outcome()
    return found, expected


def native(x, weight=None, bias=None, groups=2, eps=1e-5, sizes=None):
    n, c = x.shape[:2]
    sizes = sizes or (n, c, x[0, 0].numel() if n * c else 0)
    return aten.native_group_norm(x, weight, bias, *sizes, groups, eps)


REFUSED = {
    "bf16 with a weight of f32 and a bias of bf16": lambda: native(
        make((2, 6, 5), torch.bfloat16), make(6), make(6, torch.bfloat16)
    ),
    "bf16 with a weight of bf16 and a bias of f32": lambda: native(
        make((2, 6, 5), torch.bfloat16), make(6, torch.bfloat16), make(6)
    ),
    "f32 with a weight of f64": lambda: native(make((2, 6, 5)), make(6, torch.float64)),
    "f32 with a weight of bf16": lambda: native(make((2, 6, 5)), make(6, torch.bfloat16)),
    "a weight that is too short": lambda: native(make((2, 6, 5)), make(5)),
    "a weight of two axes": lambda: native(make((2, 6, 5)), make((6, 1))),
    "a bias that is too long": lambda: native(make((2, 6, 5)), make(6), make(7)),
    "no groups": lambda: native(make((2, 6, 5)), groups=0),
    "groups below zero": lambda: native(make((2, 6, 5)), groups=-1),
    "groups that do not divide": lambda: native(make((2, 6, 5)), groups=4),
    "integers": lambda: native(torch.ones((2, 6, 5), dtype=torch.int64)),
    "complex numbers": lambda: native(torch.ones((2, 6, 5), dtype=torch.complex64)),
    "other sizes": lambda: native(make((2, 6, 5)), sizes=(2, 6, 7)),
    "an eps below zero": lambda: native(make((2, 6, 5)), eps=-0.5),
    "an eps that is no number": lambda: native(make((2, 6, 5)), eps=float("nan")),
    "an infinite eps": lambda: native(make((2, 6, 5)), eps=float("inf")),
    "an empty batch": lambda: native(make((0, 6, 5)), make(6), make(6)),
    "no positions": lambda: native(make((2, 6, 0)), make(6), make(6)),
    "no channels": lambda: native(make((2, 0, 5)), groups=1),
    "memory that is not aligned": lambda: native(
        torch.frombuffer(bytearray(1 + 4 * 60), dtype=torch.float32, offset=1).view(2, 6, 5)
    ),
    "the same numbers in another shape": lambda: native(make((2, 30)), sizes=(2, 6, 5)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_refuses_goes_to_torch(name):
    left = _core.torch_calls()[2]
    found, expected = both(REFUSED[name])
    assert _core.torch_calls()[2] == left + 1
    if isinstance(expected, Exception):
        assert isinstance(found, RuntimeError)
        assert isinstance(expected, RuntimeError)  # or of a class below it, which is lost
        assert str(found) == str(expected)
        return
    for f, e in zip(found, expected, strict=True):
        assert f.stride() == e.stride()
        torch.testing.assert_close(f, e, rtol=0, atol=0, equal_nan=True)


def native_backward(dy, x, mean=None, rstd=None, weight=None, mask=(True, True, True)):
    n, c = x.shape[:2]
    mean = torch.zeros((n, 2)) if mean is None else mean
    rstd = torch.ones((n, 2)) if rstd is None else rstd
    s = x[0, 0].numel() if n * c else 0
    return aten.native_group_norm_backward(dy, x, mean, rstd, weight, n, c, s, 2, list(mask))


REFUSED_BACKWARD = {
    "dy of another dtype": lambda: native_backward(make((2, 6, 5), torch.float64), make((2, 6, 5))),
    "dy of another shape": lambda: native_backward(make((2, 6, 4)), make((2, 6, 5))),
    "a mean that is too long": lambda: native_backward(
        make((2, 6, 5)), make((2, 6, 5)), mean=make((2, 3))
    ),
    "integers": lambda: native_backward(*[torch.ones((2, 6, 5), dtype=torch.int64)] * 2),
    "an empty batch": lambda: native_backward(make((0, 6, 5)), make((0, 6, 5)), weight=make(6)),
    "no positions, not all asked for": lambda: native_backward(
        make((2, 6, 0)), make((2, 6, 0)), weight=make(6), mask=(False, True, False)
    ),
}


@pytest.mark.parametrize("name", REFUSED_BACKWARD)
def test_what_backward_refuses_goes_to_torch(name):
    left = _core.torch_calls()[2]
    found, expected = both(REFUSED_BACKWARD[name])
    assert _core.torch_calls()[2] == left + 1
    if isinstance(expected, Exception):
        assert isinstance(found, RuntimeError)
        assert str(found) == str(expected)
        return
    for f, e in zip(found, expected, strict=True):
        assert (f is None) == (e is None)
        assert f is None or torch.equal(f, e)


def test_statistics_that_somebody_gives_are_used_as_they_are():
    x, dy, weight = make((2, 6, 5)), make((2, 6, 5), seed=1), make(6, seed=2)
    mean, rstd = make((2, 2), seed=3), make((2, 2), seed=4).abs() + 0.5
    for given in ((mean, rstd), (mean.t().contiguous().t(), rstd), (mean.double(), rstd.double())):
        # torch reads a mean as if it were contiguous.
        doubles = [t.double().contiguous() for t in (dy, x, *given, weight)]
        expected = native_backward(*doubles)
        with ran(forward=0, backward=1):
            found = native_backward(dy, x, *given, weight)
        for f, e in zip(found, expected, strict=True):
            torch.testing.assert_close(f.double(), e, rtol=0, atol=128 * EPS32)


def test_a_changed_mean_is_not_taken_for_the_one_of_forward():
    x, dy, weight = make((2, 6, 5)), make((2, 6, 5), seed=1), make(6, seed=2)
    with gt.override():
        _, mean, rstd = native(x)
        mean += 0.25
        rstd *= 0.5
        found = native_backward(dy, x, mean, rstd, weight)
    expected = native_backward(*(t.double() for t in (dy, x, mean, rstd, weight)))
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f.double(), e, rtol=0, atol=64 * EPS32)


# ---- torch's own samples


def op_infos():
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    return [info for info in methods.op_db if "group_norm" in info.name]


def doubled(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def of_sample(op, sample):
    y = op(sample.input, *sample.args, **sample.kwargs)
    tensors = [sample.input, *sample.args, *sample.kwargs.values()]
    leaves = [t for t in tensors if isinstance(t, torch.Tensor) and t.requires_grad]
    y = y[0] if isinstance(y, tuple) else y
    return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_samples_of_torch(dtype):
    for info in op_infos():
        for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
            left = _core.torch_calls()[2]
            with gt.override():
                found = of_sample(info.op, sample)
            if _core.torch_calls()[2] > left:  # a negative eps, and statistics of 16 bits
                found, expected = found[:1], of_sample(info.op, sample)[:1]
            else:
                expected = of_sample(info.op, sample.transform(doubled))
            for f, e in zip(found, expected, strict=True):
                assert (f is None) == (e is None)
                if f is not None:
                    torch.testing.assert_close(f, e.to(f.dtype), equal_nan=True)
    assert op_infos()


def test_the_refusals_of_torch():
    for info in op_infos():
        if info.error_inputs_func is None:
            continue
        for error in info.error_inputs("cpu"):
            sample = error.sample_input
            with gt.override(), pytest.raises(error.error_type, match=error.error_regex):
                info.op(sample.input, *sample.args, **sample.kwargs)


def test_the_module_samples_of_torch():
    modules = pytest.importorskip("torch.testing._internal.common_modules")
    [info] = [info for info in modules.module_db if info.module_cls is nn.GroupNorm]
    for training in (False, True):
        for sample in info.module_inputs_func(info, "cpu", torch.float32, True, training):
            module = nn.GroupNorm(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            module.train(training)
            call = sample.forward_input
            exact = copy.deepcopy(module).double()(*map(doubled, call.args), **call.kwargs)
            with ran(forward=1, backward=0):
                y = module(*call.args, **call.kwargs)
            torch.testing.assert_close(y.double(), exact, rtol=0, atol=64 * EPS32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck_and_gradgradcheck(layout):
    """Without forward-mode AD in channels_last: torch's formula takes a view there, and fails."""
    x = LAYOUTS[layout](make((2, 6, 4, 2), torch.float64, seed=11))
    leaves = leaves_of(x, make(6, torch.float64, 1), make(6, torch.float64, 2))
    with ran():
        for inputs in (leaves, leaves[:1], [*leaves[:2], None]):

            def call(x, weight=None, bias=None):
                return functional.group_norm(x, 3, weight, bias)

            given = [t for t in inputs if t is not None]
            assert torch.autograd.gradcheck(
                call, given, check_forward_ad=layout == "channels_first"
            )
            assert torch.autograd.gradgradcheck(call, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(dtype, requires_grad):
    for x in (
        make((2, 8), dtype),
        channels_last(make((2, 8, 5, 7), dtype)),
        make((0, 8, 5), dtype),
        make((2, 8, 6, 5), dtype)[:, :, ::2],
    ):
        for affine in (False, True):
            weight, bias = (
                make(8, dtype, seed).requires_grad_(requires_grad) if affine else None
                for seed in (1, 2)
            )
            n, c = x.shape[:2]
            sizes = (n, c, x.numel() // (n * c) if n else 5)
            leaf = x.detach().requires_grad_(requires_grad)
            with gt.override():
                torch.library.opcheck(
                    aten.native_group_norm.default, (leaf, weight, bias, *sizes, 4, 1e-5)
                )
