"""groupnorm.openvino.optimize: what it finds, in which layout, whole models, what it leaves alone."""

import pathlib

import numpy
import onnx
import openvino
import pytest
import torch
from onnx import numpy_helper
from openvino import opset12 as op
from openvino_models import (
    ACTIVATIONS,
    ONNX_MODELS,
    activated,
    assert_near,
    compiled,
    constant,
    convolution,
    exact,
    group_norm,
    kinds,
    normal,
    parameter,
    run,
)
from torch import nn

import groupnorm.openvino
from groupnorm.openvino import _rules, optimize

EPS = float(numpy.float32(1e-5))


@pytest.fixture(autouse=True)
def _of_any_size(monkeypatch):
    """Small norms too, so that models are."""
    monkeypatch.setattr(_rules, "_LEAST", (0, 0))


def one_norm(activation="none", shape=(2, 8, 6, 5)):
    x = parameter(shape)
    return openvino.Model([activated(group_norm(x, 4), activation)], [x])


def replaced(model, precision="f32", count=1):
    """The report of a model all of whose norms are replaced."""
    report = optimize(model, precision)
    assert len(report.replaced) == count and not report.left, str(report)
    assert kinds(model).count("GroupNorm") == count
    return report


# ---- What it finds


@pytest.mark.parametrize("path", ONNX_MODELS, ids=lambda path: path.stem)
def test_takes_what_torch_exports_to_onnx(path):
    _, _, activation, *marks = path.stem.split("-")
    model = openvino.Core().read_model(path)
    if "raw" in marks and "dynamic" in marks:
        (left,) = optimize(model, "f32").left  # Reshapes by what is computed from other shapes
        assert left.reason == "it is not reshaped to [N, groups, ...]"
        return
    (norm,) = replaced(model).replaced
    initializers = onnx.load(path).graph.initializer
    params = [
        numpy_helper.to_array(each).reshape(-1)
        for each in initializers
        if numpy.prod(each.dims) == 8
    ]
    x = normal((2, 8, 6, 6), seed=5)
    if "half" in marks:
        x = x.astype("float16")
    y = run(model, x)
    wanted = exact(
        "group", x, *params[: 0 if "plain" in marks else 2], groups=4, activation=activation
    )
    assert_near(y, wanted, activation)
    # Those of older opsets are many operators, which OpenVINO makes one of afterwards.
    assert norm.activation in (activation, "none")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_takes_an_activation(activation):
    model = one_norm(activation)
    (norm,) = replaced(model).replaced
    assert norm.activation == activation
    x = normal((2, 8, 6, 5), mean=1000)
    params = normal((8,), seed=0, mean=1), normal((8,), seed=1)
    wanted = exact("group", x, *params, groups=4, eps=EPS, activation=activation)
    assert_near(run(model, x), wanted, activation)


def by_sigmoid(z):
    return op.multiply(op.sigmoid(z), z)


def by_hard_sigmoid(z):
    return op.multiply(z, op.hard_sigmoid(z, constant(1 / 6), constant(0.5)))


@pytest.mark.parametrize(
    ("make", "activation"), [(by_sigmoid, "silu"), (by_hard_sigmoid, "hard_swish")]
)
def test_takes_a_product(make, activation):
    x = parameter((2, 8, 6, 5))
    model = openvino.Model([make(group_norm(x, 4))], [x])
    assert replaced(model).replaced[0].activation == activation


@pytest.mark.parametrize(
    "make",
    [
        lambda z: [op.swish(z, constant(1.5))],
        lambda z: [op.relu(z), z],
        lambda z: [op.multiply(op.sigmoid(z), op.sigmoid(z))],
        lambda z: [by_sigmoid(z), op.tanh(z)],
        lambda z: [op.multiply(z, op.hard_sigmoid(z, constant(0.2), constant(0.5)))],
        lambda z: [op.tanh(z)],
    ],
)
def test_leaves_what_is_no_activation_of_it_alone(make):
    x = parameter((2, 8, 6, 5))
    model = openvino.Model(make(group_norm(x, 4)), [x])
    wanted = [compiled(model)([normal((2, 8, 6, 5))])[i] for i in range(len(model.outputs))]
    assert replaced(model).replaced[0].activation == "none"
    found = compiled(model)([normal((2, 8, 6, 5))])
    for i, each in enumerate(wanted):
        numpy.testing.assert_allclose(found[i], each, atol=1e-5)


class Norms(nn.Module):
    """A norm in every form that torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GroupNorm(4, 8), nn.GroupNorm(2, 8, affine=False)
        self.third = nn.GroupNorm(1, 8, eps=1e-3)

    def forward(self, x):
        x = nn.functional.silu(self.first(x))
        x = nn.functional.gelu(self.second(x), approximate="tanh")
        return nn.functional.hardswish(nn.functional.group_norm(x, 8) + self.third(x))


@pytest.mark.parametrize("exported", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_takes_what_the_pytorch_frontend_makes(exported, dynamic):
    torch.manual_seed(0)
    torch_model, x = Norms().eval(), torch.randn(2, 8, 6, 5)
    for parameter_ in torch_model.parameters():
        nn.init.normal_(parameter_)
    if exported:
        dims = ({0: torch.export.Dim("n"), 3: torch.export.Dim("w")},) if dynamic else None
        program = torch.export.export(torch_model, (x,), dynamic_shapes=dims)
        model = openvino.convert_model(program)
    else:
        model = openvino.convert_model(torch_model, example_input=x)
        model.reshape([-1, 8, -1, -1] if dynamic else list(x.shape))
    report = replaced(model, count=4)
    assert [each.activation for each in report.replaced].count("none") == 2
    with torch.no_grad():
        wanted = torch_model.double()(x.double()).numpy()
    numpy.testing.assert_allclose(run(model, x.numpy()), wanted, atol=5e-6)


def test_goes_into_loops_and_branches():
    def branch(activation):
        inner = parameter((2, 8, 6, 5), name=activation)
        return openvino.Model([activated(group_norm(inner, 4), activation)], [inner])

    x, condition = parameter((2, 8, 6, 5)), parameter((), openvino.Type.boolean, "condition")
    bodies = branch("relu"), branch("silu")
    node = op.if_op(condition)
    node.set_then_body(bodies[0])
    node.set_else_body(bodies[1])
    node.set_input(x.output(0), bodies[0].get_parameters()[0], bodies[1].get_parameters()[0])
    y = node.set_output(bodies[0].get_results()[0], bodies[1].get_results()[0])
    model = openvino.Model([y], [x, condition])
    report = optimize(model, "f32")
    assert [each.activation for each in report.replaced] == ["relu", "silu"]
    made, value = compiled(model), normal((2, 8, 6, 5))
    params = normal((8,), seed=0, mean=1), normal((8,), seed=1)
    for which, activation in ((True, "relu"), (False, "silu")):
        wanted = exact("group", value, *params, groups=4, eps=EPS, activation=activation)
        assert_near(made([value, numpy.array(which)])[0], wanted, activation)


def between_reshapes(
    x,
    grouped=(0, 4, -1),
    back=(2, 8, 6, 5),
    axes=(2,),
    mode="INSIDE_SQRT",
    ones=1.0,
    scale=(8, 1, 1),
):
    y = op.reshape(x, constant(grouped, "int64"), True)
    y = op.mvn(y, constant(axes, "int64"), True, EPS, mode)
    y = op.multiply(y, constant(numpy.full((4, *[1] * (len(grouped) - 2)), ones)))
    y = op.reshape(y, constant(back, "int64"), True)
    y = op.multiply(y, constant(normal(scale)))
    return op.add(constant(normal((1, 8, 1, 1), seed=1)), y)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"grouped": (2, 4, -1)},
        {"grouped": (-1, 4, 60)},
        {"grouped": (0, 4, 2, 6, 5), "axes": (2, 3, -1)},
        {"back": (0, 8, 6, 5)},
        {"scale": ()},
    ],
    ids=str,
)
def test_takes_mvn_between_reshapes(given):
    x = parameter((2, 8, 6, 5))
    model = openvino.Model([between_reshapes(x, **given)], [x])
    replaced(model)
    value = normal((2, 8, 6, 5), mean=100)
    scale = numpy.broadcast_to(normal(given.get("scale", (8, 1, 1))).reshape(-1), 8)
    wanted = exact("group", value, scale, normal((8,), seed=1), groups=4, eps=EPS)
    assert_near(run(model, value), wanted)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"grouped": (1, 8, 60), "back": (2, 8, 6, 5)}, "it is not reshaped to [N, groups, ...]"),
        ({"axes": (1, 2)}, "its axes are not those behind N and groups"),
        ({"mode": "OUTSIDE_SQRT"}, "its eps is outside of the root"),
        ({"ones": 2.0}, "its inner scale and bias are not constant ones and zeros"),
        ({"back": (2, 8, 5, 6)}, "it is reshaped to something that is not the shape of its input"),
    ],
    ids=str,
)
def test_leaves_other_uses_of_mvn(given, reason):
    x = parameter((2, 8, 6, 5))
    if given.get("grouped") == (1, 8, 60):
        y = op.mvn(
            op.reshape(x, constant((1, 4, 120), "int64"), True),
            constant([2], "int64"),
            True,
            EPS,
            "INSIDE_SQRT",
        )
        model = openvino.Model([op.reshape(y, constant((2, 8, 6, 5), "int64"), True)], [x])
    else:
        model = openvino.Model([between_reshapes(x, **given)], [x])
    before = kinds(model)
    report = optimize(model, "f32")
    assert not report.replaced
    assert [left.reason for left in report.left] == [reason]
    assert reason in str(report)
    assert kinds(model) == before


# ---- Layouts and types


def test_works_in_channels_last_behind_a_convolution():
    x = parameter((1, 8, 6, 5))
    y = activated(group_norm(convolution(x, 16), 4), "silu")
    y = op.add(y, constant(normal((1, 16, 1, 1))))  # a time embedding
    z = group_norm(y, 4, seed=3)
    y = convolution(activated(z, "relu"), 16, seed=4)
    model = openvino.Model(
        [group_norm(op.add(y, convolution(x, 16)), 8), op.reduce_mean(y, [2, 3])], [x]
    )
    stock = compiled(model)([normal((1, 8, 6, 5))])
    report = replaced(model, count=3)
    layouts = [each.layout for each in report.replaced]
    # The last is behind an Add that a convolution makes in place.
    assert layouts == ["channels_last", "channels_last", "channels_first"]
    made = compiled(model)
    for i in range(2):
        numpy.testing.assert_allclose(made([normal((1, 8, 6, 5))])[i], stock[i], atol=1e-5)
    executed = [
        node.get_rt_info()["layerType"].astype(str)
        for node in made.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["execTimeMcs"].astype(str) != "not_executed"
    ]
    assert "Transpose" not in executed


@pytest.mark.parametrize(
    ("shape", "why"), [((1, 8, -1, -1), "its shape is dynamic"), ((1, 8, 7), "its rank is 3")]
)
def test_works_in_channels_first_where_transposes_cost(shape, why):
    x = parameter(shape)
    model = openvino.Model([group_norm(convolution(x, 8), 4)], [x])
    (norm,) = replaced(model).replaced
    assert (norm.layout, norm.why) == ("channels_first", why)
    x = normal([2 if size == -1 else size for size in shape])
    assert numpy.isfinite(run(model, x)).all()


def test_leaves_small_norms(monkeypatch):
    monkeypatch.undo()
    model = one_norm()
    before = kinds(model)
    (left,) = optimize(model, "f32").left
    assert left.reason == "it has 480 elements; from 524288 on the engine is faster"
    assert kinds(model) == before
    replaced(one_norm(shape=(1, 8, 256, 256)))


@pytest.mark.parametrize(("precision", "count"), [("f32", 2), ("bf16", 0)])
def test_replaces_small_norms_on_which_openvino_crashes(monkeypatch, precision, count):
    """Those that are added to something behind them, in f32: 2026.4.1 ends as it compiles this model."""
    monkeypatch.undo()
    x = parameter((1, 64, 14, 14))
    y = op.relu(group_norm(convolution(x, 64), 8))
    z = op.add(y, group_norm(convolution(x, 64, seed=1), 8))
    model = openvino.Model([convolution(z, 8)], [x])
    report = optimize(model, precision)
    assert [own.why for own in report.replaced] == count * [
        "it is behind a convolution, and OpenVINO may crash on it"
    ]
    assert numpy.isfinite(run(model, normal((1, 64, 14, 14)), precision=precision)).all()


def test_follows_the_types_of_the_plugin():
    """Before the last convolution OpenVINO computes in bf16, and behind it in f32."""
    x = parameter((1, 8, 6, 5))
    model = openvino.Model([group_norm(convolution(group_norm(x, 4), 8), 4)], [x])
    report = replaced(model, "bf16", count=2)
    assert report.precision == "bf16"
    types = [
        node.get_output_element_type(0).get_type_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "GroupNorm"
    ]
    assert types == ["bf16", "f32"]


@pytest.mark.parametrize("shape", [(1, 8, 6, 5), (1, 8, 3, 6, 5)])
def test_converts_cost_nothing(shape):
    """The CPU plugin drops those to bf16 and back."""
    x = parameter(shape)
    z = convolution(group_norm(convolution(x, 8), 4), 8)
    model = openvino.Model([z], [x])
    replaced(model, "bf16")
    made = compiled(model, "bf16")
    if made.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.bf16:
        pytest.skip("this processor has no bf16")
    found = [
        node.get_rt_info()["layerType"].astype(str) for node in made.get_runtime_model().get_ops()
    ]
    left = set(found) - {"Input", "Const", "Reorder", "Convolution", "Reference", "Output"}
    assert left <= {"Transpose", "Reshape"}, found


def test_takes_the_default_of_the_machine():
    default = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    assert optimize(one_norm()).precision == default


def test_takes_parameters_that_are_compressed():
    x = parameter((2, 8, 6, 5))
    scale, bias = (op.convert(constant(normal((8,), seed=i), "float16"), "f32") for i in (1, 2))
    model = openvino.Model([op.group_normalization(x, scale, bias, 4, EPS)], [x])
    replaced(model)
    assert kinds(model).count("Convert") == 0
    value = normal((2, 8, 6, 5))
    params = (normal((8,), "float16", seed=i).astype("float32") for i in (1, 2))
    assert_near(run(model, value), exact("group", value, *params, groups=4, eps=EPS))


def test_takes_parameters_that_are_inputs():
    x, scale = parameter((2, 8, 6, 5)), parameter((8,), name="scale")
    model = openvino.Model([op.group_normalization(x, scale, scale, 4, EPS)], [x, scale])
    replaced(model)
    values = normal((2, 8, 6, 5)), normal((8,), seed=1)
    wanted = exact("group", values[0], values[1], values[1], groups=4, eps=EPS)
    assert_near(compiled(model)(list(values))[0], wanted)


# ---- Whole models


class Block(nn.Module):
    """A residual block as diffusion models have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        y = self.convs[0](nn.functional.silu(self.norms[0](x)))
        return x + self.convs[1](nn.functional.silu(self.norms[1](y)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.Sequential(Block(32), Block(32))
        self.norm, self.last = nn.GroupNorm(4, 32), nn.Conv2d(32, 3, 1)

    def forward(self, x):
        return self.last(nn.functional.relu(self.norm(self.blocks(self.first(x)))))


@pytest.fixture(scope="module")
def net():
    """A model, an input and the output in float64."""
    torch.manual_seed(0)
    made, x = Net().eval(), torch.randn(1, 3, 20, 24)
    with torch.no_grad():
        wanted = made.double()(x.double()).numpy()
    made.float()
    return lambda: openvino.convert_model(made, example_input=x), x.numpy(), wanted


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_has_no_larger_errors(net, precision, threads):
    make, x, wanted = net
    errors = []
    for ours in (False, True):
        model = make()
        model.reshape(list(x.shape))
        if ours:
            report = replaced(model, precision, count=5)
            assert {each.activation for each in report.replaced} == {"silu", "relu"}
        y = run(model, x, precision, INFERENCE_NUM_THREADS=threads)
        errors.append(abs(y - wanted).max())
    # Of roundings that are equally large, some go the other way.
    assert errors[1] <= 1.25 * errors[0], errors


def test_a_model_is_saved_read_and_cached(net, tmp_path):
    make, x, wanted = net
    model = make()
    model.reshape(list(x.shape))
    names = [sorted(port.get_names()) for port in (*model.inputs, *model.outputs)]
    replaced(model, count=5)
    assert [sorted(port.get_names()) for port in (*model.inputs, *model.outputs)] == names
    openvino.save_model(model, tmp_path / "net.xml", compress_to_fp16=False)
    found = [run(model, x)]
    for _ in range(2):
        core = openvino.Core()
        core.add_extension(groupnorm.openvino.GroupNorm)
        core.set_property({"CACHE_DIR": str(tmp_path / "cache")})
        read = core.read_model(tmp_path / "net.xml")
        assert not optimize(read, "f32").replaced
        found.append(compiled(read, core=core)([x])[0])
    for y in found:
        assert (y == found[0]).all()
        numpy.testing.assert_allclose(y, wanted, atol=2e-5)


def test_a_model_of_any_size(net):
    make, x, wanted = net
    model = make()
    model.reshape([-1, 3, -1, -1])
    assert {each.layout for each in replaced(model, count=5).replaced} == {"channels_first"}
    made = compiled(model)
    numpy.testing.assert_allclose(made([x])[0], wanted, atol=2e-5)
    for shape in ((2, 3, 8, 9), (1, 3, 1, 1)):
        assert numpy.isfinite(made([normal(shape)])[0]).all()


def test_a_model_in_streams(net):
    make, x, wanted = net
    model = make()
    model.reshape(list(x.shape))
    replaced(model, count=5)
    made = compiled(model, NUM_STREAMS=2)
    queue = openvino.AsyncInferQueue(made, 4)
    found = []
    queue.set_callback(lambda request, _: found.append(request.get_output_tensor().data.copy()))
    for _ in range(12):
        queue.start_async([x])
    queue.wait_all()
    assert len(found) == 12 and all((y == found[0]).all() for y in found)
    numpy.testing.assert_allclose(found[0], wanted, atol=2e-5)


def test_neighbours_in_int8_stay():
    def quantized(value, low, high):
        ends = [constant(each) for each in (low, high, low, high)]
        return op.fake_quantize(value, *ends, 256)

    def make():
        x = parameter((1, 16, 8, 8))
        z = quantized(x, -4, 4)
        for seed in range(3):
            weight = constant(normal((16, 16, 3, 3), seed=seed) / 12)
            z = op.convolution(z, quantized(weight, -0.3, 0.3), [1, 1], [1, 1], [1, 1], [1, 1])
            z = quantized(activated(group_norm(z, 4, seed), "relu"), -1, 4)
        return openvino.Model([z], [x])

    def in_int8(made):
        return sum(
            "_I8" in node.get_rt_info()["primitiveType"].astype(str)
            and node.get_rt_info()["layerType"].astype(str) == "Convolution"
            for node in made.get_runtime_model().get_ordered_ops()
        )

    model, stock = make(), compiled(make())
    before = kinds(model).count("FakeQuantize")
    replaced(model, count=3)
    assert kinds(model).count("FakeQuantize") == before
    made = compiled(model)
    assert in_int8(made) == in_int8(stock) > 0
    x = normal((1, 16, 8, 8))
    step = 5 / 255
    assert abs(made([x])[0] - stock([x])[0]).max() < 3 * step  # a tie or two may round otherwise


# ---- What is left alone and refused


def test_a_model_without_a_norm_stays(tmp_path):
    x = parameter((1, 8, 6, 5))
    layer = op.mvn(convolution(x, 8), constant([3], "int64"), True, EPS, "INSIDE_SQRT")
    model = openvino.Model([op.swish(layer)], [x])
    openvino.save_model(model, tmp_path / "before.xml")
    report = optimize(model, "bf16")
    assert not report.replaced and not report.left
    assert str(report) == "0 of 0 norms replaced, for bf16"
    openvino.save_model(model, tmp_path / "after.xml")
    assert (tmp_path / "before.xml").read_text() == (tmp_path / "after.xml").read_text()


def test_a_second_call_finds_nothing():
    model = one_norm("silu")
    replaced(model)
    before = kinds(model)
    assert not optimize(model, "f32").replaced
    assert kinds(model) == before


def test_names_stay():
    x = parameter((1, 8, 6, 5))
    z = group_norm(convolution(x, 8), 4)
    z.set_friendly_name("the_norm")
    y = op.swish(z)
    y.set_friendly_name("the_output")
    y.output(0).set_names({"y", "other"})
    model = openvino.Model([y], [x])
    (norm,) = replaced(model).replaced
    assert norm.node == "the_norm"
    assert model.output(0).get_names() == {"y", "other"}
    assert model.get_results()[0].input_value(0).get_node().get_friendly_name() == "the_output"
    assert compiled(model)([normal((1, 8, 6, 5))])["y"].shape == (1, 8, 6, 5)


def test_who_asks_for_the_shape_gets_it():
    """A ShapeOf does not keep the old norm."""
    x = parameter((-1, 8, -1, -1))
    z = group_norm(x, 4)
    model = openvino.Model([op.reshape(op.swish(z), op.shape_of(z), False)], [x])
    assert replaced(model).replaced[0].activation == "silu"
    assert "GroupNormalization" not in kinds(model)
    assert run(model, normal((2, 8, 3, 4))).shape == (2, 8, 3, 4)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: compiled(one_norm()), "got CompiledModel: optimize it before it is compiled"),
        (lambda: "model.xml", "got str: read it first, by openvino.Core"),
        (lambda: pathlib.Path("model.onnx"), "got PosixPath: read it first"),
        (lambda: nn.GroupNorm(4, 8), "got GroupNorm$"),
        (lambda: None, "got NoneType$"),
    ],
)
def test_what_is_no_model_is_refused(model, words):
    with pytest.raises(TypeError, match=f"^model: must be an openvino.Model; {words}"):
        optimize(model())


@pytest.mark.parametrize(
    ("precision", "error", "words"),
    [
        ("fp32", ValueError, "precision: must be one of 'f32', 'bf16', 'f16', or None; got 'fp32'"),
        (openvino.Type.f32, TypeError, "precision: must be a str or None; got <Type: 'float32'>"),
        (16, TypeError, "precision: must be a str or None; got 16"),
    ],
)
def test_a_wrong_precision_is_refused(precision, error, words):
    model = one_norm()
    with pytest.raises(error, match=words):
        optimize(model, precision)
    assert "GroupNorm" not in kinds(model)
