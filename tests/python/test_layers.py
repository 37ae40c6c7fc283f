"""groupnorm's layers: parameters, gradients that add up, what is kept between the two passes."""

import copy
import pickle
import re
from typing import Any

import norms
import numpy
import pytest
from norms import EPS32, assert_near, exact, normal

import groupnorm

LAYERS = {
    "group": lambda **o: groupnorm.GroupNormalization(3, 6, **o),
    "instance": lambda **o: groupnorm.InstanceNormalization(6, **o),
    "batch": lambda **o: groupnorm.BatchNormalization(6, **o),
    "layer": lambda **o: groupnorm.LayerNormalization(5, **o),
    "rms": lambda **o: groupnorm.RmsNormalization(5, **o),
}
DTYPES = norms.dtypes()


def name_of(dtype):
    return getattr(dtype, "name", None)


def with_parameters(layer):
    layer.weight[...] = normal(layer.weight.shape, "float64", 1, mean=1)
    layer.bias[...] = normal(layer.bias.shape, "float64", 2)
    return layer


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", LAYERS)
def test_forward(name, dtype):
    layer = with_parameters(LAYERS[name](eps=1e-3, activation="silu"))
    x = normal((2, 6, 4, 5), dtype)
    y = layer(x)
    # For all but float64 the parameters are rounded to float32.
    param = norms.param_dtype(dtype)
    weight, bias = layer.weight.astype(param), layer.bias.astype(param)
    wanted = exact(name, x, weight, bias, groups=3, eps=1e-3, activation="silu")
    assert y.dtype == dtype
    assert_near(y, wanted, "silu", large_mean=1)
    numpy.testing.assert_allclose(layer.mean, wanted.mean, rtol=1e-6, atol=1e-6)
    numpy.testing.assert_allclose(layer.rstd, wanted.rstd, rtol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_starts_as_the_plain_norm(name):
    layer = LAYERS[name]()
    x = normal((2, 6, 5))
    assert (layer.weight == 1).all() and (layer.bias == 0).all()
    assert layer.mean is None and layer.rstd is None
    assert_near(layer.forward(x), exact(name, x, groups=3))


@pytest.mark.parametrize("name", ["group", "instance", "batch"])
def test_channels_last(name):
    layer = with_parameters(LAYERS[name](layout="channels_last"))
    x = normal((2, 4, 5, 6), "float64")
    wanted = exact(name, x, layer.weight, layer.bias, groups=3, layout="channels_last")
    assert_near(layer(x), wanted, large_mean=1)
    dx = layer.backward(x)
    assert dx.shape == x.shape and layer.dweight.shape == (6,)
    numpy.testing.assert_allclose(layer.dbias, x.sum((0, 1, 2)), rtol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_backward_adds_up(name):
    layer = with_parameters(LAYERS[name](activation="gelu"))
    x, dy = normal((2, 6, 5), "float64"), normal((2, 6, 5), "float64", 3)

    def loss():
        return (dy * exact(name, x, layer.weight, layer.bias, groups=3, activation="gelu").y).sum()

    layer(x)
    dx = layer.backward(dy)
    for gradient, value in ((dx, x), (layer.dweight, layer.weight), (layer.dbias, layer.bias)):
        differences = numpy.empty_like(value)
        for index in numpy.ndindex(value.shape):
            old = value[index]
            value[index] = old + 1e-5
            above = loss()
            value[index] = old - 1e-5
            differences[index] = (above - loss()) / 2e-5
            value[index] = old
        numpy.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)

    once = layer.dweight.copy(), layer.dbias.copy()
    assert numpy.array_equal(layer.backward(dy), dx)
    assert (layer.dweight == 2 * once[0]).all() and (layer.dbias == 2 * once[1]).all()
    layer.zero_grad()
    assert (layer.dweight == 0).all() and (layer.dbias == 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backward_takes_everything_as_it_was_at_forward(dtype):
    x, dy = normal((2, 6, 5), dtype), normal((2, 6, 5), dtype, seed=3)
    layer = with_parameters(groupnorm.GroupNormalization(3, 6, activation="silu"))
    layer(x)
    wanted = layer.backward(dy)
    layer(x)
    layer.weight *= 2
    layer.bias[...] = 9
    layer.activation, layer.eps, layer.correction, layer.num_groups = None, 1.0, 1, 2
    assert numpy.array_equal(layer.backward(dy), wanted)


def test_keeps_x_without_a_copy():
    x = normal((2, 6, 5), "float64")
    layer = groupnorm.GroupNormalization(3, 6)
    layer(x)
    before = layer.backward(x).copy()
    x[:, 0] += 1
    assert not numpy.array_equal(layer.backward(numpy.array(x)), before)


def test_needs_a_forward_that_was_not_in_place():
    layer = groupnorm.GroupNormalization(3, 6)
    x = normal((2, 6, 5))
    message = "^backward: must follow a forward that was not in place$"
    with pytest.raises(RuntimeError, match=message):
        layer.backward(x)
    wanted = layer(x)
    in_place = x.copy()
    assert layer(in_place, out=in_place) is in_place
    assert numpy.array_equal(in_place, wanted)
    with pytest.raises(RuntimeError, match=message):
        layer.backward(x)
    out = numpy.empty_like(x)
    assert layer(x, out) is out
    layer.backward(x)


def test_without_parameters():
    for layer in (
        groupnorm.GroupNormalization(2),
        groupnorm.InstanceNormalization(),
        groupnorm.LayerNormalization((4, 5), affine=False),
        groupnorm.RmsNormalization((4, 5), affine=False),
    ):
        assert layer.weight is None and layer.bias is None
        x = normal((3, 4, 5))
        assert layer(x).shape == layer.backward(x).shape == x.shape
        assert layer.dweight is None and layer.dbias is None
        layer.zero_grad()
    layer = groupnorm.GroupNormalization(2)
    assert layer(normal((3, 4))).shape == (3, 4)
    assert layer(normal((3, 8))).shape == (3, 8)


def test_a_parameter_can_be_left_out():
    x = normal((2, 6, 5))
    layer = with_parameters(groupnorm.RmsNormalization(5))
    layer.bias = None
    assert_near(layer(x), exact("rms", x, layer.weight.astype("float32")))
    layer.backward(x)
    assert (layer.dweight != 0).all()


@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles(name):
    layer = with_parameters(LAYERS[name]())
    x = normal((2, 6, 5))
    wanted = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert numpy.array_equal(other.backward(x), layer.backward(x))
        assert numpy.array_equal(other(x), wanted) or name == "batch"
        other.weight[...] = 0
        assert (layer.weight != 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_normalization_as_torch(dtype):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(6, eps=1e-3, momentum=0.3, dtype=torch.float64)
    ours = groupnorm.BatchNormalization(6, eps=1e-3, momentum=0.3)
    tolerance = {"float32": 8 * EPS32, "float64": 1e-13}[dtype]

    def compare(got, wanted):
        numpy.testing.assert_allclose(got, wanted.detach().numpy(), rtol=0, atol=tolerance * 8)

    for step in range(3):
        x, dy = normal((4, 6, 3, 5), dtype, step), normal((4, 6, 3, 5), dtype, step + 10)
        tensor = torch.from_numpy(x.astype("float64")).requires_grad_()
        wanted = theirs(tensor)
        wanted.backward(torch.from_numpy(dy.astype("float64")))
        compare(ours(x), wanted)
        compare(ours.backward(dy), tensor.grad)
        compare(ours.running_mean, theirs.running_mean)
        compare(ours.running_var, theirs.running_var)
    compare(ours.dbias, theirs.bias.grad)
    compare(ours.dweight, theirs.weight.grad)

    assert ours.training
    assert ours.eval() is ours and not ours.training
    theirs.eval()
    before = ours.running_mean.copy()
    tensor = torch.from_numpy(x.astype("float64")).requires_grad_()
    wanted = theirs(tensor)
    wanted.backward(torch.from_numpy(dy.astype("float64")))
    compare(ours(x), wanted)
    ours.train()
    compare(ours.backward(dy), tensor.grad)  # the mode counts as it was at forward
    assert numpy.array_equal(ours.running_mean, before)
    assert ours.train().training


wrong: Any = groupnorm  # for arguments that a type checker refuses too


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: wrong.GroupNormalization(0),
            ValueError,
            "num_groups: must be at least 1; got 0",
        ),
        (
            lambda: wrong.GroupNormalization(4, 6),
            ValueError,
            "num_groups: must be at least 1 and divide num_channels=6; got 4",
        ),
        (
            lambda: wrong.GroupNormalization(2.0, 6),
            TypeError,
            "num_groups: must be an integer; got 2.0",
        ),
        (
            lambda: wrong.GroupNormalization(2, 0),
            ValueError,
            "num_channels: must be at least 1; got 0",
        ),
        (
            lambda: wrong.BatchNormalization(None),
            TypeError,
            "num_channels: must be an integer; got None",
        ),
        (
            lambda: wrong.BatchNormalization(6, momentum=-1),
            ValueError,
            "momentum: must be from 0 to 1; got -1",
        ),
        (
            lambda: wrong.LayerNormalization(2.5),
            TypeError,
            "normalized_shape: must be an integer; got 2.5",
        ),
        (
            lambda: wrong.InstanceNormalization(6, eps="small"),
            TypeError,
            "eps: must be a number; got 'small'",
        ),
        (
            lambda: wrong.GroupNormalization(3, 6)(normal((2, 9, 4))),
            ValueError,
            "x: must have num_channels=6 channels; got shape (2, 9, 4)",
        ),
        (
            lambda: wrong.GroupNormalization(3, 6)(normal(6)),
            ValueError,
            "x: must be [N, C, ...], of rank 2 or more; got shape (6,)",
        ),
        (
            lambda: wrong.LayerNormalization(6)(normal((2, 5))),
            ValueError,
            (
                "normalized_shape: must be the last sizes of x, at least one, of shape (2, 5); "
                "got (6,)"
            ),
        ),
        (
            lambda: wrong.GroupNormalization(3, 6, layout="NCHW")(normal((2, 6))),
            ValueError,
            "layout: must be 'channels_first' or 'channels_last'; got 'NCHW'",
        ),
    ],
)
def test_refuses(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


def test_a_refused_call_leaves_the_layer_as_it_was():
    layer = groupnorm.GroupNormalization(3, 6)
    x = normal((2, 6, 5))
    layer(x)
    mean, dx = layer.mean, layer.backward(x)
    layer.zero_grad()
    with pytest.raises(ValueError, match="^out: "):
        layer(x, out=numpy.empty((2, 6), "float32"))
    with pytest.raises(ValueError, match="^dy: must have the shape and dtype of x"):
        layer.backward(x[:1])
    assert (layer.dbias == 0).all() and layer.mean is mean
    assert numpy.array_equal(layer.backward(x), dx)


def test_repr():
    assert repr(groupnorm.GroupNormalization(3, 6)) == (
        "GroupNormalization(num_groups=3, num_channels=6, layout='channels_first', eps=1e-05, "
        "activation=None)"
    )
    assert repr(groupnorm.RmsNormalization(5, activation="silu")) == (
        "RmsNormalization(normalized_shape=(5,), eps=1e-05, activation='silu')"
    )


def test_trains():
    """Gradient descent finds the parameters that made the targets."""
    x = normal((8, 6, 10), "float64")
    wanted = exact("group", x, normal(6, seed=1), normal(6, seed=2), groups=3).y
    layer = groupnorm.GroupNormalization(3, 6)
    for _ in range(100):
        layer.zero_grad()
        layer.backward((layer(x) - wanted) / 80)
        layer.weight -= 0.5 * layer.dweight
        layer.bias -= 0.5 * layer.dbias
    assert abs(layer(x) - wanted).max() < 1e-6
