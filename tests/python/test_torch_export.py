"""Modules of groupnorm.torch under what reads or exports a model: signatures, fx, jit, ONNX."""

import copy
import inspect
import io
import warnings

import pytest

torch = pytest.importorskip("torch")

from torch import fx, nn

import groupnorm.torch as gt

ACTIVATIONS = [None, "relu", "silu", "gelu", "gelu_tanh", "hard_swish"]
MODULES = {
    "GroupNorm": (gt.GroupNorm, (2, 6), (2, 6, 5, 7)),
    "LayerNorm": (gt.LayerNorm, ((6, 7),), (3, 6, 7)),
    "InstanceNorm1d": (gt.InstanceNorm1d, (6,), (2, 6, 7)),
    "InstanceNorm2d": (gt.InstanceNorm2d, (6, 1e-3, 0.1, True), (2, 6, 5, 7)),
    "InstanceNorm3d": (gt.InstanceNorm3d, (6,), (6, 3, 4, 5)),
}
EPS32 = 2.0**-23


class GroupNorm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(inplace=True)),
        *(nn.GroupNorm(4, 8), nn.SiLU(), nn.InstanceNorm2d(8, affine=True), nn.Hardswish()),
        *(nn.LayerNorm(7), nn.GELU(), nn.Conv2d(8, 4, 1), nn.InstanceNorm2d(4)),
    )
    for p in model.parameters():
        if p.dim() == 1:
            nn.init.uniform_(p, 0.5, 1.5)
    return model.eval()


def replaced():
    model = network()
    assert len(gt.replace_group_norm_(model).replaced) == 5
    return model


def assert_close(y, expected):
    """A dozen layers, each a few eps of its largest value."""
    assert y.shape == expected.shape
    assert (y - expected).abs().max() <= 100 * EPS32 * (1 + expected.abs().max())


# --- As the modules of torch.


@pytest.mark.parametrize("name", MODULES)
def test_signatures_are_those_of_torch(name):
    ours, torchs = (inspect.signature(getattr(m, name)).parameters for m in (gt, nn))
    assert [*ours][:-1] == [*torchs]
    for p in torchs.values():
        assert (ours[p.name].kind, ours[p.name].default) == (p.kind, p.default)
    assert ours["activation"].kind is inspect.Parameter.KEYWORD_ONLY
    assert set(getattr(nn, name).__constants__) < set(getattr(gt, name).__constants__)


@pytest.mark.parametrize("name", MODULES)
def test_constructors_that_write_nothing(name):
    cls, args, shape = MODULES[name]
    skipped = nn.utils.skip_init(cls, *args, activation="relu")
    with torch.device("meta"):
        meta = cls(*args, activation="relu")
    assert all(p.is_meta for p in meta.parameters())
    assert meta(torch.empty(shape, device="meta")).shape == shape
    made = cls(*args, activation="relu")
    for module in (skipped, meta.to_empty(device="cpu")):
        if module.weight is not None:
            module.reset_parameters()
        assert repr(module) == repr(made)
        assert torch.equal(module(image(*shape)), made(image(*shape)))


def test_a_norm_without_bias():
    for norm in (gt.GroupNorm(2, 6, bias=False), gt.LayerNorm(6, 1e-5, True, False)):
        assert norm.bias is None
        assert norm(image(3, 6)).shape == (3, 6)


def test_whole_models_are_saved():
    model = replaced()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(image(2, 6, 5, 7)), model(image(2, 6, 5, 7)))
    gt.restore_group_norm_(loaded)
    assert [*map(type, loaded.modules())] == [*map(type, network().modules())]


# --- torch.fx.


class OwnTracer(fx.Tracer):
    """Asks as most do: its own modules, then those of torch."""

    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


class FlatTracer(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return False


@pytest.mark.parametrize("tracer", [fx.Tracer, OwnTracer, FlatTracer])
def test_fx_keeps_norms_whole(tracer):
    model = replaced()
    graph = tracer().trace(model)
    traced = fx.GraphModule(model, graph)
    norms = [n for n, m in model.named_modules() if "Norm" in type(m).__name__]
    assert [n.target for n in graph.nodes if n.op == "call_module" and n.target in norms] == norms
    assert_close(traced(image(2, 6, 5, 7)), network()(image(2, 6, 5, 7)))
    again = fx.symbolic_trace(copy.deepcopy(traced))
    assert_close(again(image(2, 6, 5, 7)), network()(image(2, 6, 5, 7)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", MODULES)
def test_fx_has_one_node_for_each_module(name, activation):
    cls, args, shape = MODULES[name]
    model = nn.Sequential(cls(*args, activation=activation))
    traced = fx.symbolic_trace(model)
    assert [n.op for n in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    assert torch.equal(traced(image(*shape)), model(image(*shape)))


@pytest.mark.parametrize("norm", [gt.GroupNorm(2, 6, activation="silu"), gt.LayerNorm(7)])
def test_fx_of_a_norm_alone_has_the_functions_of_torch(norm):
    traced = fx.symbolic_trace(norm)
    assert_close(traced(image(2, 6, 7)), norm(image(2, 6, 7)))


def test_fx_of_known_classes():
    model = nn.Sequential(GroupNorm32(2, 6), nn.SiLU())
    gt.replace_group_norm_(model)
    traced = fx.symbolic_trace(model)
    assert [n.op for n in traced.graph.nodes][1:3] == ["call_module"] * 2
    assert_close(traced(image(2, 6, 7)), model(image(2, 6, 7)))


def test_quantization_prepares_a_replaced_model():
    quantize = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    x = image(2, 6, 5, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantize.prepare_fx(replaced(), get_default_qconfig_mapping(), (x,))
    assert_close(prepared(x), network()(x))


# --- TorchScript.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", MODULES)
def test_script(name, activation):
    cls, args, shape = MODULES[name]
    norm = cls(*args, activation=activation)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(norm), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert "groupnorm::" not in str(loaded.inlined_graph)
    assert_close(loaded(image(*shape)), norm(image(*shape)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_of_a_replaced_model():
    model, x = replaced(), image(2, 6, 5, 7)
    classes = [*map(type, model.modules())]
    scripted = torch.jit.script(model)
    assert_close(scripted(x), network()(x))
    assert_close(torch.jit.freeze(scripted)(x), network()(x))
    assert [*map(type, model.modules())] == classes  # scripting changed none of them


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_of_what_it_refuses_says_what_to_do():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = GroupNorm32(2, 6)

        def forward(self, x):
            return self.norm(x)

    model = Net()
    gt.replace_group_norm_(model)
    with pytest.raises(
        RuntimeError, match=r"GroupNorm32.* call .*restore_group_norm_\(model\) first"
    ):
        torch.jit.script(model)
    assert_close(model(image(2, 6, 7)), Net()(image(2, 6, 7)))


@pytest.mark.filterwarnings("ignore")
def test_trace_of_a_restored_model_needs_torch_alone():
    model, x = replaced(), image(2, 6, 5, 7)
    assert_close(torch.jit.trace(model, (x,))(x), network()(x))
    gt.restore_group_norm_(model)
    assert "groupnorm::" not in str(torch.jit.trace(model, (x,)).inlined_graph)


# --- ONNX.


def run_onnx(file, x):
    """The output of ONNX Runtime, and the operators of the model."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert {o.domain for o in model.opset_import} <= {"", "ai.onnx"}
    return torch.from_numpy(y), {node.op_type for node in model.graph.node}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("dynamo", "opset"), [(False, 17), (False, 20), (True, 17), (True, 18), (True, 21), (True, 22)]
)
def test_onnx_of_a_replaced_model(dynamo, opset):
    pytest.importorskip("onnxscript")
    model, expected = replaced(), network()
    for m in (model, expected):
        m.append(GroupNorm32(2, 4)).append(nn.SiLU())
    gt.replace_group_norm_(model)
    file, x = io.BytesIO(), image(2, 6, 5, 7)
    torch.onnx.export(model, (x,), file, opset_version=opset, dynamo=dynamo, verbose=False)
    y, operators = run_onnx(file, x)
    assert_close(y, expected(x).detach())
    assert {"LayerNormalization", "InstanceNormalization"} <= operators
    if dynamo and opset >= 21:
        assert "GroupNormalization" in operators
    assert_close(model(x), expected(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "activation"), [*zip(MODULES, ACTIVATIONS[1:], strict=True)])
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_of_each_module(name, dynamo, activation):
    pytest.importorskip("onnxscript")
    cls, args, shape = MODULES[name]
    norm, file, x = cls(*args, activation=activation).eval(), io.BytesIO(), image(*shape)
    torch.onnx.export(norm, (x,), file, opset_version=18, dynamo=dynamo, verbose=False)
    assert_close(run_onnx(file, x)[0], norm(x).detach())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_of_any_batch(dynamo):
    pytest.importorskip("onnxscript")
    model, file = replaced(), io.BytesIO()
    axes = {"dynamic_shapes": ({0: "n"},)} if dynamo else {"dynamic_axes": {"x": {0: "n"}}}
    arguments = {"input_names": ["x"], "dynamo": dynamo, "opset_version": 18, "verbose": False}
    torch.onnx.export(model, (image(2, 6, 5, 7),), file, **arguments, **axes)
    x = image(5, 6, 5, 7)
    assert_close(run_onnx(file, x)[0], network()(x).detach())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", [18, 21])
def test_onnx_of_an_exported_program(opset):
    """It holds the engine's operator, which the exporter has to translate."""
    pytest.importorskip("onnxscript")
    x, file = image(2, 6, 5, 7), io.BytesIO()
    program = torch.export.export(replaced(), (x,))
    assert any("groupnorm" in str(n.target) for n in program.graph.nodes)
    torch.onnx.export(program, (x,), file, opset_version=opset, dynamo=True, verbose=False)
    y, operators = run_onnx(file, x)
    assert_close(y, network()(x).detach())
    assert {"LayerNormalization", "InstanceNormalization"} <= operators
