"""The norms of `groupnorm run` in float64 NumPy, on [n, c, s]."""

import math

import numpy


def as_ncs(x, layout="channels_first"):
    """A float64 view [n, c, s] of an array as the command line sees it."""
    x = x.astype(numpy.float64)
    if layout == "channels_last":
        x = numpy.moveaxis(x, -1, 1)
    return x.reshape(x.shape[0], x.shape[1], -1)


def from_ncs(y, shape, layout="channels_first"):
    if layout == "channels_first":
        return y.reshape(shape)
    return numpy.moveaxis(y.reshape(shape[0], shape[-1], *shape[1:-1]), 1, -1)


def blocks_of(norm, shape, groups):
    """Examples and channels that share one mean and one variance."""
    n, c = shape[:2]
    return {
        "group": lambda: (1, c // groups),
        "layer": lambda: (1, c),
        "instance": lambda: (1, 1),
        "batch": lambda: (n, 1),
        "ghost_batch": lambda: (n // groups, 1),
        "batch_group": lambda: (n, c // groups),
        "rms": lambda: (1, c),
        "group_rms": lambda: (1, c // groups),
    }[norm]()


_erf = numpy.vectorize(math.erf, otypes=[numpy.float64])
ACTIVATIONS = {
    "none": lambda z: z,
    "relu": lambda z: numpy.maximum(z, 0),
    "silu": lambda z: z / (1 + numpy.exp(-z)),
    "gelu": lambda z: z / 2 * (1 + _erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: z / 2 * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "hard_swish": lambda z: z * numpy.clip(z + 3, 0, 6) / 6,
}


def normalize(
    x,
    norm="group",
    groups=None,
    gamma=None,
    beta=None,
    eps=1e-5,
    correction=0,
    activation="none",
    layout="channels_first",
):
    """y in x's shape, mean and rstd [n / examples, c / channels], all float64."""
    ncs = as_ncs(x, layout)
    n, c, s = ncs.shape
    examples, channels = blocks_of(norm, ncs.shape, groups)
    blocks = ncs.reshape(n // examples, examples, c // channels, channels, s)
    axes = (1, 3, 4)
    m = examples * channels * s
    centered = norm not in ("rms", "group_rms")
    mean = blocks.mean(axes, keepdims=True) * (1.0 if centered else 0.0)
    rstd = 1 / numpy.sqrt(((blocks - mean) ** 2).sum(axes, keepdims=True) / (m - correction) + eps)
    y = ((blocks - mean) * rstd).reshape(n, c, s)
    if gamma is not None:
        y = y * numpy.atleast_2d(gamma).astype(numpy.float64)[:, :, None]
    if beta is not None:
        y = y + numpy.atleast_2d(beta).astype(numpy.float64)[:, :, None]
    y = ACTIVATIONS[activation](y)
    return from_ncs(y, x.shape, layout), mean[:, 0, :, 0, 0], rstd[:, 0, :, 0, 0]
