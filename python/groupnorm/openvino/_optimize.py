"""A model with the engine's operator in place of its norms."""

import os
from typing import Any

import numpy
import openvino
from openvino import Output, Type
from openvino import opset12 as op
from openvino.utils import replace_node

from ._operator import GroupNorm, bfloat16
from ._patterns import Norm, NotReplaced, constant, graphs_of, match_norm
from ._report import Left, Replaced, Report
from ._rules import kept_in_f32, layout_of

_PRECISIONS = {"f32": Type.f32, "bf16": Type.bf16, "f16": Type.f16}


def optimize(model: openvino.Model, precision: str | None = None) -> Report:
    """Puts `GroupNorm` in place of the group normalizations of a model.

    It finds GroupNormalization and what exporters write for it in older opsets of ONNX (MVN between
    two Reshapes, with Multiply and Add behind), in the model and in the models within it (If, Loop,
    TensorIterator), and takes in a relu, silu, gelu or hard_swish behind it that alone uses its
    result. A norm of static shape behind a convolution works in channels_last, between two
    Transposes that cost nothing, since convolutions have that layout too; others in channels_first.
    Norms that OpenVINO computes as fast, small ones, stay; but in f32 not those that are added to
    something behind them, since OpenVINO may crash on these.

    Args:
        model: is changed in place. Names, inputs and outputs stay, and so does all that is no norm.
        precision: "f32", "bf16" or "f16": the INFERENCE_PRECISION_HINT with which the model is going
            to be compiled. None: what the CPU plugin takes by default on this machine.

    Returns:
        What was replaced, in which layout, and what not and why. Of a second call: nothing.

    Raises:
        TypeError: model is no openvino.Model, or precision no str.
        ValueError: precision is unknown.
        ImportError: bf16 needs the package ml_dtypes.
    """
    if not isinstance(model, openvino.Model):
        raise TypeError(f"model: must be an openvino.Model; got {_instead(model)}")
    report = Report(_precision(precision))
    for graph in list(graphs_of(model)):
        in_f32 = kept_in_f32(graph)
        for node in graph.get_ordered_ops():
            try:
                norm = match_norm(node)
                if norm is None:
                    continue
                inner = "f32" if node.get_instance_id() in in_f32 else report.precision
                layout, why = layout_of(norm, report.precision, inner == "f32")
            except NotReplaced as reason:
                names = node.get_friendly_name(), node.get_type_name()
                report.left.append(Left(*names, str(reason)))
                continue
            _replace(norm, layout, _PRECISIONS[inner])
            names = node.get_friendly_name(), node.get_type_name()
            report.replaced.append(Replaced(*names, norm.activation, layout, why))
    if report.replaced:
        model.validate_nodes_and_infer_types()
    return report


def _instead(model: Any) -> str:
    """What `model` is, and what to do about it."""
    kind = type(model).__name__
    if isinstance(model, openvino.CompiledModel):
        return f"{kind}: optimize it before it is compiled"
    if isinstance(model, (str, os.PathLike)):
        return f"{kind}: read it first, by openvino.Core().read_model"
    return kind


def _precision(precision: str | None) -> str:
    if precision is None:
        default = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT")
        precision = next((name for name, own in _PRECISIONS.items() if own == default), "f32")
    elif not isinstance(precision, str):
        raise TypeError(f"precision: must be a str or None; got {precision!r}")
    elif precision not in _PRECISIONS:
        known = ", ".join(map(repr, _PRECISIONS))
        raise ValueError(f"precision: must be one of {known}, or None; got {precision!r}")
    if precision == "bf16":
        bfloat16()
    return precision


def _replace(norm: Norm, layout: str, precision: Type) -> None:
    """Puts the operator, and what is around it, in the place of a norm."""
    x, dtype = norm.x, norm.x.get_element_type()
    # OpenVINO runs what it does not know in the type it has: it would convert to f32 and back.
    converted = precision if dtype == Type.f32 else dtype
    rank = len(x.get_partial_shape()) if layout == "channels_last" else 0
    if rank:
        x = _transposed(x, [0, *range(2, rank), 1])
    shape = x.get_partial_shape()
    if converted != dtype:
        x = op.convert(_of_rank_7(x, layout), converted).output(0)
    node = GroupNorm(
        [x, _param(norm, norm.scale, 1), _param(norm, norm.bias, 0)],
        norm.groups,
        norm.eps,
        norm.activation,
        layout,
    )
    node.set_friendly_name(norm.node.get_friendly_name())
    y = node
    if converted != dtype:
        y = op.convert(y, dtype)
        if y.get_output_partial_shape(0) != shape:
            y = _reshaped(y.output(0), list(shape.to_shape())).get_node()
    if rank:
        y = _transposed(y.output(0), [0, rank - 1, *range(1, rank - 1)]).get_node()
    y.set_friendly_name(norm.last.get_friendly_name())
    replace_node(norm.last, y)
    for user in list(norm.y.get_target_inputs()):  # they keep the old norm otherwise
        if user.get_node().get_type_name() == "ShapeOf":
            user.replace_source_output(norm.x)


def _transposed(value: Output, order: list[int]) -> Output:
    return op.transpose(value, op.constant(numpy.array(order, numpy.int32))).output(0)


def _reshaped(value: Output, shape: list[int]) -> Output:
    return op.reshape(value, op.constant(numpy.array(shape, numpy.int64)), False).output(0)


def _of_rank_7(value: Output, layout: str) -> Output:
    """The same value with more positions of size 1.

    The CPU plugin drops a Convert between equal types, unless its compiler of elementwise operations
    has taken it, which then copies. That compiler takes tensors of rank 6 at most.
    """
    if value.get_partial_shape().is_dynamic or len(value.get_shape()) >= 7:
        return value
    shape = list(value.get_shape())
    ones = [1] * (7 - len(shape))
    split = 1 if layout == "channels_last" else 2
    return _reshaped(value, [*shape[:split], *ones, *shape[split:]])


def _param(norm: Norm, param: Output | None, default: float) -> Output:
    """scale or bias as [C]. A constant is one of the type that the engine takes beside x."""
    value = numpy.array([default]) if param is None else constant(param)
    if value is not None:
        dtype = numpy.float64 if norm.x.get_element_type() == Type.f64 else numpy.float32
        size = norm.channels or value.size
        return op.constant(numpy.resize(value, size).astype(dtype)).output(0)
    assert param is not None
    if norm.channels is None:
        return param
    flat = op.reshape(param, op.constant(numpy.array([-1], numpy.int32)), False)
    return op.broadcast(flat, op.constant(numpy.array([norm.channels], numpy.int32))).output(0)
