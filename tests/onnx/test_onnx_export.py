"""A PyTorch model through both exporters of torch, to standard operators and to ours."""

import io

import numpy
import onnx
import pytest
from runtime import OPERATORS, VERSION, assert_near, exact, normal, run

import groupnorm.onnx

if VERSION < (1, 20):
    pytest.skip("torch wants a newer NumPy than this runtime", allow_module_level=True)
torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn

import groupnorm.torch

X = torch.from_numpy(normal((2, 8, 6, 6), seed=5))


def network(norm=None):
    torch.manual_seed(0)
    model = nn.Sequential(norm or nn.GroupNorm(4, 8), nn.SiLU()).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def wanted(model):
    params = [p.detach().numpy() for p in model.parameters()]
    return exact("group", X.numpy(), *params, groups=4, activation="silu")


def by_dynamo(model, **options):
    program = torch.onnx.export(model, (X,), dynamo=True, verbose=False, **options)
    return program.model_proto


def operators(made):
    return [node.op_type for node in made.graph.node if node.domain == "ai.groupnorm"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exporter", ["dynamo", "script"])
def test_to_standard_operators_and_then_converted(exporter):
    model = network()
    if exporter == "dynamo":
        made = by_dynamo(model)
    else:
        file = io.BytesIO()
        torch.onnx.export(model, (X,), file, dynamo=False, opset_version=17)
        made = onnx.load_from_string(file.getvalue())
    numpy.testing.assert_allclose(run(made, X.numpy(), library=False), wanted(model).y, atol=1e-5)
    new, report = groupnorm.onnx.convert(made)
    assert report.converted == {"GroupNormSilu": 1}
    assert_near(run(new, X.numpy()), wanted(model), "silu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("plain", [False, True])
def test_to_our_operators(plain):
    model = network(nn.GroupNorm(4, 8, affine=not plain))
    groupnorm.torch.replace_group_norm_(model)
    made = by_dynamo(model, custom_translation_table=groupnorm.onnx.translation_table())
    assert len(operators(made)) == 1
    assert_near(run(made, X.numpy()), wanted(model), "silu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", ["none", "gelu_tanh"])
def test_a_program_with_our_operator(activation):
    class Norm(nn.Module):
        def forward(self, x):
            y, _, _ = torch.ops.groupnorm.group_norm(x, None, None, 4, 1e-5, activation)
            return y

    program = torch.export.export(Norm(), (X,))
    table = groupnorm.onnx.translation_table()
    made = by_dynamo(program, custom_translation_table=table)
    assert operators(made) == [OPERATORS[activation]]
    given = None if activation == "none" else activation
    assert_near(run(made, X.numpy()), exact("group", X.numpy(), groups=4, activation=given), given)
