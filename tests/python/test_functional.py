"""groupnorm's functions of NumPy arrays against the same norms in plain float64 NumPy."""

import array
import gc
import math
import os
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
import warnings
from typing import Any

import norms
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from norms import ACTIVATIONS, EPS32, LAYOUTS, assert_near, exact, normal, other_layout

import groupnorm

DTYPES = norms.dtypes()
SHAPES = [(5, 12), (3, 12, 7), (2, 12, 5, 6), (2, 6, 3, 4, 5)]


def name_of(dtype):
    return getattr(dtype, "name", None)


def with_axes(shape, layout):
    """The shape [N, C, ...] with its axes in the order of a layout."""
    return shape if layout == "channels_first" else (shape[0], *shape[2:], shape[1])


def call(norm, x, weight=None, bias=None, *, groups=3, axes=1, **options):
    """A norm by its name; batch norm as in training."""
    if norm == "group":
        return groupnorm.group_norm(x, groups, weight, bias, **options)
    if norm == "instance":
        return groupnorm.instance_norm(x, weight, bias, **options)
    if norm == "batch":
        options.pop("correction", None)
        return groupnorm.batch_norm(x, None, None, weight, bias, True, **options)
    options.pop("layout", None)
    function = {"layer": groupnorm.layer_norm, "rms": groupnorm.rms_norm}[norm]
    if norm == "rms":
        options.pop("correction", None)
    return function(x, x.shape[-axes:], weight, bias, **options)


def param_shape(norm, x, axes, layout):
    if norm in ("layer", "rms"):
        return x.shape[-axes:]
    return (x.shape[1 if layout == "channels_first" else -1],)


@pytest.fixture(autouse=True)
def default_threads():
    yield
    groupnorm.set_num_threads(0)


# ---- Values


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("norm", ["group", "instance", "batch", "layer", "rms"])
def test_every_norm_dtype_rank_and_layout(norm, dtype, shape, layout):
    x = normal(with_axes(shape, layout), dtype, mean=3)
    params = param_shape(norm, x, 1, layout)
    weight, bias = (normal(params, norms.param_dtype(dtype), seed) for seed in (1, 2))
    y = call(norm, x, weight, bias, layout=layout)
    wanted = exact(norm, x, weight, bias, groups=3, layout=layout)
    assert type(y) is numpy.ndarray and y.dtype == dtype
    assert_near(y, wanted, large_mean=(abs(wanted.mean) * wanted.rstd).max())


@st.composite
def calls(draw):
    """Any call on a small array: (norm, x, weight, bias, options)."""
    norm = draw(st.sampled_from(["group", "instance", "batch", "layer", "rms"]))
    dtype = draw(st.sampled_from(DTYPES))
    layout = draw(st.sampled_from(LAYOUTS))
    groups, channels = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    spatial = draw(st.lists(st.integers(1, 9), max_size=3))
    shape = with_axes((draw(st.integers(2, 4)), groups * channels, *spatial), layout)
    x = normal(shape, dtype, draw(st.integers(0, 99)), draw(st.sampled_from([0.0, -2.0, 30.0])))
    memory = draw(st.sampled_from(["c", "other", "broadcast", *norms.COPIED]))
    if memory == "other":
        x = other_layout(x, layout)
    elif memory == "broadcast":
        x = numpy.broadcast_to(x[:1], x.shape)
    elif memory != "c" and not (memory == "byte-swapped" and dtype.name == "bfloat16"):
        x = norms.COPIED[memory](x)
    axes = draw(st.integers(1, x.ndim - 1))
    params = param_shape(norm, x, axes, layout)
    if norm not in ("layer", "rms") and draw(st.booleans()):
        params = (x.shape[0], *params)
    param = draw(st.sampled_from([dtype, norms.param_dtype(dtype)]))
    weight = draw(st.sampled_from([None, normal(params, param, 1)]))
    bias = draw(st.sampled_from([None, normal(params, param, 2)]))
    options = {
        "layout": layout,
        "eps": draw(st.sampled_from([1e-5, 1e-3, 1])),
        "activation": draw(st.sampled_from([None, *ACTIVATIONS])),
    }
    if norm not in ("batch", "rms") and x.size > 2 * x.shape[0] * groups * channels:
        options["correction"] = draw(st.integers(0, 1))
    return norm, x, weight, bias, groups, axes, options


@given(calls())
def test_any_call(sample):
    norm, x, weight, bias, groups, axes, options = sample
    before = x.tobytes()
    y = call(norm, x, weight, bias, groups=groups, axes=axes, **options)
    wanted = exact(norm, x, weight, bias, groups=groups, axes=axes, **options)
    large_mean = (abs(wanted.mean) * wanted.rstd).max()
    assert_near(y, wanted, options["activation"], large_mean)
    assert x.tobytes() == before

    same = call(norm, x, weight, bias, groups=groups, axes=axes, return_statistics=True, **options)
    assert same[0].tobytes() == y.tobytes() and same[0].strides == y.strides
    statistics = [wanted.rstd] if norm == "rms" else [wanted.mean, wanted.rstd]
    assert len(same) == 1 + len(statistics)
    for got, value in zip(same[1:], statistics, strict=True):
        assert got.dtype == numpy.float64 and got.shape == value.shape
        # m2 is a sum of f32 chains, good to about 8 eps32 here.
        numpy.testing.assert_allclose(got, value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mean", [1e3, -1e4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("norm", ["group", "instance", "batch", "layer"])
def test_keeps_its_digits_beside_a_large_mean(norm, layout, mean):
    x = normal(with_axes((4, 32, 24, 24), layout), mean=mean)
    params = param_shape(norm, x, 1, layout)
    weight, bias = normal(params, seed=1, mean=1), normal(params, seed=2)
    y = call(norm, x, weight, bias, groups=8, layout=layout)
    assert_near(y, exact(norm, x, weight, bias, groups=8, layout=layout))


def test_a_constant_block_gives_the_bias():
    x = numpy.full((2, 4, 5), 1e6, numpy.float32)
    bias = normal(4)
    y = groupnorm.group_norm(x, 2, normal(4, seed=1), bias)
    assert (y == bias[:, None]).all()
    assert (groupnorm.group_norm(x, 2, eps=0) == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (2, 0, 3), (0, 4)], ids=str)
def test_empty_arrays(shape, dtype):
    x = numpy.empty(shape, dtype)
    c = shape[1]
    weight = numpy.ones(c, norms.param_dtype(dtype))
    for layout in LAYOUTS:
        moved = x if layout == "channels_first" else numpy.moveaxis(x, 1, -1)
        y, mean, rstd = groupnorm.group_norm(
            moved, 2, weight, layout=layout, return_statistics=True
        )
        assert y.shape == moved.shape and y.dtype == dtype
        assert mean.shape == rstd.shape == (shape[0], 2)
        assert numpy.isnan(mean).all() and numpy.isnan(rstd).all()
        dx, dweight, dbias = groupnorm.group_norm_backward(
            y, moved, 2, weight, mean, rstd, layout=layout
        )
        assert dx.shape == moved.shape
        assert (dweight == numpy.zeros(c)).all() and (dbias == numpy.zeros(c)).all()
    assert groupnorm.instance_norm(x).shape == shape
    assert groupnorm.layer_norm(x, shape[1:]).shape == shape
    running = numpy.zeros(c, "float32"), numpy.ones(c, "float32")
    assert groupnorm.batch_norm(x, *running, training=True).shape == shape
    assert (running[0] == 0).all() and (running[1] == 1).all()


# ---- Memory


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reads_either_layout_where_it_lies(layout):
    x = normal(with_axes((2, 8, 64, 64), layout))
    for taken in (x, other_layout(x, layout)):
        y, copies = copies_during(groupnorm.group_norm, taken, 4, layout=layout)
        assert copies == 1  # y
        assert y.strides == taken.strides
        _, copies = copies_during(groupnorm.group_norm, taken, 4, layout=layout, out=taken)
        assert copies == 0


@pytest.mark.parametrize("memory", norms.COPIED)
def test_copies_any_other_memory_once(memory):
    x = normal((2, 8, 64, 64))
    view = norms.COPIED[memory](x)
    y, copies = copies_during(groupnorm.group_norm, view, 4)
    assert copies == 2  # that of x, and y
    assert y.flags.c_contiguous
    assert y.tobytes() == groupnorm.group_norm(x, 4).tobytes()
    mean, rstd = groupnorm.group_norm(x, 4, return_statistics=True)[1:]
    dx = groupnorm.group_norm_backward(view, view, 4, None, mean, rstd)[0]
    assert dx.tobytes() == groupnorm.group_norm_backward(x, x, 4, None, mean, rstd)[0].tobytes()


def copies_during(function, x, *arguments, **options):
    """What it returns, and the memory that it took at most, in units of x."""
    gc.collect()
    tracemalloc.start()
    try:
        result = function(x, *arguments, **options)
        return result, round(tracemalloc.get_traced_memory()[1] / x.nbytes, 1)
    finally:
        tracemalloc.stop()


def test_parameters_of_any_memory():
    x = normal((3, 8, 5))
    both = normal((3, 16), mean=1)
    weight, bias = numpy.split(both, 2, axis=1)  # rows apart, as adaptive norms make them
    y = groupnorm.group_norm(x, 2, weight, bias)
    assert y.tobytes() == groupnorm.group_norm(x, 2, weight.copy(), bias.copy()).tobytes()
    flat = normal(8)
    y = groupnorm.group_norm(x, 2, flat)
    for moved in (norms.sliced(flat), numpy.flip(numpy.flip(flat).copy()), norms.misaligned(flat)):
        assert groupnorm.group_norm(x, 2, moved).tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_out(layout, dtype):
    x = normal(with_axes((2, 6, 5, 4), layout), dtype)
    for source in (x, other_layout(x, layout)):
        y = groupnorm.group_norm(source, 3, layout=layout)
        out = numpy.empty_like(source)
        assert groupnorm.group_norm(source, 3, layout=layout, out=out) is out
        assert out.tobytes() == y.tobytes()
        in_place = source.copy(order="K")
        assert groupnorm.group_norm(in_place, 3, layout=layout, out=in_place) is in_place
        assert in_place.tobytes() == y.tobytes()
        # Another view of the same memory is in place as well.
        in_place = source.copy(order="K")
        groupnorm.group_norm(in_place[:], 3, layout=layout, out=in_place)
        assert in_place.tobytes() == y.tobytes()
    # out in the other layout, and x that must be copied.
    wanted = exact("group", x, groups=3, layout=layout)
    out = numpy.empty_like(other_layout(x, layout))
    assert_near(groupnorm.group_norm(x, 3, layout=layout, out=out), wanted)
    assert_near(groupnorm.group_norm(norms.sliced(x), 3, layout=layout, out=out), wanted)


@pytest.mark.parametrize("norm", ["group", "instance", "batch", "layer", "rms"])
def test_every_norm_takes_out(norm):
    x = normal((3, 6, 4))
    wanted = call(norm, x)
    assert call(norm, x, out=x) is x
    assert x.tobytes() == wanted.tobytes()


# ---- The same bits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("groups", [1, 8, 32])
def test_same_bits_for_any_number_of_threads(groups, layout):
    x = normal(with_axes((3, 32, 40, 40), layout))
    dy = normal(x.shape, seed=1)
    weight = normal(32, seed=2)

    def run():
        y, mean, rstd = groupnorm.group_norm(
            x, groups, weight, layout=layout, return_statistics=True
        )
        gradients = groupnorm.group_norm_backward(dy, x, groups, weight, mean, rstd, layout=layout)
        return [result.tobytes() for result in (y, mean, rstd, *gradients)]

    groupnorm.set_num_threads(1)
    wanted = run()
    for threads in (2, 3, 4):
        groupnorm.set_num_threads(threads)
        assert run() == wanted, threads


@given(
    st.sampled_from(DTYPES),
    st.sampled_from(LAYOUTS),
    st.lists(st.integers(1, 12), max_size=2),
    st.integers(2, 5),
)
def test_same_bits_alone_and_in_a_batch(dtype, layout, spatial, n):
    x = normal(with_axes((n, 12, *spatial), layout), dtype, mean=5)
    together = groupnorm.group_norm(x, 3, layout=layout)
    for i in range(n):
        alone = groupnorm.group_norm(x[i : i + 1], 3, layout=layout)
        assert alone.tobytes() == together[i : i + 1].tobytes()


# ---- Gradients


def differences(loss, value):
    """The gradient of loss by central differences, changing value in place."""
    gradient = numpy.empty_like(value)
    step = 1e-5
    for index in numpy.ndindex(value.shape):
        old = value[index]
        value[index] = old + step
        above = loss()
        value[index] = old - step
        gradient[index] = (above - loss()) / (2 * step)
        value[index] = old
    return gradient


def backward(norm, dy, x, weight, statistics, *, groups=3, axes=1, **options):
    if norm == "group":
        return groupnorm.group_norm_backward(dy, x, groups, weight, *statistics, **options)
    if norm == "instance":
        return groupnorm.instance_norm_backward(dy, x, weight, *statistics, **options)
    if norm == "batch":
        return groupnorm.batch_norm_backward(dy, x, weight, *statistics, **options)
    options.pop("layout", None)
    function = {"layer": groupnorm.layer_norm_backward, "rms": groupnorm.rms_norm_backward}[norm]
    return function(dy, x, x.shape[-axes:], weight, *statistics, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS[1:]])
@pytest.mark.parametrize("norm", ["group", "instance", "batch", "layer", "rms"])
def test_gradients_by_central_differences(norm, activation, layout):
    x, dy = (normal(with_axes((2, 6, 3, 2), layout), "float64", seed) for seed in (3, 4))
    params = param_shape(norm, x, 2, layout)
    weight, bias = (normal(params, "float64", seed) for seed in (5, 6))
    options = {"activation": activation, "layout": layout}

    def loss():
        y = exact(norm, x, weight, bias, groups=3, axes=2, eps=1e-3, **options).y
        return (dy * y).sum()

    _, *statistics = call(
        norm, x, weight, bias, axes=2, eps=1e-3, return_statistics=True, **options
    )
    got = backward(norm, dy, x, weight, statistics, axes=2, bias=bias, **options)
    for gradient, value in zip(got, (x, weight, bias), strict=True):
        assert gradient.dtype == value.dtype
        # The differences have an error of about step^2, and eps64 / step of the loss.
        numpy.testing.assert_allclose(gradient, differences(loss, value), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("adaptive", [False, True])
def test_gradients_of_corrected_and_adaptive_norms(adaptive, correction):
    x, dy = (normal((2, 6, 3), "float64", seed) for seed in (3, 4))
    weight = normal((2, 6) if adaptive else 6, "float64", 5)

    def loss():
        return (dy * exact("group", x, weight, groups=2, correction=correction).y).sum()

    _, mean, rstd = groupnorm.group_norm(
        x, 2, weight, correction=correction, return_statistics=True
    )
    dx, dweight, dbias = groupnorm.group_norm_backward(
        dy, x, 2, weight, mean, rstd, correction=correction
    )
    numpy.testing.assert_allclose(dx, differences(loss, x), rtol=1e-6, atol=1e-8)
    numpy.testing.assert_allclose(dweight, differences(loss, weight), rtol=1e-6, atol=1e-8)
    numpy.testing.assert_allclose(dbias, dy.sum(2) if adaptive else dy.sum((0, 2)), rtol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_gradients_in_every_dtype(dtype, layout):
    shape = with_axes((2, 12, 7, 5), layout)
    x, dy = normal(shape, dtype, 1, mean=10), normal(shape, dtype, 2)
    weight = normal(12, norms.param_dtype(dtype), 3)
    _, mean, rstd = groupnorm.group_norm(x, 3, weight, layout=layout, return_statistics=True)
    got = groupnorm.group_norm_backward(dy, x, 3, weight, mean, rstd, layout=layout)

    # The formulas of docs/mathematics.md on [n, groups, channels of a group, s].
    ncs, dz = (norms.numpy_norms.as_ncs(a, layout).reshape(2, 3, 4, 35) for a in (x, dy))
    gamma = weight.astype("float64").reshape(1, 3, 4, 1)
    rstds = rstd[:, :, None, None]
    xhat = (ncs - mean[:, :, None, None]) * rstds
    m = 4 * 35
    d, e = ((term).sum((2, 3), keepdims=True) / m for term in (gamma * dz, gamma * dz * xhat))
    dx = rstds * (gamma * dz - d - xhat * e)
    terms = (rstds * (abs(gamma * dz) + abs(d) + abs(xhat * e))).max((2, 3), keepdims=True)
    eps = norms.EPS64 if dtype == numpy.float64 else EPS32
    relative, absolute = norms.HALF_STEP.get(dtype.name, (0, 0))

    def back(array):
        array = numpy.broadcast_to(array, dz.shape).reshape(2, 12, 35)
        return norms.numpy_norms.from_ncs(array, shape, layout)

    bound = 4 * eps * back(terms) + relative * abs(back(dx)) + absolute
    assert got[0].dtype == dtype and got[0].shape == shape
    assert (abs(got[0].astype("float64") - back(dx)) <= bound).all()
    for gradient, products in zip(got[1:], (dz * xhat, dz), strict=True):
        assert gradient.dtype == weight.dtype
        error = abs(gradient - products.sum((0, 3)).reshape(12))
        assert (error <= 4 * eps * abs(products).sum((0, 3)).reshape(12)).all()


def test_gradients_without_parameters():
    x, dy, bias = normal((2, 4, 3)), normal((2, 4, 3), seed=1), normal(4)
    _, mean, rstd = groupnorm.group_norm(x, 2, return_statistics=True)
    dx, dweight, dbias = groupnorm.group_norm_backward(dy, x, 2, None, mean, rstd)
    assert dweight is None and dbias is None
    same, dweight, dbias = groupnorm.group_norm_backward(dy, x, 2, None, mean, rstd, bias=bias)
    assert dweight is None
    assert dx.tobytes() == same.tobytes()
    numpy.testing.assert_allclose(dbias, dy.sum((0, 2)), rtol=1e-6, atol=1e-6)


def test_gradients_of_mixed_memory():
    x, dy = normal((2, 6, 5, 4)), normal((2, 6, 5, 4), seed=1)
    _, mean, rstd = groupnorm.group_norm(x, 3, return_statistics=True)
    wanted = groupnorm.group_norm_backward(dy, x, 3, None, mean, rstd)[0]
    for moved_x in (x, other_layout(x)):
        for moved_dy in (dy, other_layout(dy), numpy.asfortranarray(dy)):
            dx = groupnorm.group_norm_backward(moved_dy, moved_x, 3, None, mean, rstd)[0]
            assert dx.strides == moved_x.strides
            numpy.testing.assert_allclose(dx, wanted, rtol=1e-5, atol=1e-6)


# ---- Batch normalization


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_batch_norm_moves_the_running_statistics(dtype):
    x = normal((4, 3, 5), mean=2)
    running_mean, running_var = normal(3, dtype, 1), abs(normal(3, dtype, 2))
    unbiased = x.astype("float64").var((0, 2), ddof=1)
    means = x.astype("float64").mean((0, 2))
    wanted_mean = 0.75 * running_mean.astype("float64") + 0.25 * means
    wanted_var = 0.75 * running_var.astype("float64") + 0.25 * unbiased
    y, mean, _ = groupnorm.batch_norm(
        x, running_mean, running_var, training=True, momentum=0.25, return_statistics=True
    )
    assert_near(y, exact("batch", x))
    numpy.testing.assert_allclose(mean, means, rtol=1e-6)
    assert running_mean.dtype == running_var.dtype == dtype
    rtol = 2 * numpy.finfo(dtype).eps + 2 * EPS32
    numpy.testing.assert_allclose(running_mean, wanted_mean, rtol=rtol)
    numpy.testing.assert_allclose(running_var, wanted_var, rtol=rtol)


def test_batch_norm_moves_running_statistics_of_any_memory():
    x = normal((4, 3, 5), mean=2)
    plain = numpy.zeros(3, "float32"), numpy.ones(3, "float32")
    groupnorm.batch_norm(x, *plain, training=True)
    for move in (norms.sliced, norms.COPIED["byte-swapped"], norms.misaligned):
        moved = move(numpy.zeros(3, "float32")), move(numpy.ones(3, "float32"))
        groupnorm.batch_norm(x, *moved, training=True)
        numpy.testing.assert_array_equal(moved, plain)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_batch_norm_by_running_statistics(dtype, layout):
    x = normal(with_axes((4, 3, 5, 2), layout), dtype, mean=2)
    running_mean, running_var = normal(3, seed=1), 0.5 + abs(normal(3, seed=2))
    weight = normal(3, norms.param_dtype(dtype), 3)
    before = running_mean.tobytes() + running_var.tobytes()
    y, mean, rstd = groupnorm.batch_norm(
        x, running_mean, running_var, weight, layout=layout, return_statistics=True
    )
    assert running_mean.tobytes() + running_var.tobytes() == before
    assert (mean == running_mean).all()
    numpy.testing.assert_allclose(rstd, 1 / numpy.sqrt(running_var.astype("float64") + 1e-5))
    moved = numpy.moveaxis(x.astype("float64"), 1 if layout == "channels_first" else -1, -1)
    z = numpy.moveaxis((moved - mean) * rstd * weight, -1, 1 if layout == "channels_first" else -1)
    assert_near(y, norms.Exact(z, 1 + abs(z), mean, rstd), large_mean=8)

    dy = normal(x.shape, dtype, 5)
    dx, dweight, dbias = groupnorm.batch_norm_backward(
        dy, x, weight, mean, rstd, training=False, layout=layout
    )
    moved_dy = numpy.moveaxis(dy.astype("float64"), 1 if layout == "channels_first" else -1, -1)
    wanted = moved_dy * rstd * weight
    relative = norms.HALF_STEP.get(dtype.name, (2 * EPS32, 0))[0] + 2 * EPS32
    got = numpy.moveaxis(dx.astype("float64"), 1 if layout == "channels_first" else -1, -1)
    assert (abs(got - wanted) <= relative * abs(wanted)).all()
    products = moved_dy * (moved - mean) * rstd
    error = abs(dweight - products.sum((0, 1, 2)))
    assert (error <= 4 * EPS32 * abs(products).sum((0, 1, 2))).all()
    assert (abs(dbias - moved_dy.sum((0, 1, 2))) <= 4 * EPS32 * abs(moved_dy).sum((0, 1, 2))).all()


def test_batch_norm_of_a_running_variance_that_is_none():
    x = normal((4, 3))
    mean, negative = numpy.zeros(3, "float32"), numpy.full(3, -1, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numpy.isnan(groupnorm.batch_norm(x, mean, negative)).all()
        # As of a constant block.
        assert (groupnorm.batch_norm(x, mean, 0 * negative, eps=0) == 0).all()
        constant = numpy.ones((4, 3), "float32")
        running = mean.copy(), numpy.ones(3, "float32")
        groupnorm.batch_norm(constant, *running, training=True, eps=0, momentum=1)
        assert (running[0] == 1).all() and (running[1] == 0).all()


# ---- Arrays of others


def test_arrays_by_dlpack():
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(6)
    y = groupnorm.group_norm(x, 3, weight)
    assert type(y) is numpy.ndarray
    assert y.tobytes() == groupnorm.group_norm(x.numpy(), 3, weight.numpy()).tobytes()
    last = x.to(memory_format=torch.channels_last)
    assert groupnorm.group_norm(last, 3).strides == tuple(4 * s for s in last.stride())
    assert groupnorm.group_norm(x[:0], 3).shape == (0, 6, 5, 4)
    _, mean, rstd = groupnorm.group_norm(x, 3, return_statistics=True)
    assert groupnorm.group_norm_backward(x, x, 3, weight, mean, rstd)[0].shape == x.shape

    with pytest.raises(TypeError, match=r"x: must be an array that NumPy can read; got Tensor"):
        groupnorm.group_norm(x.requires_grad_(), 3)
    with pytest.raises(TypeError, match=r"x: must be float16, .*; got int64"):
        groupnorm.group_norm(x.detach().long(), 3)


@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "slice"])
def test_bfloat16_by_dlpack(memory):
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    if memory == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif memory == "slice":
        x = x[:, :, 1:, ::2]
    same = x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    y = groupnorm.group_norm(x, 3, torch.ones(6).bfloat16())
    assert y.dtype == ml_dtypes.bfloat16
    assert y.tobytes() == groupnorm.group_norm(same, 3).tobytes()
    with pytest.raises(TypeError, match=r"x: must be an array that NumPy can read; got Tensor"):
        groupnorm.group_norm(x.requires_grad_(), 3)


def test_bfloat16_without_ml_dtypes():
    torch = pytest.importorskip("torch")
    x = torch.zeros(2, 6, 4, dtype=torch.bfloat16)
    code = (
        "import sys, torch, groupnorm; sys.modules['ml_dtypes'] = None\n"
        f"groupnorm.group_norm(torch.zeros({tuple(x.shape)}, dtype=torch.bfloat16), 3)"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "TypeError: x: bfloat16 in NumPy needs the package ml_dtypes" in ran.stderr


def test_arrays_by_other_protocols(tmp_path):
    x = normal((3, 4), "float64")
    wanted = groupnorm.group_norm(x, 2)

    class Wrapped:
        def __array__(self, dtype=None, copy=None):
            return x

    path = tmp_path / "x.npy"
    numpy.save(path, x)
    sources = [
        Wrapped(),
        x.tolist(),
        memoryview(x),
        numpy.load(path, mmap_mode="r"),
        x.view(type("Subclass", (numpy.ndarray,), {})),
    ]
    for source in sources:
        y = groupnorm.group_norm(source, 2)
        assert type(y) is numpy.ndarray
        numpy.testing.assert_array_equal(y, wanted)
    weight = array.array("d", [1, 2, 3, 4])
    y = groupnorm.group_norm(x, 2, weight)
    numpy.testing.assert_array_equal(y, groupnorm.group_norm(x, 2, numpy.array(weight)))


# ---- Refusals

wrong: Any = groupnorm  # for arguments that a type checker refuses too

X = normal((2, 6, 4))
READ_ONLY = numpy.zeros((2, 6, 4), "float32")
READ_ONLY.flags.writeable = False

REFUSED = {
    "integers": (
        lambda **o: wrong.group_norm(numpy.ones((2, 6), int), 3, **o),
        TypeError,
        "x: must be float16, bfloat16, float32 or float64; got int64",
    ),
    "complex": (
        lambda **o: wrong.group_norm(numpy.ones((2, 6), complex), 3, **o),
        TypeError,
        "x: must be float16, bfloat16, float32 or float64; got complex128",
    ),
    "no array": (
        lambda **o: wrong.group_norm(None, 3, **o),
        TypeError,
        "x: must be float16, bfloat16, float32 or float64; got object",
    ),
    "ragged": (
        lambda **o: wrong.group_norm([[1.0], [1.0, 2.0]], 3, **o),
        TypeError,
        "x: must be an array that NumPy can read; got list: ",
    ),
    "masked": (
        lambda **o: wrong.group_norm(numpy.ma.masked_less(X, 0), 3, **o),
        TypeError,
        "x: must not be a masked array: every element would count",
    ),
    "rank 1": (
        lambda **o: wrong.group_norm(X[0, 0], 1, **o),
        ValueError,
        "x: must be [N, C, ...], of rank 2 or more; got shape (4,)",
    ),
    "rank 1, channels last": (
        lambda **o: wrong.group_norm(X[0, 0], 1, layout="channels_last", **o),
        ValueError,
        "x: must be [N, ..., C], of rank 2 or more; got shape (4,)",
    ),
    "rank 0": (
        lambda **o: wrong.instance_norm(numpy.float32(1), **o),
        ValueError,
        "x: must be [N, C, ...], of rank 2 or more; got shape ()",
    ),
    "groups that do not divide": (
        lambda **o: wrong.group_norm(X, 4, **o),
        ValueError,
        "num_groups: must be at least 1 and divide the 6 channels of x; got 4",
    ),
    "no groups": (
        lambda **o: wrong.group_norm(X, 0, **o),
        ValueError,
        "num_groups: must be at least 1 and divide the 6 channels of x; got 0",
    ),
    "negative groups": (
        lambda **o: wrong.group_norm(X, -3, **o),
        ValueError,
        "num_groups: must be at least 1 and divide the 6 channels of x; got -3",
    ),
    "very many groups": (
        lambda **o: wrong.group_norm(X, 2**70, **o),
        ValueError,
        "num_groups: must be at least 1 and divide the 6 channels of x; got 1180591620717411303424",
    ),
    "groups by layout": (
        lambda **o: wrong.group_norm(X, 3, layout="channels_last", **o),
        ValueError,
        "num_groups: must be at least 1 and divide the 4 channels of x; got 3",
    ),
    "groups of float": (
        lambda **o: wrong.group_norm(X, 3.0, **o),
        TypeError,
        "num_groups: must be an integer; got 3.0",
    ),
    "groups in a list": (
        lambda **o: wrong.group_norm(X, [3], **o),
        TypeError,
        "num_groups: must be an integer; got [3]",
    ),
    "layout": (
        lambda **o: wrong.group_norm(X, 3, layout="NHWC", **o),
        ValueError,
        "layout: must be 'channels_first' or 'channels_last'; got 'NHWC'",
    ),
    "activation": (
        lambda **o: wrong.group_norm(X, 3, activation="swish", **o),
        ValueError,
        "activation: must be none, relu, silu, gelu, gelu_tanh or hard_swish; got 'swish'",
    ),
    "activation of no name": (
        lambda **o: wrong.group_norm(X, 3, activation=numpy.tanh, **o),
        TypeError,
        "activation: must be a str or None; got <ufunc 'tanh'>",
    ),
    "eps below 0": (
        lambda **o: wrong.group_norm(X, 3, eps=-1e-5, **o),
        ValueError,
        "eps: must be finite and not negative; got eps=-1e-05",
    ),
    "eps of NaN": (
        lambda **o: wrong.group_norm(X, 3, eps=math.nan, **o),
        ValueError,
        "eps: must be finite and not negative; got eps=nan",
    ),
    "eps of str": (
        lambda **o: wrong.group_norm(X, 3, eps="1e-5", **o),
        TypeError,
        "eps: must be a number; got '1e-5'",
    ),
    "eps in an array": (
        lambda **o: wrong.group_norm(X, 3, eps=numpy.ones(2), **o),
        TypeError,
        "eps: must be a number; got array([1., 1.])",
    ),
    "correction": (
        lambda **o: wrong.group_norm(X, 3, correction=2, **o),
        ValueError,
        "correction: must be 0 (divide by m) or 1 (divide by m - 1); got 2",
    ),
    "correction of float": (
        lambda **o: wrong.group_norm(X, 3, correction=1.0, **o),
        TypeError,
        "correction: must be an integer; got 1.0",
    ),
    "weight of another shape": (
        lambda **o: wrong.group_norm(X, 3, numpy.ones(5, "float32"), **o),
        ValueError,
        "weight: must have shape (6,) or (2, 6) for this x; got (5,)",
    ),
    "scalar weight": (
        lambda **o: wrong.group_norm(X, 3, numpy.float32(1), **o),
        ValueError,
        "weight: must have shape (6,) or (2, 6) for this x; got ()",
    ),
    "weight of the spatial size": (
        lambda **o: wrong.group_norm(X, 3, numpy.ones((6, 4), "float32"), **o),
        ValueError,
        "weight: must have shape (6,) or (2, 6) for this x; got (6, 4)",
    ),
    "weight of another dtype": (
        lambda **o: wrong.group_norm(X, 3, numpy.ones(6), **o),
        TypeError,
        "weight: must be float32, as x is; got float64",
    ),
    "weight of another dtype beside float16": (
        lambda **o: wrong.group_norm(X.astype("float16"), 3, numpy.ones(6), **o),
        TypeError,
        "weight: must be float16, as x is, or float32; got float64",
    ),
    "weight of another dtype beside float64": (
        lambda **o: wrong.group_norm(X.astype("float64"), 3, numpy.ones(6, "float32"), **o),
        TypeError,
        "weight: must be float64, as x is; got float32",
    ),
    "weight of integers": (
        lambda **o: wrong.group_norm(X, 3, [1] * 6, **o),
        TypeError,
        "weight: must be float16, bfloat16, float32 or float64; got int64",
    ),
    "bias alone": (
        lambda **o: wrong.group_norm(X, 3, None, numpy.ones(5, "float32"), **o),
        ValueError,
        "bias: must have shape (6,) or (2, 6) for this x; got (5,)",
    ),
    "bias unlike weight": (
        lambda **o: wrong.group_norm(
            X, 3, numpy.ones(6, "float32"), numpy.ones((2, 6), "float32"), **o
        ),
        ValueError,
        "bias: must have the shape and dtype of weight, (6,) float32; got (2, 6) float32",
    ),
    "normalized_shape": (
        lambda **o: wrong.layer_norm(X, (6, 3), **o),
        ValueError,
        (
            "normalized_shape: must be the last sizes of x, at least one, of shape (2, 6, 4); "
            "got (6, 3)"
        ),
    ),
    "normalized_shape of too many": (
        lambda **o: wrong.layer_norm(X, (1, 2, 6, 4), **o),
        ValueError,
        (
            "normalized_shape: must be the last sizes of x, at least one, of shape (2, 6, 4); "
            "got (1, 2, 6, 4)"
        ),
    ),
    "normalized_shape of none": (
        lambda **o: wrong.rms_norm(X, (), **o),
        ValueError,
        "normalized_shape: must be the last sizes of x, at least one, of shape (2, 6, 4); got ()",
    ),
    "normalized_shape of float": (
        lambda **o: wrong.layer_norm(X, (6, 4.0), **o),
        TypeError,
        "normalized_shape: must be an integer; got 4.0",
    ),
    "layer weight": (
        lambda **o: wrong.layer_norm(X, (6, 4), numpy.ones(24, "float32"), **o),
        ValueError,
        "weight: must have shape (6, 4) for this x; got (24,)",
    ),
    "momentum": (
        lambda **o: wrong.batch_norm(X, None, None, training=True, momentum=2, **o),
        ValueError,
        "momentum: must be from 0 to 1; got 2",
    ),
    "momentum of none": (
        lambda **o: wrong.batch_norm(X, None, None, training=True, momentum=None, **o),
        TypeError,
        "momentum: must be a number; got None",
    ),
    "no running statistics": (
        lambda **o: wrong.batch_norm(X, None, None, **o),
        ValueError,
        "running_mean, running_var: must both be given, or in training both be None",
    ),
    "one running statistic": (
        lambda **o: wrong.batch_norm(X, numpy.ones(6), None, training=True, **o),
        ValueError,
        "running_mean, running_var: must both be given, or in training both be None",
    ),
    "running statistics of another shape": (
        lambda **o: wrong.batch_norm(X, numpy.ones(6), numpy.ones(5), **o),
        ValueError,
        "running_var: must have shape (6,) for this x; got (5,)",
    ),
    "running statistics of integers": (
        lambda **o: wrong.batch_norm(X, numpy.ones(6, int), numpy.ones(6), training=True, **o),
        TypeError,
        "running_mean: must be float16, bfloat16, float32 or float64; got int64",
    ),
    "running statistics that cannot move": (
        lambda **o: wrong.batch_norm(X, [1.0] * 6, [1.0] * 6, training=True, **o),
        TypeError,
        "running_mean: must be a writeable numpy.ndarray in training",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    function, error, message = REFUSED[case]
    for _ in range(2):  # a refusal is not cached away
        with pytest.raises(error, match="^" + re.escape(message)):
            function()
    out = numpy.full(X.shape, 7, "float32")
    with pytest.raises(error):
        function(out=out)
    assert (out == 7).all()


def as_strided_out():
    return numpy.zeros((2, 6, 8), "float32")[..., ::2]


REFUSED_OUT = {
    "no array": (lambda: [0.0], TypeError, "out: must be a numpy.ndarray; got list"),
    "shape": (
        lambda: numpy.zeros((2, 6, 5), "float32"),
        ValueError,
        "out: must have the shape and dtype of x, (2, 6, 4) float32; got (2, 6, 5) float32",
    ),
    "dtype": (
        lambda: numpy.zeros((2, 6, 4)),
        ValueError,
        "out: must have the shape and dtype of x, (2, 6, 4) float32; got (2, 6, 4) float64",
    ),
    "byte order": (
        lambda: numpy.zeros((2, 6, 4), numpy.dtype("float32").newbyteorder("S")),
        ValueError,
        (
            "out: must have the shape and dtype of x, (2, 6, 4) float32; "
            "got (2, 6, 4) float32 in the other byte order"
        ),
    ),
    "read-only": (lambda: READ_ONLY, ValueError, "out: must be writeable"),
    "strides": (
        as_strided_out,
        ValueError,
        (
            "out: must be aligned and contiguous, in C order or the other layout; "
            "got strides (192, 32, 8)"
        ),
    ),
    "misaligned": (
        lambda: norms.misaligned(numpy.zeros((2, 6, 4), "float32")),
        ValueError,
        "out: must be aligned and contiguous",
    ),
}


@pytest.mark.parametrize("case", REFUSED_OUT)
def test_refuses_out(case):
    make, error, message = REFUSED_OUT[case]
    out = make()
    before = numpy.array(out).tobytes()
    with pytest.raises(error, match="^" + re.escape(message)):
        groupnorm.group_norm(X, 3, out=out)
    assert numpy.array(out).tobytes() == before


def test_refuses_out_that_overlaps():
    memory = normal(2 * 6 * 4 + 1)
    before = memory.tobytes()
    x, out = memory[:-1].reshape(2, 6, 4), memory[1:].reshape(2, 6, 4)
    with pytest.raises(ValueError, match="^out: may be x itself, but must not overlap x$"):
        groupnorm.group_norm(x, 3, out=out)
    with pytest.raises(ValueError, match="^out: may be x itself, but must not overlap x$"):
        groupnorm.group_norm(x[:, ::-1], 3, out=x)
    with pytest.raises(ValueError, match="^out: may be x itself, but must not overlap weight$"):
        groupnorm.group_norm(X, 3, memory[:6], out=out)
    with pytest.raises(ValueError, match="^out: may be x itself, but must not overlap bias$"):
        groupnorm.group_norm(X, 3, None, memory[6:12], out=out)
    with pytest.raises(ValueError, match="^out: may be x itself, .* overlap running_var$"):
        groupnorm.batch_norm(X, numpy.ones(6, "float32"), memory[6:12], training=True, out=out)
    # The same memory in another order is not in place.
    square = normal((2, 4, 4))
    with pytest.raises(ValueError, match="^out: may be x itself, but must not overlap x$"):
        groupnorm.group_norm(square.transpose(0, 2, 1), 2, out=square)
    assert memory.tobytes() == before


def test_a_refused_batch_norm_leaves_the_running_statistics_alone():
    running = numpy.zeros(6, "float32"), numpy.ones(6, "float32")
    for refused in (
        lambda: groupnorm.batch_norm(X, *running, training=True, activation="swish"),
        lambda: groupnorm.batch_norm(X, *running, numpy.ones(6), training=True),
        lambda: groupnorm.batch_norm(X, *running, training=True, eps=-1),
        lambda: groupnorm.batch_norm(X, *running, training=True, out=READ_ONLY),
    ):
        with pytest.raises((TypeError, ValueError)):
            refused()
    assert (running[0] == 0).all() and (running[1] == 1).all()
    one = numpy.ones((1, 6), "float32")
    with pytest.raises(ValueError, match=r"^x: must have two elements a channel or more in train"):
        groupnorm.batch_norm(one, *running, training=True)
    assert (running[0] == 0).all() and (running[1] == 1).all()
    assert groupnorm.batch_norm(one, *running).shape == (1, 6)


def test_refuses_a_variance_of_one_element():
    x = normal((3, 6))
    with pytest.raises(ValueError, match="^correction: 1 divides .* elements that share"):
        groupnorm.instance_norm(x, correction=1)
    assert groupnorm.group_norm(x, 3, correction=1).shape == x.shape
    assert groupnorm.instance_norm(x[:0], correction=1).shape == (0, 6)


def test_refuses_to_differentiate():
    _, mean, rstd = groupnorm.group_norm(X, 3, return_statistics=True)
    for arguments, error, message in [
        ((X[0], X, 3, None, mean, rstd), ValueError, "dy: must have the shape and dtype of x, "),
        ((X.astype("float64"), X, 3, None, mean, rstd), ValueError, "dy: must have the shape and"),
        ((X, X, 3, None, mean.astype("float32"), rstd), ValueError, "mean: must be (2, 3) float64"),
        ((X, X, 3, None, mean, rstd[:1]), ValueError, "rstd: must be (2, 3) float64, as forward"),
        ((X, X, 6, None, mean, rstd), ValueError, "mean: must be (2, 6) float64, as forward"),
        ((X, X, 3, numpy.ones(6), mean, rstd), TypeError, "weight: must be float32, as x is; got"),
        ((X, X, 4, None, mean, rstd), ValueError, "num_groups: must be at least 1 and divide the"),
    ]:
        with pytest.raises(error, match="^" + re.escape(message)):
            groupnorm.group_norm_backward(*arguments)


# ---- Threads and processes


def test_calls_from_many_threads():
    shapes = [(1, 8, 4), (2, 8, 40, 40), (1, 32, 64, 64)]
    xs = [normal(shape, seed=i) for i, shape in enumerate(shapes)]
    wanted = [groupnorm.group_norm(x, 4, return_statistics=True) for x in xs]
    failures = []
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        for turn in range(30):
            k = (i + turn) % len(xs)
            y, mean, rstd = wanted[k]
            got = groupnorm.group_norm(xs[k], 4, return_statistics=True)
            dx = groupnorm.group_norm_backward(y, xs[k], 4, None, mean, rstd)[0]
            if not all(map(numpy.array_equal, got, wanted[k])) or abs(dx).max() > 1:
                failures.append((i, turn))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_works_after_fork():
    x = normal((2, 32, 64, 64))
    groupnorm.set_num_threads(2)
    wanted = groupnorm.group_norm(x, 8).tobytes()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if groupnorm.group_norm(x, 8).tobytes() == wanted else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_set_num_threads():
    default = groupnorm.get_num_threads()
    groupnorm.set_num_threads(3)
    assert groupnorm.get_num_threads() == groupnorm.info()["threads"] == 3
    for count, error in ((-1, ValueError), (1025, ValueError), (2.0, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="^count: must be .*; got"):
            groupnorm.set_num_threads(count)
    assert groupnorm.get_num_threads() == 3
    groupnorm.set_num_threads(0)
    assert groupnorm.get_num_threads() == default


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_uses_as_many_threads_as_set():
    code = """
import os, numpy, groupnorm
def threads(count):
    groupnorm.set_num_threads(count)
    groupnorm.group_norm(x, 8)
    return len(os.listdir("/proc/self/task"))
x = numpy.zeros((4, 32, 64, 64), "float32")
alone = threads(1)
print(threads(3) - alone)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "2\n"


# ---- The rest


def test_suggest_groups():
    assert groupnorm.suggest_groups(64)[:2] == (32, 2)
    suggestion = groupnorm.suggest_groups(48)
    assert (suggestion.groups, suggestion.channels_per_group) == (3, 16)
    assert "16" in suggestion.reason
    with pytest.raises(ValueError, match="^channels: must be at least 1; got"):
        groupnorm.suggest_groups(0)
    with pytest.raises(TypeError, match=r"^channels: must be an integer; got 32\.0"):
        groupnorm.suggest_groups(32.0)


def test_info():
    info = groupnorm.info()
    assert info["version"] == groupnorm.__version__
    assert info["target"] in info["targets"]
    assert info["threads"] >= 1


def test_everything_public_says_what_it_is():
    for name in groupnorm.__all__:
        assert getattr(groupnorm, name).__doc__, name


def test_imports_only_numpy():
    code = "import groupnorm, sys; print([m for m in ('torch', 'ml_dtypes') if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
