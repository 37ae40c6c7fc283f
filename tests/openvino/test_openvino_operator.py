"""groupnorm.openvino.GroupNorm: results, types, threads, files, caches, what is refused."""

import os
import subprocess
import sys

import numpy
import openvino
import pytest
from openvino import opset12 as op
from openvino_models import (
    ACTIVATIONS,
    LAYOUTS,
    assert_near,
    compiled,
    constant,
    convolution,
    exact,
    normal,
    parameter,
    run,
)

import groupnorm
import groupnorm.openvino
from groupnorm.openvino import GroupNorm, _operator, _version

SHAPE, GROUPS = (2, 8, 6, 5), 4
CORES = os.sched_getaffinity(0)
# Multiples of 1/64 below 2, which every type holds.
SCALE, BIAS = (numpy.round(normal((8,), seed=i).clip(-1.9, 1.9) * 64) / 64 for i in (1, 2))
TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


def model(dtype="f32", shape=SHAPE, params="f32", **attributes):
    """x -> y by the operator alone."""
    x = parameter(shape, getattr(openvino.Type, dtype))
    scale, bias = (op.convert(constant(p), params) for p in (SCALE, BIAS))
    return openvino.Model([GroupNorm([x, scale, bias], GROUPS, **attributes)], [x], "norm")


def by_numpy(x, **options):
    return groupnorm.group_norm(x, GROUPS, SCALE, BIAS, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_has_the_bits_of_the_numpy_call(activation, layout):
    options = {"activation": activation, "layout": layout, "eps": 1e-3}
    shape = SHAPE if layout == "channels_first" else (2, 6, 5, 8)
    x = normal(shape, mean=3)
    assert (run(model(shape=shape, **options), x) == by_numpy(x, **options)).all()


@pytest.mark.parametrize(
    "shape", [(3, 8), (2, 8, 7), (2, 8, 3, 4, 5), (1, 8, 64, 64), (0, 8, 6, 5)]
)
def test_has_any_rank(shape):
    x = normal(shape)
    y = run(model(shape=shape), x)
    assert y.shape == shape and (y == by_numpy(x)).all()


@pytest.mark.parametrize("mean", [0, 1000, 1e5])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_is_within_the_bound_at_any_mean(dtype, mean):
    """Between Converts: OpenVINO computes models with inputs of another type in f32."""
    p = parameter(SHAPE)
    inner = p if dtype == "f32" else op.convert(p, dtype)
    y = GroupNorm([inner, constant(SCALE), constant(BIAS)], GROUPS)
    name = "float32" if dtype == "f32" else _operator.bfloat16()
    x = normal(SHAPE, mean=mean).astype(name)
    found = run(openvino.Model([op.convert(y, "f32")], [p]), x.astype("float32"))
    assert_near(found.astype(name), exact("group", x, SCALE, BIAS, groups=GROUPS))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("params", TYPES)
def test_takes_any_types(dtype, params):
    """By itself, as OpenVINO folds constants; and compiled."""
    made = model(dtype, params=params)
    name = _operator.bfloat16() if dtype == "bf16" else TYPES[dtype]
    x = normal(SHAPE).astype(name)
    stored = numpy.float64 if dtype == "f64" else numpy.float32
    wanted = groupnorm.group_norm(x, GROUPS, SCALE.astype(stored), BIAS.astype(stored))
    tensor = openvino.Tensor(getattr(openvino.Type, dtype), SHAPE)
    tensor.data[...] = x.view(tensor.data.dtype)
    out = openvino.Tensor(getattr(openvino.Type, dtype), SHAPE)
    assert made.evaluate([out], [tensor])
    assert (out.data.view(name) == wanted).all()
    request = compiled(made).create_infer_request()
    request.set_input_tensor(tensor)
    request.infer()
    y = request.get_output_tensor().data
    numpy.testing.assert_allclose(
        y.view(name).astype(float), wanted.astype(float), rtol=2.0**-7, atol=1e-2
    )


@pytest.mark.parametrize(("threads", "streams"), [(1, 1), (2, 1), (2, 2)])
def test_uses_the_threads_of_the_stream(threads, streams, monkeypatch):
    seen = []

    def count(*args, threads, **options):
        seen.append(threads)

    monkeypatch.setattr(_operator, "normalize", count)
    made = compiled(model(), INFERENCE_NUM_THREADS=threads, NUM_STREAMS=streams)
    made([normal(SHAPE)])
    assert seen == [1]  # of so few bytes
    monkeypatch.setattr(_operator, "_BYTES_PER_THREAD", 1)
    made([normal(SHAPE)])
    assert seen == [1, threads // streams]


@pytest.mark.skipif(len(CORES) < 2, reason="OpenVINO pins the thread to the one core that there is")
def test_works_on_the_cores_of_the_process(monkeypatch):
    """The main thread is pinned while it infers, and the engine's threads run where it may."""
    seen = []
    monkeypatch.setattr(
        _operator, "normalize", lambda *_, **__: seen.append(os.sched_getaffinity(0))
    )
    made = compiled(model(), INFERENCE_NUM_THREADS=2, ENABLE_CPU_PINNING=True)
    made([normal(SHAPE)])
    assert seen == [CORES]

    def pinned():
        with _operator._unpinned():
            seen.append(os.sched_getaffinity(0))
        return os.sched_getaffinity(0)

    one = {min(CORES)}
    os.sched_setaffinity(0, one)
    try:
        assert pinned() == one
    finally:
        os.sched_setaffinity(0, CORES)
    assert pinned() == CORES
    assert seen == [CORES] * 3


def test_runs_in_streams_at_once():
    shape = (2, 8, 80, 80)
    made = compiled(model(shape=shape, activation="silu"), NUM_STREAMS=2)
    queue = openvino.AsyncInferQueue(made, 4)
    found = {}
    queue.set_callback(
        lambda request, i: found.update({i: request.get_output_tensor().data.copy()})
    )
    xs = [normal(shape, seed=i, mean=i) for i in range(16)]
    for i, x in enumerate(xs):
        queue.start_async([x], i)
    queue.wait_all()
    for i, x in enumerate(xs):
        assert (found[i] == by_numpy(x, activation="silu")).all(), i


def test_shapes_may_change():
    made = compiled(model(shape=(-1, 8, -1, -1)))
    for shape in ((2, 8, 6, 5), (1, 8, 3, 3), (3, 8, 1, 9), (0, 8, 2, 2)):
        x = normal(shape)
        assert (made([x])[0] == by_numpy(x)).all(), shape


def test_is_saved_and_read(tmp_path):
    attributes = {"eps": 1e-7, "activation": "gelu_tanh", "layout": "channels_last"}
    x = normal((2, 6, 5, 8))
    path = tmp_path / "norm.xml"
    openvino.save_model(model(shape=x.shape, **attributes), path, compress_to_fp16=False)
    core = openvino.Core()
    with pytest.raises(RuntimeError, match="GroupNorm"):
        core.read_model(path)
    core.add_extension(GroupNorm)
    read = core.read_model(path)
    (node,) = (each for each in read.get_ops() if each.get_type_name() == "GroupNorm")
    assert node.get_attributes() == {"num_groups": GROUPS, **attributes}
    assert (run(read, x) == by_numpy(x, **attributes)).all()


def test_comes_from_the_cache(tmp_path):
    """There, weights lie where they happen to."""
    p = parameter((1, 8, 6, 5))
    z = convolution(p, 8, 1)
    for seed in range(3):
        z = convolution(GroupNorm([z, constant(SCALE), constant(BIAS)], GROUPS), 8, 1, seed)
        z = op.add(z, constant(normal((1, 8, 1, 1), seed=seed)))
    made = openvino.Model([GroupNorm([z, constant(SCALE), constant(BIAS)], GROUPS)], [p])
    x = normal((1, 8, 6, 5))
    found = []
    for _ in range(2):
        core = openvino.Core()
        core.add_extension(GroupNorm)
        core.set_property({"CACHE_DIR": str(tmp_path)})
        again = compiled(made, core=core)
        found.append(again([x])[0])
    assert again.get_property("LOADED_FROM_CACHE")
    assert (found[0] == found[1]).all()


def test_is_exported_and_imported():
    x = normal(SHAPE)
    blob = compiled(model()).export_model()
    core = openvino.Core()
    core.add_extension(GroupNorm)
    assert (core.import_model(blob, "CPU")([x])[0] == by_numpy(x)).all()


@pytest.mark.parametrize("at", range(1, 4))
def test_params_may_be_anywhere(at):
    memory = numpy.zeros(8 * 4 + 4, numpy.uint8)
    memory[at : at + 32] = SCALE.view(numpy.uint8)
    scale = memory[at : at + 32].view(numpy.float32)
    assert not scale.flags.aligned

    class Tensor:
        data, element_type = scale, openvino.Type.f32

    found = _operator._param(Tensor(), normal(SHAPE))
    assert (
        groupnorm.group_norm(normal(SHAPE), GROUPS, found, BIAS) == by_numpy(normal(SHAPE))
    ).all()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"num_groups": 3}, ValueError, "num_groups: must be at least 1 and divide"),
        ({"num_groups": 0}, ValueError, "num_groups: must be at least 1"),
        ({"num_groups": 2.5}, TypeError, "num_groups: must be an integer; got 2.5"),
        ({"eps": -1.0}, ValueError, "eps: must be finite and not negative; got -1.0"),
        ({"eps": float("nan")}, ValueError, "eps: must be finite"),
        ({"eps": "small"}, TypeError, "eps: must be a number; got 'small'"),
        ({"activation": "mish"}, ValueError, "activation: must be one of 'none', .*; got 'mish'"),
        ({"activation": None}, ValueError, "activation: must be one of"),
        ({"layout": "nhwc"}, ValueError, "layout: must be one of 'channels_first', .*; got 'nhwc'"),
        ({"layout": "channels_last"}, ValueError, "num_groups: must .* divide the channels"),
    ],
)
def test_wrong_attributes_are_refused(given, error, words):
    x = parameter((2, 8, 6, 5))
    with pytest.raises(error, match=words):
        GroupNorm([x, constant(SCALE), constant(BIAS)], **{"num_groups": 4, **given})


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (lambda x: [x], ValueError, "inputs: must be x, scale and bias; got 1"),
        (lambda x: [x, constant(SCALE[:4]), constant(BIAS)], ValueError, "scale: must have shape"),
        (lambda x: [x, constant(SCALE), constant([BIAS])], ValueError, "bias: must have shape"),
        (
            lambda x: [op.convert(x, "i32"), constant(SCALE), constant(BIAS)],
            TypeError,
            "x: must be f32",
        ),
        (lambda x: [x, constant(SCALE), constant(BIAS, "int64")], TypeError, "bias: must be f32"),
        (
            lambda x: [constant(SCALE), constant(SCALE), constant(BIAS)],
            ValueError,
            "x: must be of rank 2",
        ),
    ],
)
def test_wrong_inputs_are_refused(inputs, error, words):
    with pytest.raises(error, match=words):
        GroupNorm(inputs(parameter(SHAPE)), GROUPS)


def test_a_wrong_file_is_refused(tmp_path):
    path = tmp_path / "norm.xml"
    openvino.save_model(model(), path)
    path.write_text(path.read_text().replace('num_groups="4"', 'num_groups="5"'))
    core = openvino.Core()
    core.add_extension(GroupNorm)
    with pytest.raises(Exception, match="num_groups: must be at least 1 and divide"):
        core.read_model(path)


def test_a_wrong_shape_at_run_time_is_refused():
    made = compiled(model(shape=(-1, -1, -1, -1)))
    with pytest.raises(RuntimeError, match="num_groups|scale"):
        made([normal((2, 6, 6, 5))])
    x = normal(SHAPE)
    assert (made([x])[0] == by_numpy(x)).all()


@pytest.mark.parametrize("version", ["2024.6.0-17404", "2025.0.0-1"])
def test_an_old_openvino_is_refused(version):
    with pytest.raises(ImportError, match=f"openvino: must be .* or later; got {version}"):
        _version.check_version(version)


def test_a_new_openvino_is_warned_of():
    with pytest.warns(RuntimeWarning, match=r"this is 2031\.1\.0"):
        _version.check_version("2031.1.0-9-releases/2031/1")
    _version.check_version("custom_branch_abc")


def test_a_process_ends_quietly():
    """OpenVINO keeps an operator of Python for ever, and so all that it refers to."""
    code = """
import numpy, openvino, groupnorm.openvino
from openvino import opset12 as op
x = op.parameter([1, 8, 4, 4], openvino.Type.f32)
one = op.constant(numpy.ones(8, "float32"))
y = groupnorm.openvino.GroupNorm([x, one, one], 4)
made = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU")
made([numpy.ones((1, 8, 4, 4), "float32")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
