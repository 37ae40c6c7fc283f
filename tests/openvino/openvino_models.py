"""What the tests of the operator and of optimize share: models, compiled calls, the oracle."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy
import openvino
from openvino import opset12 as op

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))

import norms

ONNX_MODELS = sorted((pathlib.Path(__file__).parents[1] / "onnx/models").glob("*.onnx"))
exact, assert_near, normal = norms.exact, norms.assert_near, norms.normal
ACTIVATIONS, LAYOUTS = norms.ACTIVATIONS, norms.LAYOUTS


def compiled(model: Any, precision: str | None = "f32", core: Any = None, **config: Any) -> Any:
    """The model on the CPU plugin, in that precision; None: in the plugin's default."""
    if precision is not None:
        config["INFERENCE_PRECISION_HINT"] = precision
    return (core or openvino.Core()).compile_model(model, "CPU", config)


def run(
    model: Any, x: numpy.ndarray, precision: str | None = "f32", **config: Any
) -> numpy.ndarray:
    """The first output."""
    return numpy.asarray(compiled(model, precision, **config)([x])[0])


def kinds(model: Any) -> list[str]:
    """The operators of a model in the order of its graph."""
    return [node.get_type_name() for node in model.get_ordered_ops()]


def constant(array: Any, dtype: Any = numpy.float32) -> Any:
    return op.constant(numpy.asarray(array, dtype))


def parameter(shape: Sequence[int], dtype: Any = openvino.Type.f32, name: str = "x") -> Any:
    made = op.parameter(openvino.PartialShape(list(shape)), dtype)
    made.output(0).set_names({name})
    return made


def activated(z: Any, activation: str) -> Any:
    """A node of the activation behind z."""
    return {
        "none": lambda: z,
        "relu": lambda: op.relu(z),
        "silu": lambda: op.swish(z),
        "gelu": lambda: op.gelu(z, "erf"),
        "gelu_tanh": lambda: op.gelu(z, "tanh"),
        "hard_swish": lambda: op.hswish(z),
    }[activation]()


def convolution(x: Any, to: int, size: int = 3, seed: int = 0) -> Any:
    """A convolution of stride 1 that keeps the sizes, with a bias."""
    shape = x.get_output_partial_shape(0)
    rank, channels = len(shape) - 2, shape[1].get_length()
    weight = normal((to, channels, *[size] * rank), seed=seed) / numpy.sqrt(channels * size**rank)
    ones, pad = [1] * rank, [size // 2] * rank
    y = op.convolution(x, constant(weight), ones, pad, pad, ones)
    return op.add(y, constant(normal((1, to, *ones), seed=seed + 1)))


def group_norm(x: Any, groups: int, seed: int = 0, eps: float = 1e-5) -> Any:
    channels = x.get_output_partial_shape(0)[1].get_length()
    scale, bias = normal((channels,), seed=seed, mean=1), normal((channels,), seed=seed + 1)
    return op.group_normalization(x, constant(scale), constant(bias), groups, eps)
