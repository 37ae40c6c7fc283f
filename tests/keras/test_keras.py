"""groupnorm.keras on the backend of KERAS_BACKEND: as Keras' own layer, in files too."""

import os
import pathlib
import sys

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "1"  # for the oracle: Keras asks for float32 by itself
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))

import keras
import norms
import numpy
import pytest
import torch

import groupnorm
from groupnorm.keras import GroupNormalization, gelu_tanh, replace_group_normalization

BACKEND = keras.backend.backend()
OURS = BACKEND in ("jax", "torch")
EPS32 = norms.EPS32


def weights(layer, seed=0):
    """Weights of an untidy layer."""
    for i, weight in enumerate(layer.weights):
        weight.assign(norms.normal(weight.shape, seed=seed + i, mean=1))
    return layer


def as_numpy(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float64"))


def gradients(layer, x, dy):
    """dx and the gradients of the layer's weights, of sum(dy * y)."""
    if BACKEND == "torch":
        x = keras.ops.convert_to_tensor(x).detach().requires_grad_()
        for weight in layer.weights:
            weight.value.grad = None
        (layer(x) * keras.ops.convert_to_tensor(dy)).sum().backward()
        return [x.grad, *(weight.value.grad for weight in layer.weights)]
    import jax

    def loss(x, values):
        return (layer.stateless_call(values, [], x)[0] * dy).sum()

    values = [weight.value for weight in layer.trainable_variables]
    dx, dweights = jax.jit(jax.grad(loss, (0, 1)))(keras.ops.convert_to_tensor(x), values)
    return [dx, *dweights]


OPTIONS = {
    "default": {},
    "instance": {"groups": -1},
    "axis 1": {"axis": 1, "groups": 2},
    "axis -3": {"axis": -3, "groups": 2},
    "axis 2": {"axis": 2, "groups": 2},
    "epsilon": {"groups": 4, "epsilon": 0.3},
    "no center": {"groups": 4, "center": False},
    "no scale": {"groups": 4, "scale": False},
    "neither": {"groups": 4, "center": False, "scale": False},
    "the rest": {
        "groups": 8,
        "beta_initializer": "ones",
        "gamma_initializer": keras.initializers.RandomNormal(seed=1),
        "beta_regularizer": "l1",
        "gamma_regularizer": keras.regularizers.L2(0.1),
        "beta_constraint": "non_neg",
        "gamma_constraint": keras.constraints.MaxNorm(2),
        "name": "norm",
        "trainable": False,
    },
}
ACTIVATIONS = ["linear", "relu", "silu", "swish", "gelu", "hard_silu", "gelu_tanh", "tanh", "elu"]


@pytest.mark.parametrize(
    ("option", "shape"),
    [
        *((option, (2, 4, 6, 64)) for option in OPTIONS),
        *((option, (2, 64)) for option in ("default", "axis 1", "instance")),
        *((option, (2, 5, 64)) for option in ("default", "axis 1", "axis 2")),
        *((option, (2, 4, 6, 3, 64)) for option in ("default", "axis 1", "axis 2", "axis -3")),
    ],
)
def test_every_option(option, shape):
    """Against float64 of torch: Keras' own layer computes in float32, whatever its dtype."""
    options = OPTIONS[option]
    axis = options.get("axis", -1)
    if axis % len(shape) == len(shape) - 1:
        x = norms.normal(shape, seed=1, mean=2)
    else:
        x = numpy.moveaxis(norms.normal((*shape[:-1], 6), seed=1, mean=2), -1, axis)
    dy = norms.normal(x.shape, seed=3)
    ours, own = GroupNormalization(**options), keras.layers.GroupNormalization(**options)
    for layer in (ours, own):
        layer.build(x.shape)
        weights(layer)
    assert [w.name for w in ours.weights] == [w.name for w in own.weights]

    leaves = [
        torch.from_numpy(value).double().requires_grad_() for value in (x, *ours.get_weights())
    ]
    rest = iter(leaves[1:])
    gamma = next(rest) if ours.scale else None
    beta = next(rest) if ours.center else None
    blocks = leaves[0].movedim(axis, 1).reshape(x.shape[0], ours.groups, -1)
    rstd = (blocks.var(-1, correction=0, keepdim=True) + ours.epsilon).rsqrt()
    xhat = (blocks - blocks.mean(-1, keepdim=True)) * rstd
    wanted = xhat.reshape(leaves[0].movedim(axis, 1).shape).movedim(1, -1)
    wanted = wanted if gamma is None else wanted * gamma
    wanted = (wanted if beta is None else wanted + beta).movedim(-1, axis)
    found = ours(x)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    assert_close(found, wanted, 16)
    assert_close(own(x), wanted, 4096)  # it loses digits
    if ours.trainable:
        dx, *dparams = torch.autograd.grad(wanted, leaves, torch.from_numpy(dy).double())
        found_dx, *found_dparams = gradients(ours, x, dy)
        # dx is a difference of terms as large as rstd * gamma * dy.
        most = 1 if gamma is None else abs(gamma).max().item()
        assert_close(found_dx, dx, 16, rstd.max().item() * most * abs(dy).max())
        for mine, theirs in zip(found_dparams, dparams, strict=True):
            assert_close(mine, theirs, 16)


def assert_close(found, wanted, units, terms=1.0):
    """Within so many float32 units of the largest number, or of the terms that it is made of."""
    wanted = wanted.detach().numpy()
    bound = units * EPS32 * max(terms, abs(wanted).max())
    numpy.testing.assert_allclose(as_numpy(found), wanted, rtol=0, atol=bound)


def test_float64():
    x = keras.ops.convert_to_tensor(norms.normal((2, 5, 8), "float64", seed=2), dtype="float64")
    layer = GroupNormalization(2, dtype="float64")
    found = layer(x)
    assert keras.backend.standardize_dtype(found.dtype) == "float64"
    exact = norms.exact("group", as_numpy(x), groups=2, eps=1e-3, layout="channels_last").y
    numpy.testing.assert_allclose(as_numpy(found), exact, atol=1e-14 if OURS else 1e-5)


@pytest.mark.skipif(not OURS, reason="Keras' own rounds to integers")
def test_integers_become_floats():
    x = numpy.arange(80).reshape(2, 5, 8)
    found, wanted = (GroupNormalization(2)(values) for values in (x, x.astype("float32")))
    numpy.testing.assert_array_equal(as_numpy(found), as_numpy(wanted))


@pytest.mark.skipif(not OURS, reason="Keras' own")
@pytest.mark.parametrize("axis", [-1, 1])
def test_bits_are_those_of_the_numpy_call(axis):
    x = norms.normal((2, 6, 5, 7, 8) if axis == -1 else (2, 8, 5, 7, 6), seed=4, mean=3)
    layer = GroupNormalization(4, axis, activation="silu")
    layer.build(x.shape)
    gamma, beta = weights(layer).get_weights()
    layout = "channels_last" if axis == -1 else "channels_first"
    wanted = groupnorm.group_norm(x, 4, gamma, beta, 1e-3, layout=layout, activation="silu")
    assert keras.ops.convert_to_numpy(layer(x)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS, keras.activations.softsign])
def test_activations(activation):
    x = norms.normal((2, 5, 8), seed=5)
    layer = GroupNormalization(2, activation=activation)
    layer.build(x.shape)
    plain = keras.layers.GroupNormalization(2)
    plain.build(x.shape)
    function = gelu_tanh if activation == "gelu_tanh" else keras.activations.get(activation)
    wanted = function(plain(x))
    numpy.testing.assert_allclose(as_numpy(layer(x)), as_numpy(wanted), rtol=0, atol=4e-6)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_narrow_dtypes(policy):
    x = norms.normal((2, 5, 6, 8), seed=6, mean=1)
    layer = GroupNormalization(4, dtype=policy, activation="silu")
    layer.build(x.shape)
    y = layer(keras.ops.cast(x, layer.compute_dtype))
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    rounded = as_numpy(keras.ops.cast(x, layer.compute_dtype))
    options = {"groups": 4, "eps": 1e-3, "layout": "channels_last", "activation": "silu"}
    wanted = norms.exact("group", rounded, **options).y
    step = 2.0**-10 if "float16" in policy and "bf" not in policy else 2.0**-7
    numpy.testing.assert_allclose(as_numpy(y), wanted, rtol=step, atol=step)


def network(layer=keras.layers.GroupNormalization):
    inner_input = keras.Input((None, None, 16))
    inner = keras.Model(inner_input, layer(groups=8, name="inner_norm")(inner_input), name="inner")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, name="conv")(inputs)
    x = layer(groups=4, epsilon=1e-5, name="norm")(x)
    x = inner(keras.layers.Activation("silu", name="act")(x))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="pool")(x))


def kinds(model):
    return [
        type(layer)
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.GroupNormalization)
    ]


def test_replace_group_normalization():
    model = weights(network())
    x = norms.normal((2, 8, 8, 3), seed=7)
    wanted = as_numpy(model(x))
    found = replace_group_normalization(model)
    assert kinds(model) == [keras.layers.GroupNormalization] * 2
    assert kinds(found) == [GroupNormalization] * 2
    assert [w.path for w in found.weights] == [w.path for w in model.weights]
    numpy.testing.assert_allclose(as_numpy(found(x)), wanted, atol=1e-5)
    found.layers[1].kernel.assign(found.layers[1].kernel * 2)
    numpy.testing.assert_array_equal(as_numpy(model(x)), wanted)


def test_replace_takes_a_sequential_and_leaves_subclasses():
    class Own(keras.layers.GroupNormalization):
        pass

    model = keras.Sequential([keras.Input((5, 8)), keras.layers.GroupNormalization(2), Own(4)])
    assert kinds(replace_group_normalization(model)) == [GroupNormalization, Own]


def test_replace_refuses_others():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="model: must be a keras.Model; got int"):
        replace_group_normalization(3)
    with pytest.raises(ValueError, match="model: "):
        replace_group_normalization(Own())


def test_files(tmp_path):
    """Weights go from Keras' model to ours and back; a whole model comes back as ours."""
    model, ours = weights(network()), network(GroupNormalization)
    x = norms.normal((2, 8, 8, 3), seed=8)
    model.save_weights(tmp_path / "model.weights.h5")
    ours.load_weights(tmp_path / "model.weights.h5")
    numpy.testing.assert_allclose(as_numpy(ours(x)), as_numpy(model(x)), atol=1e-5)
    ours.save_weights(tmp_path / "ours.weights.h5")
    other = network()
    other.load_weights(tmp_path / "ours.weights.h5")
    numpy.testing.assert_array_equal(as_numpy(other(x)), as_numpy(model(x)))
    ours.save(tmp_path / "ours.keras")
    again = keras.saving.load_model(tmp_path / "ours.keras")
    assert kinds(again) == [GroupNormalization] * 2
    numpy.testing.assert_array_equal(as_numpy(again(x)), as_numpy(ours(x)))


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh", "elu"])
def test_config(activation):
    layer = GroupNormalization(**OPTIONS["the rest"], activation=activation)
    config = layer.get_config()
    parent = keras.layers.GroupNormalization(**OPTIONS["the rest"]).get_config()
    assert {key: config[key] for key in parent} == parent
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is GroupNormalization and again.get_config() == config
    # A config of the parent, or of TensorFlow Addons, has no activation.
    assert GroupNormalization.from_config(parent).get_config() == {**config, "activation": "linear"}


def test_training_learns():
    keras.utils.set_random_seed(1)
    x, labels = norms.normal((64, 8, 8, 3), seed=9), numpy.arange(64) % 2
    x[labels == 1, ::2] += 0.5
    model = keras.Sequential([network(GroupNormalization), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    history = model.fit(x, labels, epochs=4, batch_size=16, verbose=0).history["loss"]
    assert history[-1] < history[0]


REFUSED = {
    "3 groups of 8": ({"groups": 3}, (2, 5, 8), ValueError),
    "16 groups of 8": ({"groups": 16}, (2, 5, 8), ValueError),
    "no channels": ({}, (2, 5, None), ValueError),
    "examples": ({"axis": 0}, (8, 5, 8), ValueError),
    "examples from the end": ({"axis": -3}, (8, 5, 8), ValueError),
    "no axis": ({"axis": 3}, (2, 5, 8), ValueError),
    "activation": ({"activation": "no such"}, (2, 5, 8), ValueError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    options, shape, kind = REFUSED[name]
    with pytest.raises(kind):
        GroupNormalization(**options).build(shape)


def test_axis_is_one():
    with pytest.raises(TypeError, match=r"axis: must be an int; got \[1, 2\]"):
        GroupNormalization(2, axis=[1, 2])


def test_another_rank_or_size_is_refused():
    layer = GroupNormalization(2)
    layer.build((2, 5, 8))
    with pytest.raises(ValueError, match="8"):
        layer(norms.normal((2, 5, 6)))


def test_a_mask_passes():
    layer = GroupNormalization(2)
    inputs = keras.Input((5, 8))
    masked = keras.layers.Masking()(inputs)
    assert layer.supports_masking
    assert layer(masked).shape == (None, 5, 8)
