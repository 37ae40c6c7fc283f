"""The converter: every exporter's forms, what it leaves and why, graphs within graphs, weights."""

import subprocess
import sys

import numpy
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime import (
    MODELS,
    OPERATORS,
    OPSET,
    assert_near,
    exact,
    model,
    node,
    normal,
    run,
    session,
)

import groupnorm
import groupnorm.onnx

FLOAT = TensorProto.FLOAT
NO_OPTIMIZATION = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
X = normal((2, 8, 6, 6), seed=5, mean=3)
SCALE, BIAS = normal((8,), seed=6), normal((8,), seed=7)


def by_numpy(x=X, scale=SCALE, bias=BIAS, groups=4, activation=None):
    eps = float(numpy.float32(1e-5))
    return groupnorm.group_norm(x, groups, scale, bias, eps, activation=activation)


def pattern(
    x="x",
    y="y",
    grouped=(0, 4, -1),
    back=(2, 8, 6, 6),
    ones=(1, 1, 1, 1),
    zeros=(0, 0, 0, 0),
    scale="scale",
    bias="bias",
    allowzero=0,
):
    """What torch writes before opset 21: its nodes and its constants."""
    constants = {
        "grouped": numpy.array(grouped, "int64"),
        "ones": numpy.array(ones, "float32"),
        "zeros": numpy.array(zeros, "float32"),
    }
    if back is not None:
        constants["back"] = numpy.array(back, "int64")
    nodes = [
        node("Reshape", [x, "grouped"], f"{y}_1", allowzero=allowzero),
        node("InstanceNormalization", [f"{y}_1", "ones", "zeros"], f"{y}_2"),
        *([node("Shape", [x], "back")] if back is None else []),
        node("Reshape", [f"{y}_2", "back"], f"{y}_3"),
        node("Mul", [f"{y}_3", scale], f"{y}_4"),
        node("Add", [bias, f"{y}_4"], y),
    ]
    return nodes, constants


def of_pattern(shape=(2, 8, 6, 6), more=None, params=True, opset=18, **given):
    nodes, constants = pattern(**given)
    if params:
        constants |= {"scale": SCALE.reshape(8, 1, 1), "bias": BIAS.reshape(1, 8, 1, 1)}
    return model(nodes + (more or []), {"x": (FLOAT, shape)}, constants, opset=opset)


def operators(made):
    return [each.op_type for each in made.graph.node if each.domain == "ai.groupnorm"]


def converted(made, count=1):
    """The new model; it passes onnx's checker, and the old one stays as it was."""
    before = made.SerializeToString()
    new, report = groupnorm.onnx.convert(made)
    assert made.SerializeToString() == before
    assert sum(report.converted.values()) == count, str(report)
    assert not report.left, str(report)
    checked = onnx.ModelProto()
    checked.CopyFrom(new)
    for output in checked.graph.output:  # which must have a shape
        output.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(checked)
    return new


def left(made):
    """Why the one norm of a model stays; its graph is as it was."""
    new, report = groupnorm.onnx.convert(made)
    assert not report.converted
    assert new.graph == made.graph
    (norm,) = report.left
    assert norm.reason in str(report)
    return norm.reason


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_takes_what_torch_exports(path):
    _, opset, activation, *marks = path.stem.split("-")
    made = onnx.load(path)
    new = converted(made)
    assert operators(new) == [OPERATORS[activation]]
    if int(opset) > OPSET:
        pytest.skip(f"this runtime ends at opset {OPSET}")
    dtype = "float16" if "half" in marks else "float32"
    x = normal((2, 8, 6, 6), dtype, seed=5)
    params = [
        numpy_helper.to_array(tensor).reshape(-1)
        for tensor in made.graph.initializer
        if numpy.prod(tensor.dims) == 8 and "plain" not in marks
    ]
    given = None if activation == "none" else activation
    wanted = exact("group", x, *params, groups=4, activation=given)
    assert_near(run(new, x), wanted, given)
    without, stock = run(new, x, library=False), run(made, x, library=False)
    assert abs(without - wanted.y).max() <= max(2 * abs(stock - wanted.y).max(), 1e-5)


@pytest.mark.parametrize("activation", OPERATORS)
def test_runs_without_the_library_in_float64(activation):
    x = normal((2, 8, 6, 6), "float64", seed=5)
    params = {"scale": SCALE.astype("float64"), "bias": BIAS.astype("float64")}
    nodes = [node("GroupNormalization", ["x", *params], "z", num_groups=4)]
    behind = {"none": "Identity", "relu": "Relu", "hard_swish": "HardSwish"}
    if activation == "silu":
        nodes += [node("Sigmoid", ["z"], "s"), node("Mul", ["s", "z"], "y")]
    elif activation in behind:
        nodes.append(node(behind[activation], ["z"], "y"))
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        nodes.append(node("Gelu", ["z"], "y", approximate=approximate))
    made = model(nodes, {"x": (TensorProto.DOUBLE, x.shape)}, params, 21, TensorProto.DOUBLE)
    new = converted(made)
    assert operators(new) == [OPERATORS[activation]]
    given = None if activation == "none" else activation
    eps = float(numpy.float32(1e-5))
    wanted = exact("group", x, *params.values(), groups=4, eps=eps, activation=given)
    assert_near(run(new, x), wanted, given)
    if activation != "gelu":  # ONNX Runtime has Erf in float32 alone
        # Version 1.18 optimizes x sigmoid(x) to an operator that it has not in float64.
        y = run(new, x, library=False, graph_optimization_level=NO_OPTIMIZATION)
        numpy.testing.assert_allclose(y, wanted.y, atol=1e-12)


@pytest.mark.parametrize("opset", [15, 17, 18, 21])
def test_fallback_follows_the_opset(opset):
    made = of_pattern(opset=opset)
    new = converted(made)
    numpy.testing.assert_allclose(run(new, X, library=False), run(made, X), atol=1e-5)
    assert (run(new, X) == by_numpy()).all()


@pytest.mark.parametrize("opset", [13, 18])
def test_needs_no_fallback(opset):
    made = of_pattern(opset=opset)
    new, _ = groupnorm.onnx.convert(made, fallback=False)
    assert not new.functions
    assert (run(new, X) == by_numpy()).all()
    if opset < 15:
        assert "a fallback needs 15" in left(made)


@pytest.mark.parametrize(
    "given",
    [
        {"grouped": (2, 4, -1)},
        {"grouped": (0, 4, 72)},
        {"back": (-1, 8, 6, 6)},
        {"back": (0, 8, 6, 6)},
        {"back": (2, 8, -1, 6)},
        {"back": None},
        {"shape": ("n", 8, "h", "w"), "back": None},
        {"shape": ("n", "c", "h", "w"), "back": None},
        {"shape": ("n", 8, 6, 6), "back": (-1, 8, 6, 6)},
    ],
)
def test_takes_every_way_to_write_the_shapes(given):
    new = converted(of_pattern(**given))
    assert [n.op_type for n in new.graph.node][-1] == "GroupNorm"
    assert (run(new, X) == by_numpy()).all()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"grouped": (0, 8, -1)}, "not reshaped to"),
        ({"grouped": (4, 4, -1), "back": (2, 8, 6, 6)}, "not reshaped to"),
        ({"grouped": (-1, 4, 72), "shape": ("n", 8, "h", "w"), "back": None}, "not reshaped to"),
        ({"back": (2, 8, 36, 1)}, "not the shape of its input"),
        ({"shape": ("n", 8, "h", "w")}, "not the shape of its input"),
        ({"shape": None, "back": None}, "rank is not known"),
        ({"ones": (1, 1, 1, 2)}, "not 1 and 0"),
        ({"zeros": (0, 1, 0, 0)}, "not 1 and 0"),
        ({"allowzero": 1, "grouped": (0, 4, -1)}, "not reshaped to"),
    ],
)
def test_leaves_what_is_another_norm_and_says_why(given, says):
    assert says in left(of_pattern(**given))


def test_leaves_inner_parameters_that_are_not_constant():
    nodes, constants = pattern()
    constants |= {"scale": SCALE.reshape(8, 1, 1), "bias": BIAS.reshape(8, 1, 1)}
    del constants["ones"]
    made = model(nodes, {"x": (FLOAT, X.shape), "ones": (FLOAT, [4])}, constants)
    assert "not constant" in left(made)
    made.graph.initializer.append(numpy_helper.from_array(numpy.ones(4, "float32"), "ones"))
    assert "not constant" in left(made), "an input may override an initializer"


def test_leaves_groups_that_do_not_divide_the_channels():
    nodes, constants = pattern(grouped=(0, 16, -1), ones=[1] * 16, zeros=[0] * 16)
    constants |= {"scale": SCALE.reshape(8, 1, 1), "bias": BIAS.reshape(8, 1, 1)}
    assert "do not divide" in left(model(nodes, {"x": (FLOAT, X.shape)}, constants))


def test_leaves_unknown_channels():
    nodes, constants = pattern(back=None)
    made = model(nodes[:3], {"x": (FLOAT, ("n", "c", "h", "w"))}, constants)
    made.graph.node.append(node("Reshape", ["y_2", "back"], "y"))
    assert "channels is not known" in left(made)


@pytest.mark.parametrize(
    ("opset", "given", "says"),
    [
        (18, {}, "opset 18"),
        (21, {"stash_type": 11}, "stash_type"),
    ],
)
def test_leaves_other_group_normalizations(opset, given, says):
    size = 4 if opset == 18 else 8
    params = {"scale": SCALE[:size], "bias": BIAS[:size]}
    one = node("GroupNormalization", ["x", *params], "y", num_groups=4, **given)
    assert says in left(model([one], {"x": (FLOAT, X.shape)}, params, opset))


def test_leaves_parameters_that_are_not_per_channel():
    params = {"scale": SCALE[:4], "bias": BIAS[:4]}
    one = node("GroupNormalization", ["x", *params], "y", num_groups=4)
    assert "not per channel" in left(model([one], {"x": (FLOAT, X.shape)}, params, 21))


@pytest.mark.parametrize(
    "scale", [normal((2, 8, 1, 1)), normal((6,)), normal((8, 6, 1)), normal((1, 1, 1, 6))]
)
def test_keeps_a_multiplication_that_is_not_per_channel_behind_the_norm(scale):
    nodes, constants = pattern()
    constants |= {"scale": scale, "bias": BIAS.reshape(8, 1, 1)}
    new = converted(model(nodes, {"x": (FLOAT, X.shape)}, constants))
    assert [n.op_type for n in new.graph.node][-3:] == ["GroupNorm", "Mul", "Add"]
    wanted = by_numpy(scale=None, bias=None) * scale + BIAS.reshape(8, 1, 1)
    numpy.testing.assert_allclose(run(new, X), wanted, atol=1e-5)


def test_a_cast_like_what_is_gone_is_one_like_the_input():
    nodes, constants = pattern(y="z")
    constants |= {
        "scale": SCALE.reshape(8, 1, 1),
        "bias": BIAS.reshape(8, 1, 1),
        "two": numpy.array(2.0),
    }
    nodes += [
        node("CastLike", ["two", "z_3"], "factor"),
        node("Relu", ["z"], "r"),
        node("Mul", ["r", "factor"], "y"),
    ]
    new = converted(model(nodes, {"x": (FLOAT, X.shape)}, constants))
    assert operators(new) == ["GroupNormRelu"]
    assert (run(new, X) == 2 * by_numpy(activation="relu")).all()


@pytest.mark.parametrize("scalar", [numpy.float32(2), numpy.full((1, 1), 2, "float32")])
def test_takes_a_scale_for_all_channels(scalar):
    nodes, constants = pattern()
    constants |= {"scale": numpy.asarray(scalar), "bias": BIAS.reshape(8, 1, 1)}
    new = converted(model(nodes, {"x": (FLOAT, X.shape)}, constants))
    assert (run(new, X) == by_numpy(scale=numpy.full(8, 2, "float32"))).all()


def test_takes_parameters_that_are_computed():
    nodes, constants = pattern(scale="twice")
    nodes.insert(0, node("Add", ["scale", "scale"], "twice"))
    constants |= {"scale": SCALE.reshape(8, 1, 1), "bias": BIAS.reshape(8, 1, 1)}
    new = converted(model(nodes, {"x": (FLOAT, X.shape)}, constants))
    assert (run(new, X) == by_numpy(scale=2 * SCALE)).all()


def test_an_addition_belongs_to_one_norm():
    """Both of [1, 8, 1, 1] look like the bias of the other."""
    a, constants = pattern(x="x", y="a", back=(1, 8, 1, 1))
    b, _ = pattern(x="v", y="b", back=(1, 8, 1, 1))
    constants |= {"scale": SCALE.reshape(8, 1, 1), "bias": BIAS.reshape(8, 1, 1)}
    types = {"x": (FLOAT, (1, 8, 1, 1)), "v": (FLOAT, (1, 8, 1, 1))}
    a, b = a[:-1], b[:-1]
    made = model([*a, *b, node("Add", ["a_4", "b_4"], "y")], types, constants)
    inputs = {"x": normal((1, 8, 1, 1)), "v": normal((1, 8, 1, 1), seed=9)}
    new = converted(made, 2)
    numpy.testing.assert_allclose(run(new, inputs), run(made, inputs), atol=1e-5)


SILU = [node("Sigmoid", ["z"], "s"), node("Mul", ["z", "s"], "y")]


@pytest.mark.parametrize(
    ("behind", "op"),
    [
        (SILU, "GroupNormSilu"),
        ([node("Relu", ["z"], "r"), node("Add", ["r", "z"], "y")], "GroupNorm"),
        ([*SILU[:1], node("Mul", ["z", "s"], "m"), node("Add", ["m", "s"], "y")], "GroupNorm"),
        ([node("Sigmoid", ["z"], "s"), node("Mul", ["x", "s"], "y")], "GroupNorm"),
        ([node("HardSigmoid", ["z"], "s"), node("Mul", ["s", "z"], "y")], "GroupNorm"),
        (
            [node("HardSigmoid", ["z"], "s", alpha=1 / 6), node("Mul", ["s", "z"], "y")],
            "GroupNormHardSwish",
        ),
        ([node("Gelu", ["z"], "y")], "GroupNormGelu"),
        ([node("LeakyRelu", ["z"], "y")], "GroupNorm"),
    ],
)
def test_takes_an_activation_that_alone_uses_the_norm(behind, op):
    params = {"scale": SCALE, "bias": BIAS}
    one = node("GroupNormalization", ["x", *params], "z", num_groups=4)
    made = model([one, *behind], {"x": (FLOAT, X.shape)}, params, 21)
    new = converted(made)
    assert operators(new) == [op]
    numpy.testing.assert_allclose(run(new, X), run(made, X, override=True), atol=2e-6)


def test_keeps_a_norm_that_is_an_output_apart_from_its_activation():
    params = {"scale": SCALE, "bias": BIAS}
    nodes = [node("GroupNormalization", ["x", *params], "z", num_groups=4), *SILU]
    made = model(nodes, {"x": (FLOAT, X.shape)}, params, 21)
    made.graph.output.append(helper.make_tensor_value_info("z", FLOAT, None))
    new = converted(made)
    assert operators(new) == ["GroupNorm"]
    z = session(new).run(["z"], {"x": X})[0]
    assert (z == by_numpy()).all()


def branch(name, nodes, constants):
    return helper.make_graph(
        nodes,
        name,
        [],
        [helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )


def test_converts_in_subgraphs_with_values_from_around():
    nodes, constants = pattern(y="then_y")
    then = branch("then", nodes, constants)
    other = branch("else", [node("Identity", ["x"], "else_y")], {})
    choice = node("If", ["which"], "y", then_branch=then, else_branch=other)
    made = model(
        [choice],
        {"x": (FLOAT, X.shape), "which": (TensorProto.BOOL, ())},
        {"scale": SCALE.reshape(8, 1, 1), "bias": BIAS.reshape(8, 1, 1)},
    )
    new = converted(made)
    y = run(new, {"x": X, "which": numpy.array(True)})
    assert (y == by_numpy()).all()
    without = run(new, {"x": X, "which": numpy.array(True)}, library=False)
    numpy.testing.assert_allclose(without, y, atol=1e-5)


def test_converts_in_loops():
    """The body reads what it normalizes from the iteration before."""
    nodes, constants = pattern(x="v", y="w")
    body = branch("body", [*nodes, node("Identity", ["go"], "go_on")], constants)
    del body.output[:]
    body.output.append(helper.make_tensor_value_info("go_on", TensorProto.BOOL, ()))
    body.output.append(helper.make_tensor_value_info("w", FLOAT, X.shape))
    body.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, ()))
    body.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, ()))
    body.input.append(helper.make_tensor_value_info("v", FLOAT, X.shape))
    constants = {
        "scale": SCALE.reshape(8, 1, 1),
        "bias": BIAS.reshape(8, 1, 1),
        "times": numpy.array(3),
        "yes": numpy.array(True),
    }
    loop = node("Loop", ["times", "yes", "x"], "y", body=body)
    new = converted(model([loop], {"x": (FLOAT, X.shape)}, constants))
    assert (run(new, X) == by_numpy(by_numpy(by_numpy()))).all()


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 5), (2, 8, 3, 4, 5)])
def test_takes_any_rank(shape):
    nodes, constants = pattern(back=shape)
    wide = (8, *([1] * (len(shape) - 2)))
    constants |= {"scale": SCALE.reshape(wide), "bias": BIAS.reshape(wide)}
    x = normal(shape, seed=5)
    new = converted(model(nodes, {"x": (FLOAT, shape)}, constants))
    assert (run(new, x) == by_numpy(x)).all()


def test_leaves_a_parameter_that_lies_along_another_axis():
    """[8, 1, 1] beside an x of rank 5 is not of the channels, however many there are."""
    nodes, constants = pattern(back=(2, 8, 8, 3, 4))
    constants |= {"scale": SCALE.reshape(8, 1, 1), "bias": BIAS.reshape(8, 1, 1)}
    x = normal((2, 8, 8, 3, 4), seed=5)
    made = model(nodes, {"x": (FLOAT, x.shape)}, constants)
    new = converted(made)
    assert [n.op_type for n in new.graph.node][-3:] == ["GroupNorm", "Mul", "Add"]
    numpy.testing.assert_allclose(run(new, x), run(made, x), atol=1e-5)


def test_a_norm_whose_result_a_subgraph_uses_keeps_it():
    params = {"scale": SCALE, "bias": BIAS}
    inner = branch("then", [node("Neg", ["z"], "a")], {})
    other = branch("else", [node("Identity", ["x"], "b")], {})
    nodes = [
        node("GroupNormalization", ["x", *params], "z", num_groups=4),
        node("Relu", ["z"], "r"),
        node("If", ["which"], "i", then_branch=inner, else_branch=other),
        node("Add", ["r", "i"], "y"),
    ]
    types = {"x": (FLOAT, X.shape), "which": (TensorProto.BOOL, ())}
    made = model(nodes, types, params, 21)
    new = converted(made)
    assert operators(new) == ["GroupNorm"]
    z = by_numpy()
    y = run(new, {"x": X, "which": numpy.array(True)})
    assert (y == numpy.maximum(z, 0) - z).all()


def test_converts_in_functions():
    body = onnx.parser.parse_function(
        '<domain: "mine", opset_import: ["" : 21]> Block (X, s, b) => (Y) {'
        "  z = GroupNormalization <num_groups = 4> (X, s, b)  Y = Relu (z) }"
    )
    call = helper.make_node("Block", ["x", "scale", "bias"], ["y"], domain="mine")
    params = {"scale": SCALE, "bias": BIAS}
    made = model([call], {"x": (FLOAT, X.shape)}, params, 21, functions=[body])
    new = converted(made)
    assert (run(new, X) == by_numpy(activation="relu")).all()
    numpy.testing.assert_allclose(run(new, X, library=False), run(new, X), atol=1e-5)


def test_leaves_groups_that_a_function_hands_in():
    body = onnx.parser.parse_function(
        '<domain: "mine", opset_import: ["" : 21]> Block <g> (X, s, b) => (Y) {'
        "  Y = GroupNormalization <num_groups: int = @g> (X, s, b) }"
    )
    call = helper.make_node("Block", ["x", "scale", "bias"], ["y"], domain="mine", g=4)
    params = {"scale": SCALE, "bias": BIAS}
    made = model([call], {"x": (FLOAT, X.shape)}, params, 21, functions=[body])
    assert "argument of the function" in left(made)


def test_shares_weights_and_drops_what_nobody_uses_any_more():
    nodes, constants = pattern(y="a")
    more, _ = pattern(x="a", y="b")
    constants |= {
        "scale": SCALE.reshape(8, 1, 1),
        "bias": BIAS.reshape(8, 1, 1),
        "idle": numpy.zeros(3, "float32"),
    }
    end = [node("Mul", ["b", "scale"], "y")]
    new = converted(model([*nodes, *more, *end], {"x": (FLOAT, X.shape)}, constants), 2)
    assert {i.name for i in new.graph.initializer} == {"scale", "bias", "idle"}
    wanted = by_numpy(by_numpy()) * SCALE.reshape(8, 1, 1)
    numpy.testing.assert_allclose(run(new, X), wanted, rtol=1e-6, atol=1e-6)


def test_twice_is_as_once():
    new = converted(of_pattern())
    again, report = groupnorm.onnx.convert(new)
    assert again == new
    assert not report.converted and not report.left


def test_keeps_overridable_initializers():
    made = of_pattern()
    made.graph.input.append(helper.make_tensor_value_info("scale", FLOAT, [8, 1, 1]))
    new = converted(made)
    doubled = {"x": X, "scale": 2 * SCALE.reshape(8, 1, 1)}
    assert (run(new, doubled) == by_numpy(scale=2 * SCALE)).all()


def with_files(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(of_pattern(), path, save_as_external_data=True, location="weights", size_threshold=0)
    return path


def test_leaves_weights_in_their_files(tmp_path):
    path = with_files(tmp_path)
    weights = (path.parent / "weights").read_bytes()
    new, report = groupnorm.onnx.convert(str(path))
    assert report.converted == {"GroupNorm": 1}
    assert all(i.data_location == TensorProto.EXTERNAL for i in new.graph.initializer)
    onnx.save(new, path.parent / "new.onnx")
    assert (path.parent / "weights").read_bytes() == weights
    assert (run(str(path.parent / "new.onnx"), X) == by_numpy()).all()


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "groupnorm", "onnx", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line(tmp_path):
    path = with_files(tmp_path)
    there = tmp_path / "b"
    there.mkdir()
    done = command(path, "-o", there / "new.onnx")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 norms converted; 5 -> 3 nodes" in done.stdout
    assert (run(str(there / "new.onnx"), X) == by_numpy()).all()
    assert command("--library").stdout.strip() == groupnorm.onnx.library_path()

    assert command(there / "new.onnx", "-o", there / "new.onnx").returncode == 0
    assert (run(str(there / "new.onnx"), X) == by_numpy()).all()

    again = command(path, "-o", there / "other.onnx")
    assert again.returncode == 2 and "weights: exists" in again.stderr
    assert not (there / "other.onnx").exists()
    (tmp_path / "text").write_text("no model")
    for arguments, says in (
        ([tmp_path / "missing.onnx", "-o", "o"], "missing.onnx: No such file"),
        ([tmp_path / "text", "-o", "o"], "text: is not an ONNX model"),
        ([path, "-o", tmp_path / "none" / "o.onnx"], "cannot be written"),
        ([path], "-o OUT.onnx"),
    ):
        refused = command(*arguments)
        assert refused.returncode == 2 and says in refused.stderr, refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_refuses_what_is_no_model():
    with pytest.raises(TypeError, match="model: must be an onnx.ModelProto or the path"):
        groupnorm.onnx.convert(3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("way", ["override", "converted", "without the library"])
def test_passes_the_cases_of_onnx(way):
    collect = pytest.importorskip("onnx.backend.test.case.node").collect_testcases
    cases = [case for case in collect("GroupNormalization") if "expanded" not in case.name]
    assert len(cases) >= 2
    for case in cases:
        made = case.model if way == "override" else converted(case.model)
        options = {"library": way != "without the library", "override": way == "override"}
        for inputs, outputs in case.data_sets:
            names = (value.name for value in made.graph.input)
            y = run(made, dict(zip(names, inputs, strict=True)), **options)
            numpy.testing.assert_allclose(y, outputs[0], rtol=case.rtol, atol=case.atol)
