"""What the tests of the operators and of the converter share: models, sessions, the oracle."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper

import groupnorm.onnx

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))

import norms

onnxruntime.set_default_logger_severity(4)
# Another build of the library, under a sanitizer.
if "GROUPNORM_ORT_LIBRARY" in os.environ:
    groupnorm.onnx.library_path = lambda: os.environ["GROUPNORM_ORT_LIBRARY"]

VERSION = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
# The last opset that this runtime has.
OPSET = 21 if VERSION < (1, 20) else 24
MODELS = pathlib.Path(__file__).parent / "models"
OPERATORS = {
    "none": "GroupNorm",
    "relu": "GroupNormRelu",
    "silu": "GroupNormSilu",
    "gelu": "GroupNormGelu",
    "gelu_tanh": "GroupNormGeluTanh",
    "hard_swish": "GroupNormHardSwish",
}
# What a float attribute makes of 1e-5.
EPS = float(numpy.float32(1e-5))

exact, assert_near, normal = norms.exact, norms.assert_near, norms.normal


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    domain = "ai.groupnorm" if op in OPERATORS.values() else ""
    return helper.make_node(op, inputs, [output], domain=domain, **attributes)


def model(
    nodes: Sequence[NodeProto],
    inputs: dict[str, tuple[int, Sequence[int | str | None] | None]],
    initializers: dict[str, numpy.ndarray] | None = None,
    opset: int = 20,
    output: int = TensorProto.FLOAT,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """The nodes make "y" of the inputs, {name: (type, shape)}."""
    domains = {each.domain for each in nodes}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info("y", output, None)],
        [onnx.numpy_helper.from_array(a, name) for name, a in (initializers or {}).items()],
    )
    opsets = [helper.make_opsetid(d, 1 if d else opset) for d in sorted(domains | {""})]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=functions)


def session(
    what: onnx.ModelProto | str,
    *,
    library: bool = True,
    override: bool = False,
    threads: int = 1,
    **settings: Any,
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for name, value in settings.items():
        setattr(options, name, value)
    if library:
        groupnorm.onnx.register(options, override)
    return onnxruntime.InferenceSession(
        what if isinstance(what, str) else what.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )


def run(what: onnx.ModelProto | str, x: Any, **options: Any) -> numpy.ndarray:
    """y of the model; x: the array, or all inputs by name."""
    made = session(what, **options)
    inputs = x if isinstance(x, dict) else {made.get_inputs()[0].name: x}
    return numpy.asarray(made.run(None, inputs)[0])
