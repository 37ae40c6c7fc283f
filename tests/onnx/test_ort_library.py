"""The operators for ONNX Runtime: results, bits, threads, what is refused."""

import gc
import os
import pathlib
import threading

import numpy
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from runtime import (
    EPS,
    OPERATORS,
    assert_near,
    exact,
    model,
    node,
    normal,
    run,
    session,
)

import groupnorm

TYPES = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
}
REFUSED = onnxruntime.capi.onnxruntime_pybind11_state


def norm_model(op="GroupNorm", shape=("n", "c", "h", "w"), data=1, param=None, opset=20, **given):
    kind = param or data
    inputs = {"x": (data, shape), "scale": (kind, ["p"]), "bias": (kind, ["q"])}
    settings = {"num_groups": 4, "epsilon": 1e-5, **given}
    settings = {name: value for name, value in settings.items() if value is not None}
    nodes = [node(op, list(inputs), "y", **settings)]
    return model(nodes, inputs, opset=opset, output=data)


def data(shape=(2, 8, 5, 7), dtype="float32", param=None, mean=0.0):
    c = shape[1]
    return {
        "x": normal(shape, dtype, seed=1, mean=mean),
        "scale": normal((c,), param or dtype, seed=2),
        "bias": normal((c,), param or dtype, seed=3),
    }


def by_numpy(inputs, groups=4, activation=None):
    return groupnorm.group_norm(
        inputs["x"], groups, inputs["scale"], inputs["bias"], EPS, activation=activation
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("activation", OPERATORS)
def test_has_the_bits_of_the_numpy_call_and_the_exact_result(activation, dtype):
    inputs = data(dtype=dtype)
    y = run(norm_model(OPERATORS[activation], data=TYPES[dtype]), inputs)
    given = None if activation == "none" else activation
    assert (y == by_numpy(inputs, activation=given)).all()
    wanted = exact(
        "group", inputs["x"], inputs["scale"], inputs["bias"], groups=4, eps=EPS, activation=given
    )
    assert_near(y, wanted, given)


def test_takes_float32_parameters_beside_float16():
    inputs = data(dtype="float16", param="float32")
    y = run(norm_model(data=TensorProto.FLOAT16, param=TensorProto.FLOAT), inputs)
    assert (y == by_numpy(inputs)).all()


def test_takes_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    inputs = data()
    nodes = [node("Cast", [name], f"{name}_16", to=TensorProto.BFLOAT16) for name in inputs]
    nodes.append(node("GroupNormSilu", ["x_16", "scale_16", "bias_16"], "y_16", num_groups=4))
    nodes.append(node("Cast", ["y_16"], "y", to=TensorProto.FLOAT))
    types = {name: (TensorProto.FLOAT, a.shape) for name, a in inputs.items()}
    halves = {name: a.astype(ml_dtypes.bfloat16) for name, a in inputs.items()}
    wanted = by_numpy(halves, activation="silu").astype("float32")
    assert (run(model(nodes, types), inputs) == wanted).all()


@pytest.mark.parametrize("mean", [0, 10, 1000, 1e5])
def test_is_exact_at_any_mean(mean):
    inputs = data((1, 8, 128, 128), mean=mean)
    wanted = exact("group", inputs["x"], inputs["scale"], inputs["bias"], groups=4, eps=EPS)
    assert_near(run(norm_model(), inputs), wanted)


def test_has_the_same_bits_on_any_number_of_threads_alone_and_in_a_batch():
    inputs = data((3, 32, 96, 96))
    ys = [run(norm_model(), inputs, threads=count) for count in (1, 2, 3)]
    assert (ys[0] == ys[1]).all() and (ys[0] == ys[2]).all()
    alone = run(norm_model(), {**inputs, "x": inputs["x"][1:2]}, threads=2)
    assert (alone == ys[0][1:2]).all()
    assert (ys[0] == by_numpy(inputs)).all()


@pytest.mark.parametrize(
    "shape", [(0, 8, 5, 7), (2, 8, 0, 7), (2, 8), (2, 8, 1), (1, 8, 2, 3, 4, 5)]
)
def test_takes_any_rank_and_empty_tensors(shape):
    inputs = data(shape)
    y = run(norm_model(shape=None), inputs)
    assert y.shape == shape
    assert (y == by_numpy(inputs)).all()


def test_keeps_symbolic_sizes_and_unknown_ranks():
    kept = session(norm_model(shape=("n", 8, "h", "w")))
    assert kept.get_outputs()[0].shape == ["n", 8, "h", "w"]
    unknown = norm_model(shape=None)
    unknown.graph.node[0].output[0] = "between"
    unknown.graph.node.append(node("Transpose", ["between"], "y", perm=[0, 2, 3, 1]))
    assert run(unknown, data()).shape == (2, 5, 7, 8)


def test_works_in_place_between_others_with_the_arena_off_and_in_parallel():
    inputs = data()
    names = list(inputs)[1:]
    nodes = [
        node("Neg", ["x"], "a"),
        node("GroupNorm", ["a", *names], "b", num_groups=4),
        node("GroupNormRelu", ["b", *names], "c", num_groups=2),
        node("Neg", ["c"], "y"),
    ]
    made = model(nodes, {name: (TensorProto.FLOAT, None) for name in inputs})
    middle = by_numpy({**inputs, "x": -inputs["x"]})
    wanted = -by_numpy({**inputs, "x": middle}, groups=2, activation="relu")
    for settings in (
        {},
        {"enable_cpu_mem_arena": False, "enable_mem_pattern": False},
        {"execution_mode": onnxruntime.ExecutionMode.ORT_PARALLEL, "inter_op_num_threads": 2},
        {"graph_optimization_level": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL},
    ):
        assert (run(made, inputs, threads=2, **settings) == wanted).all(), settings


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
def test_is_saved_and_loaded_with_an_optimized_model(tmp_path, suffix):
    path = str(tmp_path / f"optimized{suffix}")
    inputs = data()
    first = session(norm_model("GroupNormSilu"), optimized_model_filepath=path)
    wanted = first.run(None, inputs)[0]
    assert (run(path, inputs) == wanted).all()


def with_attribute(name, value):
    made = norm_model(**{name: None})
    made.graph.node[0].attribute.append(helper.make_attribute(name, value))
    return made


A_TENSOR = helper.make_tensor("t", TensorProto.FLOAT, [], [1e-5])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("epsilon", -1.0, "epsilon = -1 must be finite and not negative"),
        ("epsilon", float("nan"), "must be finite and not negative"),
        ("epsilon", float("inf"), "must be finite and not negative"),
        ("epsilon", 1, "attribute epsilon must be a float"),
        ("epsilon", "1e-5", "attribute epsilon must be a float"),
        ("epsilon", [1e-5, 1e-5], "attribute epsilon must be a float"),
        ("epsilon", A_TENSOR, "attribute epsilon must be a float"),
        ("num_groups", 0, "num_groups = 0 must be at least 1"),
        ("num_groups", -4, "num_groups = -4 must be at least 1"),
        ("num_groups", 4.0, "attribute num_groups must be an int"),
        ("num_groups", "4", "attribute num_groups must be an int"),
        ("num_groups", [4], "attribute num_groups must be an int"),
        ("num_groups", A_TENSOR, "attribute num_groups must be an int"),
    ],
)
def test_refuses_an_attribute_when_the_model_is_loaded(name, value, says):
    with pytest.raises(REFUSED.RuntimeException, match=says):
        session(with_attribute(name, value))


def test_refuses_a_missing_num_groups_and_takes_a_missing_epsilon():
    with pytest.raises(REFUSED.RuntimeException, match="num_groups is missing; it must be an int"):
        session(norm_model(num_groups=None))
    inputs = data()
    assert (run(norm_model(epsilon=None), inputs) == by_numpy(inputs)).all()


def test_ignores_attributes_that_it_does_not_know_as_every_custom_operator():
    inputs = data()
    assert (run(norm_model(axis=1), inputs) == by_numpy(inputs)).all()


@pytest.mark.parametrize(
    ("changed", "groups", "says"),
    [
        ({"scale": normal((7,))}, 4, r"scale has rank 1 and 7 elements; it must be \[C\], here"),
        ({"bias": normal((9,))}, 4, r"bias has rank 1 and 9 elements; it must be \[C\], here \[8"),
        ({"scale": normal((0,))}, 4, "scale has rank 1 and 0 elements"),
        ({"x": normal((0, 8, 3)), "scale": normal((7,))}, 4, "scale has rank 1 and 7 elements"),
        ({"scale": normal((8, 1))}, 4, "scale has rank 2 and 8 elements"),
        ({"x": normal((8,))}, 4, "X has rank 1; it must be"),
        ({"x": numpy.zeros((), "float32")}, 4, "X has rank 0; it must be"),
        ({}, 3, "num_groups = 3 must divide the 8 channels"),
        ({}, 2**62, "num_groups = 4611686018427387904 must divide"),
    ],
)
def test_refuses_shapes_that_do_not_fit(changed, groups, says):
    inputs = {**data(), **changed}
    types = {name: (TensorProto.FLOAT, None) for name in inputs}
    made = session(model([node("GroupNorm", list(types), "y", num_groups=groups)], types))
    with pytest.raises(REFUSED.InvalidArgument, match=says):
        made.run(None, inputs)


def test_refuses_types_that_do_not_go_together():
    for kinds in ({"data": 6, "param": 1}, {"data": 11, "param": 1}, {"data": 1, "param": 10}):
        with pytest.raises((REFUSED.Fail, REFUSED.InvalidGraph, REFUSED.NotImplemented)):
            session(norm_model(**kinds))


def test_a_second_registration_is_refused():
    options = onnxruntime.SessionOptions()
    groupnorm.onnx.register(options)
    with pytest.raises(REFUSED.Fail, match="already set"):
        groupnorm.onnx.register(options)
        onnxruntime.InferenceSession(norm_model().SerializeToString(), options)


def test_many_threads_share_sessions():
    inputs = data((2, 16, 40, 40))
    sessions = [session(norm_model(), threads=count) for count in (1, 2, 2)]
    wanted = by_numpy(inputs)
    wrong = []

    def work(made):
        for _ in range(20):
            if (made.run(None, inputs)[0] != wanted).any():
                wrong.append(made)

    threads = [threading.Thread(target=work, args=(sessions[i % 3],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_is_unloaded_with_its_last_session():
    def loaded():
        gc.collect()
        return "groupnorm_ort" in pathlib.Path("/proc/self/maps").read_text()

    for _ in range(3):
        made = session(norm_model(), override=True)
        made.run(None, data())
        assert loaded()
        del made
        assert not loaded()


@pytest.mark.skipif("GROUPNORM_ORT_LIBRARY" in os.environ, reason="a sanitizer keeps memory")
def test_leaves_no_memory_behind_when_it_is_unloaded():
    def load(times):
        for _ in range(times):
            groupnorm.onnx.register(onnxruntime.SessionOptions(), override=True)
        gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    before = load(50)
    grown = load(300) - before
    assert grown < 300 * 1024, f"{grown / 300} bytes for each time"


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_takes_parameters_at_any_address_of_a_file(tmp_path, offset):
    inputs = data((2, 2048, 3))
    # Above 1 KiB, or the runtime copies them.
    params = {name: inputs.pop(name) for name in ("scale", "bias")}
    made = model(
        [node("GroupNorm", ["x", *params], "y", num_groups=4)],
        {"x": (TensorProto.FLOAT, inputs["x"].shape)},
        params,
    )
    with open(tmp_path / "weights", "wb") as file:
        file.write(bytes(4096 + offset))
        for tensor in made.graph.initializer:
            where = {"location": "weights", "offset": file.tell(), "length": len(tensor.raw_data)}
            file.write(tensor.raw_data)
            onnx.external_data_helper.set_external_data(tensor, **where)
            tensor.ClearField("raw_data")
    path = str(tmp_path / "model.onnx")
    onnx.save(made, path)
    assert (run(path, inputs) == by_numpy({**inputs, **params})).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_override_takes_group_normalization_21(dtype):
    inputs = data(dtype=dtype)
    made = norm_model("GroupNormalization", data=TYPES[dtype], opset=21, epsilon=None)
    assert (run(made, inputs, override=True) == by_numpy(inputs)).all()


@pytest.mark.parametrize("opset", [6, 17, 21])
def test_override_takes_instance_normalization(opset):
    inputs = data(mean=1000)
    made = norm_model("InstanceNormalization", opset=opset, num_groups=None)
    wanted = by_numpy(inputs, groups=8)
    assert (run(made, inputs, override=True) == wanted).all()
    assert (run(made, inputs) != wanted).any(), "it is off by default"


def test_override_leaves_group_normalization_18_to_the_runtime():
    inputs = data()
    inputs.update({name: inputs[name][:4] for name in ("scale", "bias")})
    made = norm_model("GroupNormalization", opset=18)
    y, wanted = run(made, inputs, override=True), run(made, inputs, library=False)
    numpy.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)


def test_override_by_the_session_option_alone():
    inputs = data(mean=1000)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("groupnorm.override", "1")
    groupnorm.onnx.register(options)
    made = norm_model("GroupNormalization", opset=21).SerializeToString()
    y = onnxruntime.InferenceSession(made, options).run(None, inputs)[0]
    assert (y == by_numpy(inputs)).all()


@pytest.mark.parametrize("value", ["2", "yes", "", "1" * 100])
def test_override_is_0_or_1(value):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("groupnorm.override", value)
    with pytest.raises(REFUSED.InvalidArgument):
        options.register_custom_ops_library(groupnorm.onnx.library_path())


def test_a_hostile_model_is_refused_or_computed_and_never_more():
    """300 models of random attributes and shapes (seed 0)."""
    random = numpy.random.default_rng(0)
    for _ in range(300):
        c = int(random.integers(1, 9))
        sizes = [int(random.integers(0, 4)), c, *random.integers(0, 5, random.integers(0, 4))]
        inputs = {"x": normal(tuple(map(int, sizes)))}
        for name in ("scale", "bias"):
            inputs[name] = normal((c if random.random() < 0.9 else c + 1,))
        groups = int(random.integers(-1, 5))
        op = str(random.choice(list(OPERATORS.values())))
        made = norm_model(op, shape=None, num_groups=groups)
        right = groups > 0 and c % groups == 0 and inputs["scale"].size == inputs["bias"].size == c
        if right:
            assert run(made, inputs).shape == inputs["x"].shape
        else:
            with pytest.raises((REFUSED.RuntimeException, REFUSED.InvalidArgument)):
                run(made, inputs)
