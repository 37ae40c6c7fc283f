"""What is computed around a norm, in NumPy: against the chain in float64, and what is refused."""

import neighbour_chains as chains
import norms
import numpy
import pytest
import torch
from norms import LAYOUTS, normal, other_layout

import groupnorm

DTYPES = norms.dtypes()
TORCH = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
# norm -> shape of x (channels first), how many axes a layer norm takes
NORMS = {
    "group": ((3, 6, 5, 4), 1),
    "instance": ((3, 6, 5, 4), 1),
    "batch": ((3, 6, 5, 4), 1),
    "layer": ((3, 5, 6), 1),
    "rms": ((3, 5, 6), 1),
}
NORMS_IN_LAYOUTS = [(n, a) for n in NORMS for a in (LAYOUTS[:1] if n in chains.ROWS else LAYOUTS)]
GROUPS = 2


def name_of(dtype):
    return getattr(dtype, "name", None)


def to_torch(array):
    return torch.from_numpy(numpy.asarray(array, numpy.float64))


def from_torch(t, like):
    return t.numpy().astype(like.dtype)


def call(norm, arrays, *, axes=1, layout="channels_first", **options):
    x, weight, bias = (arrays.get(name) for name in ("x", "weight", "bias"))
    given = {name: arrays[name] for name in ("skip", "shift", "residual") if name in arrays}
    if "scale" in arrays:
        given["scale_shift"] = arrays["scale"], arrays["offset"]
    given |= options
    if norm in chains.ROWS:
        function = {"layer": groupnorm.layer_norm, "rms": groupnorm.rms_norm}[norm]
        return function(x, x.shape[-axes:], weight, bias, **given)
    given["layout"] = layout
    if norm == "batch":
        return groupnorm.batch_norm(x, None, None, weight, bias, True, **given)
    if norm == "group":
        return groupnorm.group_norm(x, GROUPS, weight, bias, **given)
    return groupnorm.instance_norm(x, weight, bias, **given)


def differentiate(norm, dy, arrays, statistics, *, axes=1, layout="channels_first", **options):
    x, weight, bias = (arrays.get(name) for name in ("x", "weight", "bias"))
    given = {name: arrays[name] for name in ("skip", "shift", "residual") if name in arrays}
    if "scale" in arrays:
        given["scale_shift"] = arrays["scale"], arrays["offset"]
    given |= {"bias": bias, **options}
    if norm in chains.ROWS:
        function = {"layer": groupnorm.layer_norm_backward, "rms": groupnorm.rms_norm_backward}
        return function[norm](dy, x, x.shape[-axes:], weight, *statistics, **given)
    given["layout"] = layout
    if norm == "batch":
        return groupnorm.batch_norm_backward(dy, x, weight, *statistics, **given)
    if norm == "group":
        return groupnorm.group_norm_backward(dy, x, GROUPS, weight, *statistics, **given)
    return groupnorm.instance_norm_backward(dy, x, weight, *statistics, **given)


def make(norm, dtype, shape=None, mean=0.0):
    """Every tensor of a call, channels first. skip takes the mean of x away again."""
    shape = shape or NORMS[norm][0]
    c = shape[-1] if norm in chains.ROWS else shape[1]
    param = norms.param_dtype(dtype)
    return {
        "x": normal(shape, dtype, 0, mean),
        "weight": normal(c, param, 1),
        "bias": normal(c, param, 2),
        "skip": normal(shape, dtype, 3, -mean),
        "shift": normal((shape[0], c), dtype, 4),
        "residual": normal(shape, dtype, 5),
        "scale": normal((shape[0], c), param, 6),
        "offset": normal((shape[0], c), param, 7),
    }


def moved(arrays, layout):
    """The same with the channels of x last, if the layout says so."""
    if layout == "channels_first":
        return arrays
    return {
        name: numpy.moveaxis(a, 1, -1).copy() if name in ("x", "skip", "residual") else a
        for name, a in arrays.items()
    }


def back(array, layout):
    return array if layout == "channels_first" else numpy.moveaxis(array, -1, 1)


def check(exact, name, found):
    exact.check(name, to_torch(found).to(TORCH[found.dtype.name]))


CHAINS = {
    "skip": ("skip",),
    "shift": ("shift",),
    "residual": ("residual",),
    "scale_shift": ("scale", "offset"),
    "all": ("skip", "shift", "residual", "scale", "offset"),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("norm", "layout"), NORMS_IN_LAYOUTS)
def test_every_norm_dtype_and_layout(norm, dtype, layout, chain):
    everything = make(norm, dtype)
    arrays = {name: everything[name] for name in ("x", "weight", "bias", *CHAINS[chain])}
    dy, dsum = (normal(arrays["x"].shape, dtype, seed) for seed in (8, 9))
    for activation in (None, "silu"):
        exact = chains.exact(
            norm,
            {name: to_torch(a) for name, a in arrays.items()},
            groups=GROUPS,
            activation=activation,
            dtype=TORCH[dtype.name],
            dy=to_torch(dy),
            dsum=to_torch(dsum),
        )
        given = moved(arrays, layout)
        options = {"activation": activation, "layout": layout}
        y, total, *statistics = call(
            norm, given, return_sum=True, return_statistics=True, **options
        )
        assert y.dtype == total.dtype == dtype
        check(exact, "y", back(y, layout))
        check(exact, "sum", back(total, layout))
        given_dy, given_dsum = (moved({"x": g}, layout)["x"] for g in (dy, dsum))
        found = differentiate(norm, given_dy, given, statistics, dsum=given_dsum, **options)
        named = found._asdict()
        named["dscale"], named["doffset"] = named.pop("dscale_shift") or (None, None)
        for name, gradient in named.items():
            if name.removeprefix("d") not in arrays:
                assert gradient is None, name
                continue
            assert gradient.dtype == arrays[name.removeprefix("d")].dtype
            is_x = name in ("dx", "dresidual")
            check(exact, name, back(gradient, layout) if is_x else gradient)


@pytest.mark.parametrize(("norm", "layout"), NORMS_IN_LAYOUTS)
def test_large_means_that_cancel(norm, layout):
    arrays = make(norm, numpy.dtype("float32"), mean=1e4)
    exact = chains.exact(
        norm, {k: to_torch(a) for k, a in arrays.items()}, groups=GROUPS, dtype=torch.float32
    )
    y, total = call(norm, moved(arrays, layout), layout=layout, return_sum=True)
    check(exact, "y", back(y, layout))
    check(exact, "sum", back(total, layout))


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("norm", chains.ROWS)
def test_normalized_shapes_and_shapes_of_what_is_by_example(norm, axes):
    arrays = make(norm, numpy.dtype("float32"), (2, 3, 4, 6))
    last = arrays["x"].shape[-axes:]
    for name in ("weight", "bias"):
        arrays[name] = normal(last, seed=1)
    for middle in ((), (1,) * (3 - axes)):
        for name in ("shift", "scale", "offset"):
            arrays[name] = normal((2, *middle, *last), seed=len(name))
        tensors = {k: to_torch(a) for k, a in arrays.items()}
        for name in ("shift", "scale", "offset"):
            tensors[name] = tensors[name].reshape(2, *(1,) * (3 - axes), *last)
        exact = chains.exact(norm, tensors, axes=axes, dtype=torch.float32)
        check(exact, "y", call(norm, arrays, axes=axes))


LENGTHS = {"group": (3, 6, 7), "instance": (3, 6, 7), "layer": (3, 7, 6), "rms": (3, 7, 6)}


@pytest.mark.parametrize("lengths", [[7, 7, 7], [0, 3, 7], [1, 6, 2]], ids=str)
@pytest.mark.parametrize(("norm", "layout"), [p for p in NORMS_IN_LAYOUTS if p[0] in LENGTHS])
def test_lengths_are_cutting_bit_for_bit(norm, layout, lengths):
    arrays = moved(make(norm, numpy.dtype("float32"), LENGTHS[norm]), layout)
    axis = 1 if norm in chains.ROWS or layout == "channels_last" else 2
    dy = normal(arrays["x"].shape, seed=8)
    for name in ("x", "skip", "residual"):  # what stands in the padding does not matter
        for i, length in enumerate(lengths):
            behind = (slice(None),) * (axis - 1) + (slice(length, None),)
            arrays[name][i][behind] = numpy.nan
    options = {"activation": "silu", "layout": layout}
    y, total, *statistics = call(
        norm, arrays, return_sum=True, return_statistics=True, lengths=lengths, **options
    )
    gradients = differentiate(norm, dy, arrays, statistics, lengths=lengths, **options)
    summed = numpy.zeros(6)
    for i, length in enumerate(lengths):
        kept = (slice(None),) * axis + (slice(0, length),)
        behind = (slice(None),) * axis + (slice(length, None),)
        assert not y[i : i + 1][behind].any() and not total[i : i + 1][behind].any()
        assert not gradients.dx[i : i + 1][behind].any()
        assert not gradients.dresidual[i : i + 1][behind].any()
        if length == 0:
            assert all(not s[i].any() for s in statistics)
            continue
        each = {
            name: a
            if name in ("weight", "bias")
            else a[i : i + 1][kept if name in ("x", "skip", "residual") else ...].copy()
            for name, a in arrays.items()
        }
        alone = call(norm, each, return_sum=True, return_statistics=True, **options)
        assert y[i : i + 1][kept].tobytes() == alone[0].tobytes()
        assert total[i : i + 1][kept].tobytes() == alone[1].tobytes()
        piece = dy[i : i + 1][kept].copy()
        wanted = differentiate(norm, piece, each, alone[2:], **options)
        assert gradients.dx[i : i + 1][kept].tobytes() == wanted.dx.tobytes()
        assert gradients.dshift[i].tobytes() == wanted.dshift.tobytes()
        for found, one in zip(gradients.dscale_shift, wanted.dscale_shift, strict=True):
            assert found[i].tobytes() == one.tobytes()
        summed += wanted.dweight
    numpy.testing.assert_allclose(gradients.dweight, summed, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "list"])
def test_lengths_of_any_integers(kind):
    x = normal((3, 4, 7))
    lengths = [2, 0, 7]
    given = lengths if kind == "list" else numpy.array(lengths, kind)
    wanted = groupnorm.group_norm(x, 2, lengths=numpy.array(lengths, "int64"))
    assert groupnorm.group_norm(x, 2, lengths=given).tobytes() == wanted.tobytes()


def test_in_place():
    x, skip, residual = (normal((2, 6, 9, 5), seed=seed) for seed in range(3))
    given = {"skip": skip, "residual": residual, "activation": "relu"}
    wanted = groupnorm.group_norm(x, 3, **given)
    for out in ("x", "skip", "residual"):
        arrays = {"x": x.copy(), "skip": skip.copy(), "residual": residual.copy()}
        y = groupnorm.group_norm(
            arrays["x"],
            3,
            skip=arrays["skip"],
            residual=arrays["residual"],
            activation="relu",
            out=arrays[out],
        )
        assert y is arrays[out] and y.tobytes() == wanted.tobytes()


def test_memory_of_every_kind():
    x, skip, residual = (normal((2, 6, 5, 4), seed=seed) for seed in range(3))
    shift = normal((2, 6), seed=3)
    wanted = groupnorm.group_norm(x, 3, skip=skip, shift=shift, residual=residual)
    for change in (other_layout, *norms.COPIED.values()):
        found = groupnorm.group_norm(
            x, 3, skip=change(skip), shift=numpy.asfortranarray(shift), residual=change(residual)
        )
        assert found.tobytes() == wanted.tobytes()
    for change in norms.COPIED.values():
        found = groupnorm.group_norm(change(x), 3, skip=skip, shift=shift, residual=residual)
        numpy.testing.assert_array_equal(found, wanted)


def test_batch_norm_moves_its_running_statistics_by_the_sum():
    x, skip = normal((4, 3, 5)), normal((4, 3, 5), seed=1, mean=2)
    running = [numpy.zeros(3), numpy.ones(3)]
    groupnorm.batch_norm(x, *running, training=True, momentum=1.0, skip=skip)
    u = (x + skip).astype("float64")
    numpy.testing.assert_allclose(running[0], u.mean((0, 2)), rtol=1e-6)
    numpy.testing.assert_allclose(running[1], u.var((0, 2), ddof=1), rtol=1e-6)
    y = groupnorm.batch_norm(x, *running, skip=skip, residual=x)
    column = [r.reshape(1, 3, 1) for r in running]
    numpy.testing.assert_allclose(
        y, (u - column[0]) / numpy.sqrt(column[1] + 1e-5) + x, rtol=1e-5, atol=1e-5
    )


def test_results_by_what_is_asked():
    x = normal((2, 4, 3))
    _, total = groupnorm.group_norm(x, 2, return_sum=True)
    assert total.tobytes() == x.tobytes() and total is not x
    y2, total, mean, rstd = groupnorm.group_norm(
        x, 2, skip=x, return_sum=True, return_statistics=True
    )
    assert (total == 2 * x).all() and mean.shape == rstd.shape == (2, 2)
    _, total, rstd = groupnorm.rms_norm(x, 3, return_sum=True, return_statistics=True)
    assert rstd.shape == (2, 4)
    plain = groupnorm.group_norm_backward(y2, x, 2, None, mean, mean + 1)
    assert len(plain) == 3
    none = groupnorm.group_norm(x, 2, skip=None, shift=None, scale_shift=None, lengths=None)
    assert none.tobytes() == groupnorm.group_norm(x, 2).tobytes()


def test_empty():
    x = normal((0, 4, 3))
    y, total = groupnorm.group_norm(x, 2, skip=x, shift=normal((0, 4)), lengths=[], return_sum=True)
    assert y.shape == total.shape == x.shape
    y = groupnorm.group_norm(normal((2, 4, 0)), 2, shift=normal((2, 4)), lengths=[0, 0])
    assert y.shape == (2, 4, 0)


X = normal((2, 4, 3))
REFUSED = [
    ({"skip": normal((2, 4, 1))}, ValueError, r"skip: .*\(2, 4, 3\) float32.*\(2, 4, 1\)"),
    ({"skip": X.astype("float64")}, ValueError, "skip: .* float64"),
    ({"residual": normal((4, 3))}, ValueError, r"residual: .*\(4, 3\)"),
    ({"residual": X > 0}, TypeError, "residual: .*bool"),
    ({"shift": normal(4)}, ValueError, r"shift: .*\(2, 4\) or \(2, 4, 1\).*\(4,\)"),
    ({"shift": normal((2, 4), "float64")}, TypeError, "shift: .*float32.*float64"),
    ({"scale_shift": normal((2, 4))}, TypeError, "scale_shift: .*pair.*ndarray"),
    ({"scale_shift": (normal((2, 4)), None)}, TypeError, r"scale_shift\[1\]: .*None"),
    (
        {"scale_shift": (normal((2, 4)), normal((4, 2)))},
        ValueError,
        r"scale_shift\[1\]: .*\(4, 2\)",
    ),
    (
        {"scale_shift": (normal((2, 4)), normal((2, 4), "float64"))},
        TypeError,
        r"scale_shift\[1\]: .*scale_shift\[0\].*float64",
    ),
    ({"lengths": [1.0, 2.0]}, TypeError, "lengths: .*integers.*float64"),
    ({"lengths": numpy.array([True, False])}, TypeError, "lengths: .*integers.*bool"),
    ({"lengths": [1]}, ValueError, r"lengths: .*\(2,\).*\(1,\)"),
    ({"lengths": 3}, ValueError, r"lengths: .*\(2,\).*\(\)"),
    ({"lengths": [3, 4]}, ValueError, "lengths: .*from 0 to 3.*4 at index 1"),
    ({"lengths": [-1, 3]}, ValueError, "lengths: .*from 0 to 3.*-1 at index 0"),
    ({"skp": X}, TypeError, "'skp'"),
]


@pytest.mark.parametrize(("options", "error", "words"), REFUSED, ids=lambda value: None)
def test_what_is_refused(options, error, words):
    out = numpy.full_like(X, 7)
    with pytest.raises(error, match=words):
        groupnorm.group_norm(X, 2, out=out, **options)
    assert (out == 7).all()
    ones = numpy.ones((2, 2))
    if "skp" not in options:
        with pytest.raises(error, match=words):
            groupnorm.group_norm_backward(X, X, 2, None, ones, ones, **options)


def test_what_is_refused_of_some_norms():
    x = normal((2, 4, 3, 5))
    with pytest.raises(ValueError, match=r"lengths: .*positions.*\(2, 4, 3, 5\)"):
        groupnorm.group_norm(x, 2, lengths=[1, 2])
    with pytest.raises(ValueError, match="lengths: .*several examples"):
        groupnorm.batch_norm(x, None, None, training=True, lengths=[1, 2])
    with pytest.raises(ValueError, match=r"lengths: .*\[N, L, .*\(2, 3\)"):
        groupnorm.layer_norm(x[:, :, 0, :3][:, 0], 3, lengths=[1, 2])
    with pytest.raises(ValueError, match="out: .*overlap shift"):
        shift = normal((2, 4))
        memory = numpy.zeros(200, "float32")
        out = memory[:120].reshape(2, 4, 3, 5)
        shift = memory[4:12].reshape(2, 4)
        groupnorm.group_norm(x, 2, shift=shift, out=out)
    with pytest.raises(ValueError, match="dsum: .*shape and dtype of x"):
        groupnorm.group_norm_backward(x, x, 2, None, *[numpy.ones((2, 2))] * 2, dsum=x[:1])
