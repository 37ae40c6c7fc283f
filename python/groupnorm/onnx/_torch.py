"""torch.onnx.export to our operators."""

import importlib
from collections.abc import Callable
from typing import Any

import onnx_ir
import torch
from onnx.defs import OpSchema
from onnxscript import opset18, values

from ._functions import DOMAIN

_OPERATORS = {
    "none": "GroupNorm",
    "relu": "GroupNormRelu",
    "silu": "GroupNormSilu",
    "gelu": "GroupNormGelu",
    "gelu_tanh": "GroupNormGeluTanh",
    "hard_swish": "GroupNormHardSwish",
}
_TYPES = [f"tensor({name})" for name in ("float", "double", "float16", "bfloat16")]


def _operator(name: str) -> values.Op:
    """The operator as the exporter wants to know it."""
    schema, parameter, attribute = OpSchema, OpSchema.FormalParameter, OpSchema.Attribute
    kinds = schema.AttrType
    return values.Op(
        values.Opset(DOMAIN, 1),
        name,
        schema(
            name,
            DOMAIN,
            since_version=1,
            inputs=[parameter("X", "T"), parameter("scale", "P"), parameter("bias", "P")],
            outputs=[parameter("Y", "T")],
            type_constraints=[("T", _TYPES, ""), ("P", _TYPES, "")],
            attributes=[
                attribute("num_groups", kinds.INT, ""),
                attribute("epsilon", kinds.FLOAT, ""),
            ],
        ),
    )


def _make(x: Any, weight: Any, bias: Any, num_groups: int, eps: float, activation: str) -> Any:
    c = opset18.Shape(x, start=1, end=2)

    def filled(value: float) -> Any:
        number: Any = onnx_ir.tensor([value], dtype=x.dtype)
        return opset18.ConstantOfShape(c, value=number)

    scale = filled(1.0) if weight is None else weight
    shift = filled(0.0) if bias is None else bias
    if scale.dtype != shift.dtype:  # one parameter, of float32 beside a 16-bit x
        scale, shift = (opset18.Cast(p, to=onnx_ir.DataType.FLOAT) for p in (scale, shift))
    make = _operator(_OPERATORS[activation])
    return make(x, scale, shift, num_groups=num_groups, epsilon=eps)


def _aten(
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    return _make(input, weight, bias, num_groups, eps, "none")


def _ours(
    x: Any, weight: Any, bias: Any, num_groups: int, eps: float, activation: str
) -> tuple[Any]:
    return (_make(x, weight, bias, num_groups, eps, activation),)  # no mean, no rstd


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """See `groupnorm.onnx.translation_table`."""
    importlib.import_module("groupnorm.torch")  # defines the operator
    return {
        torch.ops.aten.group_norm.default: _aten,
        torch.ops.groupnorm.group_norm.default: _ours,
    }
