"""groupnorm.jax: results, gradients of every order, transforms, what is refused."""

import functools
import subprocess
import sys
import threading
from typing import Any

import jax_norms
import ml_dtypes
import numpy
import pytest
from jax_norms import (
    ACTIVATIONS,
    EPS32,
    assert_close,
    assert_near,
    bits,
    double,
    exact,
    normal,
    plain,
)

import groupnorm
import groupnorm.jax
from groupnorm.jax import _formula

jax, jnp = jax_norms.jax, jax_norms.jnp
norm: Any = groupnorm.jax  # also for calls of the wrong types

DTYPES = ["float32", "float16", "bfloat16", "float64"]
SHAPES = [(2, 8), (3, 5, 8), (2, 6, 5, 8), (1, 4, 3, 5, 8), (2, 40, 40, 16)]
X, DY = normal((2, 6, 5, 8), seed=1, mean=2), normal((2, 6, 5, 8), seed=2)
SCALE, BIAS = normal((8,), seed=3, mean=1), normal((8,), seed=4)
ONE_STEP = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture(autouse=True)
def _x64(request):
    """float64 where a test has a dtype."""
    callspec = getattr(request.node, "callspec", None)
    with jax.enable_x64(callspec is not None and callspec.params.get("dtype") == "float64"):
        yield


def layout_of(axis):
    return "channels_last" if axis == -1 else "channels_first"


def channels_at(x, axis):
    return numpy.ascontiguousarray(numpy.moveaxis(x, -1, axis))


# ---- Forward


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_those_of_numpy_bit_by_bit(dtype, axis, activation):
    for shape in SHAPES:
        x = channels_at(normal(shape, dtype, seed=5, mean=3), axis)
        scale, bias = (normal((shape[-1],), dtype, seed=seed) for seed in (6, 7))
        y = norm.group_norm(x, 4, scale, bias, epsilon=1e-5, axis=axis, activation=activation)
        layout = layout_of(axis)
        wanted = groupnorm.group_norm(x, 4, scale, bias, 1e-5, layout=layout, activation=activation)
        assert y.dtype == x.dtype and y.shape == shape[:1] + x.shape[1:]
        assert bits(y) == bits(wanted), shape
        unit = exact(
            "group", x.astype("float64"), scale.astype("float64"), bias.astype("float64"),
            groups=4, layout=layout, activation=activation,
        )  # fmt: skip
        assert_near(numpy.asarray(y), unit, activation, abs(unit.mean * unit.rstd).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("params", ["neither", "scale", "bias", "of each example", "one of each"])
def test_params(dtype, params):
    x = normal((3, 7, 8), dtype, seed=8)
    scale, bias = normal((8,), seed=9, mean=1), normal((8,), seed=10)
    scales, biases = normal((3, 8), seed=9, mean=1), normal((3, 8), seed=10)
    scale, bias = {
        "neither": (None, None),
        "scale": (scale, None),
        "bias": (None, bias),
        "of each example": (scales, biases),
        "one of each": (scales, bias),
    }[params]
    wide = "float64" if dtype == "float64" else "float32"
    y = norm.group_norm(x, 2, scale, bias)
    full = [None if p is None else p.astype(wide) for p in (scale, bias)]
    if params == "one of each":
        full[1] = numpy.broadcast_to(full[1], (3, 8))
    wanted = groupnorm.group_norm(x, 2, *full, 1e-6, layout="channels_last")
    assert bits(y) == bits(wanted)


@pytest.mark.parametrize("axis", [2, -3, -2])
def test_channels_at_any_axis(axis):
    x = channels_at(normal((2, 6, 5, 8), seed=11), axis)
    y = norm.group_norm(x, 4, SCALE, BIAS, axis=axis)
    wanted = norm.group_norm(numpy.moveaxis(x, axis, 1), 4, SCALE, BIAS, axis=1)
    assert bits(y) == bits(jnp.moveaxis(wanted, 1, axis))


def test_activations_are_those_of_the_engine():
    assert tuple(_formula.ACTIVATIONS) == tuple(groupnorm.ACTIVATIONS)


def test_instance_norm_is_a_group_each():
    assert bits(norm.instance_norm(X, SCALE, BIAS)) == bits(norm.group_norm(X, 8, SCALE, BIAS))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms_of_axes(name):
    ours, by_numpy = getattr(norm, name), getattr(groupnorm, name)
    assert bits(ours(X, SCALE, BIAS)) == bits(by_numpy(X, 8, SCALE, BIAS, 1e-6))
    assert bits(ours(X[0, 0, 0])) == bits(by_numpy(X[0, 0, 0], 8, eps=1e-6))
    scale, bias = normal((5, 8), seed=12), normal((5, 8), seed=13)
    for axis in ((-2, -1), (3, 2), [2, -1]):
        y = ours(X, scale, bias, axis=axis, epsilon=1e-3, activation="silu")
        wanted = by_numpy(X, (5, 8), scale, bias, 1e-3, activation="silu")
        assert bits(y) == bits(wanted), axis
    y = ours(X, SCALE[:6], axis=1)
    wanted = by_numpy(numpy.moveaxis(X, 1, -1), 6, SCALE[:6], eps=1e-6)
    assert bits(y) == bits(numpy.moveaxis(wanted, -1, 1))


def test_a_constant_block_is_its_bias():
    x = numpy.full((2, 5, 8), 3.5, "float32")
    y = norm.group_norm(x, 2, SCALE, BIAS, epsilon=0.0)
    assert (numpy.asarray(y) == BIAS).all()


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (2, 5, 0)])
def test_nothing_in_nothing_out(shape):
    groups = 4 if shape[-1] else 1
    params = [jnp.ones(shape[-1]), jnp.ones(shape[-1])]

    def loss(x, *params):
        return norm.group_norm(x, groups, *params).sum()

    assert norm.group_norm(jnp.ones(shape), groups, *params).shape == shape
    dx, dscale, dbias = jax.grad(loss, (0, 1, 2))(jnp.ones(shape), *params)
    assert dx.shape == shape and not dscale.any() and not dbias.any()
    assert norm.layer_norm(jnp.ones(shape)).shape == shape
    assert norm.instance_norm(jnp.ones(shape)).shape == shape


# ---- Gradients


def gradients(function, *args, dy=DY):
    return jax.vjp(function, *args)[1](jnp.asarray(dy, args[0].dtype))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(dtype, axis, activation):
    x, dy = (channels_at(value, axis).astype(dtype) for value in (X, DY))

    def ours(x, scale, bias):
        return norm.group_norm(x, 4, scale, bias, axis=axis, activation=activation)

    def oracle(x, scale, bias, dy):
        def of(*args):
            return plain(*args[:1], 4, *args[1:], axis=axis, activation=activation)

        return jax.vjp(of, x, scale, bias)[1](dy)

    found = gradients(ours, jnp.asarray(x), SCALE, BIAS, dy=dy)
    wanted = double(oracle, x, SCALE, BIAS, dy)
    assert [each.dtype.name for each in found] == [dtype, "float32", "float32"]
    if dtype in ONE_STEP:
        assert_close(found[0], wanted[0], 1, ONE_STEP[dtype])
        assert_close(found[1:], wanted[1:])
    else:
        # float64 is rounded to the float32 of scale and bias, at the end.
        assert_close(found[0], wanted[0], 16, EPS32 if dtype == "float32" else 2.0**-52)
        assert_close(found[1:], wanted[1:])


def test_gradients_are_those_of_numpy_bit_by_bit():
    found = gradients(
        lambda *a: norm.group_norm(a[0], 4, *a[1:], activation="silu"), X, SCALE, BIAS
    )
    _, mean, rstd = groupnorm.group_norm(
        X, 4, SCALE, BIAS, 1e-6, layout="channels_last", return_statistics=True
    )
    wanted = groupnorm.group_norm_backward(
        *(DY, X, 4, SCALE, mean, rstd), bias=BIAS, layout="channels_last", activation="silu"
    )
    assert list(map(bits, found)) == list(map(bits, wanted))


@pytest.mark.parametrize("argnums", [0, 1, 2, (0, 2), (1, 2)])
def test_gradients_of_some(argnums):
    def loss(f, x, scale, bias, dy=DY):
        return (f(x, 4, scale, bias) * dy).sum()

    found = jax.grad(functools.partial(loss, norm.group_norm), argnums)(X, SCALE, BIAS)
    wanted = double(jax.grad(functools.partial(loss, plain), argnums), X, SCALE, BIAS)
    assert_close(found, wanted)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "instance_norm"])
def test_gradients_of_the_others(name):
    def oracle(x, scale, bias):
        if name == "instance_norm":
            return plain(x, 8, scale, bias)
        centred = x - x.mean(-1, keepdims=True) if name == "layer_norm" else x
        return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias

    found = gradients(getattr(norm, name), X, SCALE, BIAS)
    assert_close(found, double(lambda *a: jax.vjp(oracle, *a[:3])[1](a[3]), X, SCALE, BIAS, DY))


def test_gradients_of_16_bit_params():
    params = [jnp.asarray(p, jnp.bfloat16) for p in (SCALE, BIAS)]
    x = jnp.asarray(X, jnp.bfloat16)
    found = gradients(lambda *a: norm.group_norm(a[0], 4, *a[1:]), x, *params)
    assert {each.dtype.name for each in found} == {"bfloat16"}
    wanted = double(lambda *a: jax.vjp(lambda *b: plain(b[0], 4, *b[1:]), *a[:3])[1](a[3]), x, *params, DY.astype(ml_dtypes.bfloat16))  # fmt: skip
    assert_close(found, wanted, 1, ONE_STEP["bfloat16"])


# ---- Forward mode and higher orders


def by(function):
    return lambda x, scale, bias: function(x, 4, scale, bias, activation="silu")


PRIMALS = (X, SCALE, BIAS)
TANGENTS = (DY, normal((8,), seed=14), normal((8,), seed=15))


@pytest.mark.parametrize("moving", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_forward_mode(moving):
    def run(f, *args):
        primals, tangents = args[:3], args[3:]

        def of(*some):
            rest = dict(zip(moving, some, strict=True))
            return f(*(rest.get(i, p) for i, p in enumerate(primals)))

        return jax.jvp(of, [primals[i] for i in moving], [tangents[i] for i in moving])

    found = run(by(norm.group_norm), *map(jnp.asarray, (*PRIMALS, *TANGENTS)))
    assert_close(found, double(functools.partial(run, by(plain)), *PRIMALS, *TANGENTS), 64)
    assert bits(found[0]) == bits(by(norm.group_norm)(*PRIMALS))


SECOND = {
    "grad of grad": lambda loss: jax.grad(
        lambda *a: sum(jnp.vdot(g, g) for g in jax.grad(loss, (0, 1, 2))(*a)), (0, 1, 2)
    ),
    "forward over reverse": lambda loss: (
        lambda *a: jax.jvp(jax.grad(loss, (0, 1, 2)), a, TANGENTS_LIKE(a))
    ),
    "reverse over forward": lambda loss: jax.grad(
        lambda *a: jax.jvp(loss, a, TANGENTS_LIKE(a))[1], (0, 1, 2)
    ),
    "forward over forward": lambda loss: (
        lambda *a: jax.jvp(lambda *b: jax.jvp(loss, b, TANGENTS_LIKE(b))[1], a, TANGENTS_LIKE(a))
    ),
    "hessian": lambda loss: jax.hessian(loss, 1),
    "third": lambda loss: jax.grad(jax.grad(jax.grad(lambda t, *a: loss(a[0] * t, *a[1:])))),
}


def TANGENTS_LIKE(args):
    return tuple(jnp.asarray(t, a.dtype) for t, a in zip(TANGENTS, args, strict=True))


@pytest.mark.parametrize("order", SECOND)
def test_higher_orders(order):
    def run(f, x, scale, bias):
        weights = jnp.asarray(DY, x.dtype)
        transformed = SECOND[order](lambda *a: (by(f)(*a) * weights).sum())
        args = (jnp.asarray(1.5, x.dtype), x, scale, bias) if order == "third" else (x, scale, bias)
        return jax.jit(transformed)(*args)

    found = run(norm.group_norm, *map(jnp.asarray, PRIMALS))
    assert_close(found, double(functools.partial(run, plain), *PRIMALS), 256)


@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd], ids=["rev", "fwd"])
def test_jacobians(jacobian):
    x = X[:1, :2, :2]

    def run(f, *args):
        return jax.jit(jacobian(by(f), (0, 1, 2)))(*args)

    found = run(norm.group_norm, jnp.asarray(x), SCALE, BIAS)
    assert_close(found, double(functools.partial(run, plain), x, SCALE, BIAS), 64)


# ---- Transforms


BATCHED = {
    "x": (0, None, None),
    "x at its end": (-1, None, None),
    "all": (0, 0, 0),
    "scale": (None, 0, None),
    "bias at its end": (0, None, 1),
}


@pytest.mark.parametrize("axes", BATCHED.values(), ids=BATCHED)
@pytest.mark.parametrize("of_each", [False, True], ids=["shared", "of each example"])
def test_vmap(axes, of_each):
    params = [normal((2, 8) if of_each else (8,), seed=seed) for seed in (16, 17)]
    values = (X, *params)
    args = []
    for seed, (value, axis) in enumerate(zip(values, axes, strict=True)):
        many = normal((3, *value.shape), seed=20 + seed, mean=1)
        args.append(jnp.asarray(value if axis is None else numpy.moveaxis(many, 0, axis)))
    dy = jnp.asarray(normal((3, *X.shape), seed=30))

    def both(x, scale, bias, dy):
        y, pull = jax.vjp(by(norm.group_norm), x, scale, bias)
        return y, pull(dy)

    y, found = jax.vmap(both, (*axes, 0))(*args, dy)
    for i in range(3):
        each = [
            arg if axis is None else jnp.take(arg, i, axis)
            for arg, axis in zip(args, axes, strict=True)
        ]
        alone, wanted = both(*each, dy[i])
        assert bits(y[i]) == bits(alone)
        assert bits(found[0][i]) == bits(wanted[0])
        # Sums of examples, in another order.
        assert_close([g[i] for g in found[1:]], [numpy.asarray(w, "float64") for w in wanted[1:]])

    # The same, differentiated from outside.
    def loss(*args):
        return (jax.vmap(by(norm.group_norm), axes)(*args) * dy).sum()

    for g, axis, each in zip(jax.grad(loss, (0, 1, 2))(*args), axes, found, strict=True):
        summed = each.sum(0) if axis is None else jnp.moveaxis(each, 0, axis)
        assert_close(g, numpy.asarray(summed, "float64"), 64)


def test_vmap_of_vmap():
    x = jnp.asarray(normal((3, 2, *X.shape), seed=40))
    y = jax.vmap(jax.vmap(lambda each: norm.group_norm(each, 4, SCALE, BIAS)))(x)
    assert bits(y) == bits(norm.group_norm(x.reshape(-1, *X.shape[1:]), 4, SCALE, BIAS))


def test_vmap_is_one_call():
    text = (
        jax.jit(jax.vmap(lambda x: norm.group_norm(x, 4))).lower(jnp.ones((9, *X.shape))).as_text()
    )
    assert text.count("@groupnorm_forward") == 1 and "while" not in text


def test_reverse_mode_calls_the_engine_twice():
    def text(f):
        return jax.jit(f).lower(X, SCALE, BIAS).as_text()

    def loss(*args):
        return by(norm.group_norm)(*args).sum()

    assert text(loss).count("@groupnorm_forward") == 1
    both = text(jax.grad(loss, (0, 1, 2)))
    assert both.count("@groupnorm_forward") == both.count("@groupnorm_backward") == 1
    batched = (
        jax.jit(jax.vmap(jax.grad(loss), (0, None, None))).lower(X[None], SCALE, BIAS).as_text()
    )
    assert batched.count("@groupnorm_backward") == 1
    assert jax.jit(jax.grad(loss)).lower(X, SCALE, BIAS).as_text().count("@groupnorm_forward") == 1


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_other_devices_take_the_formula(platform):
    def both(x):
        return jax.value_and_grad(lambda x: norm.group_norm(x, 4, SCALE, BIAS).sum())(x)

    assert "@groupnorm" in jax.jit(both).trace(X).lower().as_text()
    assert (
        "@groupnorm" not in jax.jit(both).trace(X).lower(lowering_platforms=(platform,)).as_text()
    )


def test_checkpoint_and_scan():
    def block(carry, scale):
        return norm.group_norm(carry * 1.5, 4, scale, BIAS, activation="gelu"), carry.sum()

    def by_hand(x, scales):
        for scale in scales:
            x = plain(x * 1.5, 4, scale, jnp.asarray(BIAS, x.dtype), activation="gelu")
        return (x**2).sum()

    def loss(body, x, scales):
        return (jax.lax.scan(body, x, scales)[0] ** 2).sum()

    scales = jnp.asarray(normal((3, 8), seed=50, mean=1))
    wanted = double(jax.grad(by_hand, (0, 1)), X, scales)
    for body in (block, jax.checkpoint(block)):
        found = jax.jit(jax.grad(functools.partial(loss, body), (0, 1)))(jnp.asarray(X), scales)
        assert_close(found, wanted, 256)


def test_without_jit():
    def loss(x):
        return (norm.group_norm(x, 4, SCALE, BIAS) ** 2).sum()

    wanted = jax.grad(loss)(X)
    with jax.disable_jit():
        assert bits(jax.grad(loss)(X)) == bits(wanted)


def test_linear_maps():
    y, push = jax.linearize(by(norm.group_norm), *map(jnp.asarray, PRIMALS))
    assert_close(push(*TANGENTS), numpy.asarray(jax.jvp(by(norm.group_norm), PRIMALS, TANGENTS)[1]))
    (pulled,) = jax.linear_transpose(lambda t: push(t, *map(jnp.zeros_like, PRIMALS[1:])), X)(y)
    wanted = jax.vjp(by(norm.group_norm), *PRIMALS)[1](y)[0]
    assert bits(pulled) == bits(wanted)


def exported(function, *args, **options):
    """The function, written down and read again."""
    allowed = [
        jax.export.DisabledSafetyCheck.custom_call(f"groupnorm_{each}")
        for each in ("forward", "backward")
    ]
    found = jax.export.export(jax.jit(function), disabled_checks=allowed, **options)(*args)
    return jax.export.deserialize(found.serialize()).call


@pytest.mark.parametrize("platforms", [["cpu"], ["cpu", "cuda"]])
def test_export(platforms):
    def both(x):
        return jax.value_and_grad(lambda x: (norm.group_norm(x, 4, SCALE) ** 2).sum())(x)

    found = exported(both, X, platforms=platforms)(X)
    assert list(map(bits, found)) == list(map(bits, jax.jit(both)(X)))


def test_export_of_any_size():
    n, h = jax.export.symbolic_shape("n, h")
    symbolic = jax.ShapeDtypeStruct((n, h, 5, 8), jnp.float32)
    for function in (lambda x: norm.group_norm(x, 4, SCALE), lambda x: norm.layer_norm(x, SCALE)):
        call = exported(function, symbolic)
        for x in (X, X[:1, :3]):
            assert bits(call(x)) == bits(function(x))


def test_many_threads_at_once():
    x = jnp.asarray(normal((4, 64, 64, 80), seed=60))  # of the size that huge pages begin at
    compiled = jax.jit(lambda x: jax.value_and_grad(lambda x: norm.group_norm(x, 8).sum())(x))
    wanted = bits(compiled(x)[1])
    wrong = []

    def work():
        for _ in range(20):
            if bits(compiled(x)[1]) != wanted:
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- Several devices

AXES = [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit]
of_both_kinds = pytest.mark.parametrize("kind", AXES, ids=["auto", "explicit"])


ON_BATCH = jax.P("batch")


def spread(array, kind, spec=ON_BATCH):
    """The array over the four devices; of Explicit axes its type says so."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
    return jax.device_put(array, jax.NamedSharding(mesh, spec))


@of_both_kinds
@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("of_each", [False, True], ids=["shared", "of each example"])
def test_sharded_along_the_batch(axis, of_each, kind):
    x = channels_at(normal((8, 6, 5, 8), seed=70), axis)
    dy = channels_at(normal((8, 6, 5, 8), seed=71), axis)
    params = [normal((8, 8) if of_each else (8,), seed=72 + i) for i in range(2)]

    @jax.jit
    def both(x, scale, bias, dy):
        y, pull = jax.vjp(lambda *a: norm.group_norm(a[0], 4, *a[1:], axis=axis), x, scale, bias)
        return y, pull(dy)

    y, wanted = both(x, *params, dy)
    specs = ON_BATCH if of_each else jax.P()
    params = [spread(value, kind, specs) for value in params]
    args = (spread(x, kind), *params, spread(dy, kind))
    text = both.lower(*args).compile().as_text()
    assert "groupnorm_forward" in text and "groupnorm_backward" in text
    assert "all-gather" not in text
    y_spread, found = both(*args)
    assert y_spread.sharding.is_equivalent_to(args[0].sharding, y.ndim)
    assert bits(y_spread) == bits(y)
    assert bits(found[0]) == bits(wanted[0])
    assert_close(found[1:], [numpy.asarray(g, "float64") for g in wanted[1:]])


@of_both_kinds
@pytest.mark.parametrize(
    "spec",
    [jax.P(None, "batch"), jax.P(None, None, "batch"), jax.P(None, None, None, "batch"), jax.P()],
)
@pytest.mark.parametrize("axis", [-1, 1])
def test_sharded_otherwise_is_gathered(spec, axis, kind):
    x = normal((3, 8, 4, 8), seed=73)
    y = jax.jit(lambda x: norm.group_norm(x, 2, axis=axis))(spread(x, kind, spec))
    assert bits(y) == bits(norm.group_norm(x, 2, axis=axis))
    if kind is AXES[1]:
        assert y.sharding.is_equivalent_to(spread(x, kind, spec).sharding, 4)


@of_both_kinds
def test_examples_that_the_devices_do_not_share_evenly(kind):
    x = normal((6, 5, 8), seed=74)

    @jax.jit
    def gradients(x):
        x = jnp.concatenate([x, x])[:6]
        return jax.grad(lambda x, s: (norm.group_norm(x, 2, s) ** 3).sum(), (0, 1))(x, SCALE)

    found, wanted = gradients(spread(x, kind, jax.P())), gradients(x)
    assert bits(found[0]) == bits(wanted[0])
    assert_close(found[1], numpy.asarray(wanted[1], "float64"))


@of_both_kinds
def test_layer_norm_sharded_along_the_batch(kind):
    x, scale = normal((8, 5, 16), seed=74), normal((16,), seed=75)
    compiled = jax.jit(jax.grad(lambda x, s: (norm.layer_norm(x, s) ** 3).sum(), (0, 1)))
    args = spread(x, kind), spread(scale, kind, jax.P())
    found, wanted = compiled(*args), compiled(x, scale)
    assert bits(found[0]) == bits(wanted[0])
    assert_close(found[1], numpy.asarray(wanted[1], "float64"))
    assert "all-gather" not in compiled.lower(*args).compile().as_text()


@of_both_kinds
def test_vmap_of_what_is_sharded(kind):
    x, scale = normal((4, 2, 5, 8), seed=78), normal((4, 8), seed=79)

    def each(x, scale):
        return jax.value_and_grad(lambda *a: (norm.group_norm(a[0], 2, a[1]) ** 2).sum(), (0, 1))(
            x, scale
        )

    many = jax.jit(jax.vmap(each))
    found, wanted = many(spread(x, kind), spread(scale, kind)), many(x, scale)
    assert bits(found[1][0]) == bits(wanted[1][0])
    assert_close(found, jax.tree.map(lambda w: numpy.asarray(w, "float64"), wanted))


@pytest.mark.parametrize("shardy", [True, False])
def test_both_partitioners_and_a_mesh_of_two_axes(shardy):
    x = normal((8, 6, 8), seed=80)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AXES[0],) * 2)
    gradients = jax.jit(jax.grad(lambda *a: (norm.group_norm(a[0], 4, a[1]) ** 3).sum(), (0, 1)))
    wanted = gradients(x, SCALE)
    jax.config.update("jax_use_shardy_partitioner", shardy)
    try:
        for spec in (jax.P(("a", "b")), jax.P("b"), jax.P("a", None, "b")):
            there = jax.device_put(x, jax.NamedSharding(mesh, spec))
            found = gradients(there, SCALE)
            assert bits(found[0]) == bits(wanted[0])
            assert_close(found[1], numpy.asarray(wanted[1], "float64"))
            text = gradients.lower(there, SCALE).compile().as_text()
            assert ("all-gather" in text) == (spec[-1] == "b" and len(spec) == 3)
    finally:
        jax.config.update("jax_use_shardy_partitioner", True)


def test_pmap():
    def loss(x):
        return (norm.group_norm(x, 4, SCALE) ** 2).sum()

    x = normal((4, 2, 5, 8), seed=81)
    assert bits(jax.pmap(jax.grad(loss))(x)) == bits(jax.vmap(jax.grad(loss))(x))


@pytest.mark.parametrize("check", [True, False])
def test_shard_map(check):
    x, dy = normal((8, 6, 8), seed=76), normal((8, 6, 8), seed=77)
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(AXES[0],))

    def local(x, scale, bias):
        return norm.group_norm(x, 4, scale, bias)

    each = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(jax.P("batch"), jax.P(), jax.P()),
        out_specs=jax.P("batch"),
        check_vma=check,
    )
    assert bits(jax.jit(each)(x, SCALE, BIAS)) == bits(local(x, SCALE, BIAS))
    found = jax.jit(jax.grad(lambda *a: (each(*a) * dy).sum(), (0, 1, 2)))(x, SCALE, BIAS)
    wanted = jax.grad(lambda *a: (local(*a) * dy).sum(), (0, 1, 2))(x, SCALE, BIAS)
    assert_close(found, [numpy.asarray(w, "float64") for w in wanted])


# ---- What is refused

REFUSED = {
    "num_groups: must be at least 1 and divide the 8 channels of x; got 3": (
        ValueError, lambda: norm.group_norm(X, 3)),
    "num_groups: must be at least 1 and divide the 8 channels of x; got 0": (
        ValueError, lambda: norm.group_norm(X, 0)),
    "num_groups: must be an integer; got 2.0": (TypeError, lambda: norm.group_norm(X, 2.0)),
    "x: must be [N, ..., C], of rank 2 or more; got shape (8,)": (
        ValueError, lambda: norm.group_norm(X[0, 0, 0], 2)),
    "axis: must be an axis of x, from -4 to 3; got 4": (
        ValueError, lambda: norm.group_norm(X, 2, axis=4)),
    "axis: must not be that of the examples, 0; got -4": (
        ValueError, lambda: norm.group_norm(X, 2, axis=-4)),
    "axis: must be one axis or several different ones; got (3, -1)": (
        ValueError, lambda: norm.layer_norm(X, axis=(3, -1))),
    "axis: must be one axis or several different ones; got ()": (
        ValueError, lambda: norm.rms_norm(X, axis=())),
    "axis: must be an integer; got 1.5": (TypeError, lambda: norm.layer_norm(X, axis=1.5)),
    "scale: must have shape (8,) or (2, 8) for this x; got (4,)": (
        ValueError, lambda: norm.group_norm(X, 2, SCALE[:4])),
    "bias: must have shape (5, 8) for this x; got (8,)": (
        ValueError, lambda: norm.layer_norm(X, None, BIAS, axis=(2, 3))),
    "x: must be float16, bfloat16, float32, float64; got int32": (
        TypeError, lambda: norm.group_norm(X.astype("int32"), 2)),
    "scale: must be float16, bfloat16, float32, float64; got complex64": (
        TypeError, lambda: norm.group_norm(X, 2, SCALE.astype("complex64"))),
    "x: must be a JAX or NumPy array; got list": (
        TypeError, lambda: norm.group_norm([[1.0, 2.0]], 2)),
    "epsilon: must be finite and not negative; got -1.0": (
        ValueError, lambda: norm.group_norm(X, 2, epsilon=-1)),
    "epsilon: must be finite and not negative; got nan": (
        ValueError, lambda: norm.group_norm(X, 2, epsilon=float("nan"))),
    "epsilon: must be a number; got 'small'": (
        TypeError, lambda: norm.group_norm(X, 2, epsilon="small")),
    "activation: must be a str or None; got 1": (
        TypeError, lambda: norm.group_norm(X, 2, activation=1)),
    "got 'mish'": (ValueError, lambda: norm.group_norm(X, 2, activation="mish")),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_refused(message, jit):
    kind, call = REFUSED[message]
    with pytest.raises(kind) as raised:
        (jax.jit(call) if jit else call)()
    assert message in str(raised.value)


def test_the_engine_refuses_what_nobody_checked():
    attributes = {"layout": "channels_last", "eps": numpy.float64(1e-5), "center": True, "activation": "none", "scale": False, "bias": False}  # fmt: skip
    x = jnp.ones((2, 3, 8))

    def call(name="groupnorm_forward", results=x, args=(x,), **changed):
        call = jax.ffi.ffi_call(name, results)
        return call(*args, **attributes | {"channels": numpy.int64(4)} | changed)

    assert not call().any()
    for wrong in (
        {"channels": numpy.int64(3)},
        {"channels": "four"},
        {"activation": "mish"},
        {"layout": "blocked"},
        {"scale": True},
        {"results": x[:1]},
        {"args": (x[0],)},
        {"args": (x.astype("int32"),)},
        {"scale": True, "args": (x, jnp.ones(7))},
        {"eps": numpy.float64(-1)},
        {"eps": numpy.float32(1)},
    ):
        with pytest.raises(Exception, match="groupnorm: "):
            jax.block_until_ready(call(**wrong))


def test_import_of_groupnorm_imports_no_framework():
    code = "import sys, groupnorm; assert not {'jax', 'flax', 'equinox', 'keras', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("framework", "module", "extra"),
    [
        ("jax", "groupnorm.jax", "groupnorm[jax]"),
        ("flax", "groupnorm.jax.nnx", "flax"),
        ("equinox", "groupnorm.jax.equinox", "equinox"),
        ("keras", "groupnorm.keras", "groupnorm[keras]"),
    ],
)
def test_a_missing_framework_is_named(framework, module, extra):
    code = f"import sys; sys.modules[{framework!r}] = None; import {module}"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "ImportError" in found.stderr and extra in found.stderr
