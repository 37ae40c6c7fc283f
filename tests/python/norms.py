"""What the tests of the NumPy face share: the exact results, data, memory layouts, bounds."""

import pathlib
import sys
from dataclasses import dataclass

import hypothesis
import numpy

import groupnorm

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "cli"))

import numpy_norms

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=200)
hypothesis.settings.load_profile("fixed")

EPS32 = 2.0**-23
EPS64 = 2.0**-52
# The largest error of rounding y once: relative, and of the smallest numbers.
HALF_STEP = {"float16": (2.0**-11, 2.0**-25), "bfloat16": (2.0**-8, 2.0**-134)}
# The most by which an activation enlarges an error of its argument (docs/mathematics.md).
SLOPE = {"none": 1, "relu": 1, "silu": 1.1, "gelu": 1.13, "gelu_tanh": 1.13, "hard_swish": 1.5}
ACTIVATIONS = list(groupnorm.ACTIVATIONS)
LAYOUTS = list(groupnorm.LAYOUTS)


def dtypes():
    """Those of this interpreter: bfloat16 needs ml_dtypes."""
    names = [numpy.dtype(name) for name in ("float32", "float64", "float16")]
    try:
        import ml_dtypes
    except ImportError:
        return names
    return [*names, numpy.dtype(ml_dtypes.bfloat16)]


def param_dtype(dtype):
    """What a model keeps its parameters in."""
    return numpy.dtype("float64" if dtype == numpy.float64 else "float32")


def normal(shape, dtype="float32", seed=0, mean=0.0):
    return (mean + numpy.random.default_rng(seed).standard_normal(shape)).astype(dtype)


@dataclass
class Exact:
    """In float64: y, the unit of its error (1 + |weight xhat| + |bias|), mean and rstd."""

    y: numpy.ndarray
    unit: numpy.ndarray
    mean: numpy.ndarray
    rstd: numpy.ndarray


def exact(
    norm,
    x,
    weight=None,
    bias=None,
    *,
    groups=None,
    axes=1,
    eps=1e-5,
    correction=0,
    activation=None,
    layout="channels_first",
):
    """Of any norm. layer and rms take the last `axes` axes of x, the others channels by layout."""
    shape = x.shape
    statistics = {"group": (shape[0], groups), "batch": (-1,)}.get(norm, (shape[0], -1))
    if norm in ("layer", "rms"):
        statistics = shape[: len(shape) - axes]
        x = x.reshape(int(numpy.prod(statistics)), -1)
        weight = None if weight is None else weight.reshape(-1)
        bias = None if bias is None else bias.reshape(-1)
        layout = "channels_first"
    options = {"norm": norm, "groups": groups, "eps": eps, "correction": correction}
    scaled, mean, rstd = numpy_norms.normalize(x, gamma=weight, layout=layout, **options)
    z, _, _ = numpy_norms.normalize(x, gamma=weight, beta=bias, layout=layout, **options)
    y = numpy_norms.ACTIVATIONS[activation or "none"](z)
    unit = 1 + abs(scaled) + abs(z - scaled)
    return Exact(
        y.reshape(shape), unit.reshape(shape), mean.reshape(statistics), rstd.reshape(statistics)
    )


def assert_near(y, wanted, activation=None, large_mean=0.0):
    """y against the promise of docs/numerics.md. large_mean: the largest |mean| * rstd."""
    slope = SLOPE[activation or "none"]
    if y.dtype == numpy.float64:
        # The reference sums in float64 too: some 12 roundings of its own in each sum.
        bound = 16 * slope * EPS64 * (wanted.unit + large_mean)
    else:
        bound = 3 * slope * EPS32 * wanted.unit
        relative, absolute = HALF_STEP.get(y.dtype.name, (0, 0))
        bound = bound + relative * abs(wanted.y) + absolute
    error = abs(y.astype(numpy.float64) - wanted.y)
    assert y.shape == wanted.y.shape
    assert (error <= bound).all(), f"{(error / bound).max()} of the bound"


def other_layout(x, layout="channels_first"):
    """x with its memory in the order of the other layout."""
    here, there = (1, -1) if layout == "channels_first" else (-1, 1)
    return numpy.moveaxis(numpy.ascontiguousarray(numpy.moveaxis(x, here, there)), there, here)


def sliced(x):
    """Every second element of a larger array."""
    larger = numpy.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    larger[..., ::2] = x
    return larger[..., ::2]


def misaligned(x):
    """One byte past where it should begin."""
    memory = numpy.zeros(x.nbytes + 1, numpy.uint8)
    memory[1:] = numpy.ascontiguousarray(x).view(numpy.uint8).reshape(-1)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    assert not view.flags.aligned
    return view


# The same numbers elsewhere in memory. What the engine cannot take where it lies is copied.
COPIED = {
    "fortran order": lambda x: numpy.array(x, order="F"),
    "sliced": sliced,
    "reversed": lambda x: numpy.flip(numpy.flip(x).copy()),
    "misaligned": misaligned,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "rows apart": lambda x: numpy.concatenate([x, x], axis=1)[:, : x.shape[1]],
}
