"""groupnorm.jax.nnx and groupnorm.jax.equinox: as the modules that they stand for."""

import equinox
import jax_norms
import numpy
import pytest
from flax import nnx
from jax_norms import ACTIVATE, ACTIVATIONS, assert_close, bits, double, normal, plain

import groupnorm.jax
from groupnorm.jax.equinox import GroupNorm as EquinoxNorm
from groupnorm.jax.nnx import GroupNorm as FlaxNorm

jax, jnp = jax_norms.jax, jax_norms.jnp
X = normal((2, 6, 5, 8), seed=1, mean=2)


def untidy(norm):
    """With parameters that are not 1 and 0."""
    for seed, name in enumerate(("scale", "bias")):
        param = getattr(norm, name)
        if param is not None:
            param[...] = jnp.asarray(normal((8,), seed=seed, mean=1), param.dtype)
    return norm


FLAX = {
    "groups": {"num_groups": 4},
    "size": {"num_groups": None, "group_size": 4},
    "epsilon": {"num_groups": 2, "epsilon": 0.1},
    "no scale": {"num_groups": 2, "use_scale": False},
    "no bias": {"num_groups": 2, "use_bias": False},
    "neither": {"num_groups": 2, "use_scale": False, "use_bias": False},
    "narrow": {"num_groups": 2, "dtype": jnp.bfloat16},
    "narrow params": {"num_groups": 2, "param_dtype": jnp.float16},
    "reduction axes": {"num_groups": 2, "reduction_axes": (1, 2, 3)},
    "precise": {"num_groups": 2, "use_fast_variance": False},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("option", FLAX)
def test_as_flax(option, dtype):
    options = FLAX[option]
    x = jnp.asarray(X, dtype)
    ours = untidy(FlaxNorm(8, **options, rngs=nnx.Rngs(0)))
    own = untidy(nnx.GroupNorm(8, **options, rngs=nnx.Rngs(0)))
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(own))
    found, wanted = ours(x), own(x)
    assert found.dtype == wanted.dtype
    step = {"bfloat16": 2.0**-7, "float16": 2.0**-10}.get(found.dtype.name, 32 * jax_norms.EPS32)
    assert_close(found, numpy.asarray(wanted, "float64"), 1, step)


def test_flax_in_float64():
    params = normal((8,), seed=0, mean=1), normal((8,), seed=1, mean=1)

    def by(kind):
        def gradients(x, scale, bias):
            norm = kind(8, 4, use_fast_variance=False, param_dtype=x.dtype, rngs=nnx.Rngs(0))
            norm.scale[...], norm.bias[...] = scale, bias
            graph, state = nnx.split(norm)
            return jax.value_and_grad(
                lambda x, state: (nnx.merge(graph, state)(x) ** 3).sum(), (0, 1)
            )(x, state)

        return gradients

    found = by(FlaxNorm)(jnp.asarray(X), *map(jnp.asarray, params))
    assert_close(found, double(by(nnx.GroupNorm), X, *params), 64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(activation):
    norm = untidy(FlaxNorm(8, 4, activation=activation, rngs=nnx.Rngs(0)))
    scale, bias = norm.scale[...], norm.bias[...]
    y = norm(X)
    assert bits(y) == bits(groupnorm.jax.group_norm(X, 4, scale, bias, activation=activation))
    # What the parent does has it behind.
    masked = norm(X, mask=jnp.ones(X.shape, bool))
    assert_close(masked, numpy.asarray(y, "float64"), 64)
    example = EquinoxNorm(4, 8, eps=1e-6, activation=activation)
    moved = numpy.moveaxis(X[0], -1, 0)
    wanted = ACTIVATE[activation](equinox.nn.GroupNorm(4, 8, eps=1e-6)(moved))
    assert_close(example(moved), numpy.asarray(wanted, "float64"))


def test_flax_leaves_a_mask_to_its_parent():
    mask = jnp.arange(6)[None, :, None, None] < jnp.array([4, 6])[:, None, None, None]
    mask = jnp.broadcast_to(mask, X.shape)
    ours, own = (untidy(kind(8, 4, rngs=nnx.Rngs(0))) for kind in (FlaxNorm, nnx.GroupNorm))
    assert bits(ours(X, mask=mask)) == bits(own(X, mask=mask))


def test_flax_takes_over_a_module():
    own = untidy(nnx.GroupNorm(8, None, 4, epsilon=0.1, use_bias=False, rngs=nnx.Rngs(0)))
    ours = FlaxNorm.from_module(own, "silu")
    assert ours.scale is own.scale and ours.bias is None
    assert_close(ours(X), numpy.asarray(jax.nn.silu(own(X)), "float64"))
    assert (ours.num_groups, ours.group_size, ours.use_bias, ours.use_scale) == (2, 4, False, True)
    with pytest.raises(TypeError, match=r"module: must be a flax\.nnx\.GroupNorm; got Linear"):
        FlaxNorm.from_module(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


def test_flax_trains():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = FlaxNorm(8, 4, activation="silu", rngs=rngs)

        def __call__(self, x):
            return self.norm(self.conv(x)).mean((1, 2, 3))

    x, wanted = normal((4, 8, 8, 3), seed=3), numpy.arange(4) / 4

    def loss(model):
        return ((model(x) - wanted) ** 2).mean()

    model = Network(nnx.Rngs(0))
    step = nnx.jit(nnx.value_and_grad(loss))
    first, gradients = step(model)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda p, g: p - 0.5 * g, state, gradients))
    assert step(model)[0] < first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", [{}, {"channelwise_affine": False}, {"eps": 0.1}])
def test_as_equinox(options, dtype):
    x = jnp.asarray(numpy.moveaxis(X, -1, 1), dtype)
    own = equinox.nn.GroupNorm(4, 8, **options)
    if own.weight is not None:
        params = jnp.asarray(normal((2, 8), seed=2, mean=1))
        own = equinox.tree_at(lambda m: (m.weight, m.bias), own, (params[0], params[1]))
    ours = EquinoxNorm.from_module(own)
    assert ours.weight is own.weight and ours.bias is own.bias and ours.channels == 8
    found, wanted = jax.vmap(ours)(x), jax.vmap(own)(x)
    assert found.dtype == wanted.dtype
    step = {"bfloat16": 2.0**-7, "float16": 2.0**-10}.get(dtype, 32 * jax_norms.EPS32)
    assert_close(found, numpy.asarray(wanted, "float64"), 1, step)
    assert bits(found[1]) == bits(ours(x[1]))


def test_equinox_gradients_are_one_call():
    x = normal((4, 8, 5), seed=4)
    ours = EquinoxNorm(2, 8)

    def loss(module, x):
        return (jax.vmap(module)(x) ** 3).sum()

    gradients = equinox.filter_jit(equinox.filter_grad(loss))
    found = gradients(ours, x)

    def oracle(x, scale, bias):
        return (plain(x, 2, scale, bias, epsilon=1e-5, axis=1) ** 3).sum()

    wanted = double(jax.grad(oracle, (1, 2)), x, numpy.ones(8), numpy.zeros(8))
    assert_close([found.weight, found.bias], wanted, 64)
    text = jax.jit(jax.grad(lambda w: loss(equinox.tree_at(lambda m: m.weight, ours, w), x))).lower(ours.weight).as_text()  # fmt: skip
    assert text.count("@groupnorm_backward") == text.count("@groupnorm_forward") == 1


def test_equinox_module_has_the_parents_calls():
    ours, state = EquinoxNorm(2, 8), equinox.nn.State({})
    x = normal((8, 5), seed=5)
    y, after = ours(x, state)
    assert after is state and bits(y) == bits(ours(x, key=jax.random.key(0)))
    assert ours(x, state=state)[1] is state
    model = equinox.nn.Sequential([equinox.nn.GroupNorm(2, 8), equinox.nn.Lambda(jax.nn.silu)])
    replaced = equinox.tree_at(lambda m: m[0], model, replace_fn=EquinoxNorm.from_module)
    assert type(replaced[0]) is EquinoxNorm
    assert_close(replaced(x), numpy.asarray(model(x), "float64"))
    with pytest.raises(TypeError, match=r"module: must be an equinox\.nn\.GroupNorm; got Lambda"):
        EquinoxNorm.from_module(model[1])


def test_refused():
    for make in (FlaxNorm, EquinoxNorm):
        options = {"rngs": nnx.Rngs(0)} if make is FlaxNorm else {}
        size = {"num_features": 8, "num_groups": 2} if options else {"groups": 2, "channels": 8}
        with pytest.raises(ValueError, match="activation: must be .* got 'mish'"):
            make(**size, activation="mish", **options)
        with pytest.raises(TypeError, match="activation: must be a str or None; got 3"):
            make(**size, activation=3, **options)
    with pytest.raises(ValueError, match="divide"):
        FlaxNorm(8, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="divide"):
        EquinoxNorm(3, 8)
