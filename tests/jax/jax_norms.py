"""What the tests of groupnorm.jax share: four devices, and the oracle of the NumPy tests."""

import os
import pathlib
import sys

# Before jax starts: the machine's CPU as several devices.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))

import jax
import jax.numpy as jnp
import norms
import numpy
from jax import Array

ACTIVATIONS = norms.ACTIVATIONS
EPS32 = norms.EPS32
exact, assert_near, normal = norms.exact, norms.assert_near, norms.normal

ACTIVATE = {
    "none": lambda z: z,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z: jax.nn.gelu(z, approximate=True),
    "hard_swish": jax.nn.hard_swish,
}


def plain(x, groups, scale=None, bias=None, *, epsilon=1e-6, axis=-1, activation="none"):
    """Group normalization as it is written, in jax.numpy: of float64, the oracle of derivatives."""
    last = jnp.moveaxis(x, axis, -1)
    split = last.reshape(last.shape[0], -1, groups, last.shape[-1] // groups)
    mean = split.mean((1, 3), keepdims=True)
    var = ((split - mean) ** 2).mean((1, 3), keepdims=True)
    z = ((split - mean) / jnp.sqrt(var + epsilon)).reshape(last.shape)
    for param, join in ((scale, jnp.multiply), (bias, jnp.add)):
        if param is not None:
            middle = [1] * (last.ndim - 2)
            z = join(z, param.reshape(-1, *middle, param.shape[-1]) if param.ndim == 2 else param)
    return jnp.moveaxis(ACTIVATE[activation](z), -1, axis)


def double(function, *args):
    """function of the arguments in float64, as NumPy arrays."""
    with jax.enable_x64(True):
        found = function(*(jnp.asarray(numpy.asarray(arg).astype("float64")) for arg in args))
        return jax.tree.map(numpy.asarray, found)


def assert_close(found, wanted, units=16.0, eps=EPS32):
    """Within so many eps of the largest value of each array."""
    found, wanted = jax.tree.leaves(found), jax.tree.leaves(wanted)
    assert len(found) == len(wanted)
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape
        error = abs(numpy.asarray(a).astype("float64") - b)
        bound = units * eps * max(1.0, abs(b).max(initial=0))
        first = numpy.flatnonzero(~(error <= bound))[:1]
        assert not first.size, (
            f"result {index}, index {first[0]}: {error.max() / bound} of the bound"
        )


def bits(array: Array):
    """What can be compared bit by bit."""
    return numpy.asarray(array).tobytes()
