"""Which norms the engine computes, in which layout and in which type. tuning.md has what was measured."""

import math
from typing import Any

from openvino import Node, Output

from ._patterns import Norm, NotReplaced, constant

_CONVOLUTIONS = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
}
# They keep the layout of their inputs.
_FOLLOWERS = {
    "Add",
    "AvgPool",
    "Clamp",
    "Concat",
    "Convert",
    "Divide",
    "Elu",
    "FakeQuantize",
    "Gelu",
    "HSwish",
    "Interpolate",
    "MaxPool",
    "Multiply",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Subtract",
    "Swish",
}
# Those that the CPU plugin computes in bf16 wherever they are, for speed.
_HALF = {
    "Convolution",
    "GroupConvolution",
    "GRUCell",
    "GRUSequence",
    "Interpolate",
    "LSTMCell",
    "LSTMSequence",
    "MatMul",
    "RNNCell",
    "RNNSequence",
    "ROIPooling",
}

# A call of the operator costs some 60 us more than OpenVINO's own, which takes longer for each
# element: from so many on, in f32 and in 16 bits, the engine is as fast, on one thread and on two.
_LEAST = (1 << 19, 1 << 20)

# What OpenVINO merges with a norm before it, in f32. Where such a node has another input that is of
# the same shape and no constant, 2026.4 may crash as it compiles the model.
_MERGED = {"Clamp", "Convert", "Elu", "Gelu", "HSwish", "Relu", "Sigmoid", "Swish", "Tanh"}
_JOINING = {"Add", "Divide", "Maximum", "Minimum", "Multiply", "Subtract"}


def kept_in_f32(graph: Any) -> set[int]:
    """The ids of the nodes that the CPU plugin computes in f32 under a hint of 16 bits.

    It is all between the results and the last nodes of `_HALF` (Graph::EnforceInferencePrecision).
    """
    found: set[int] = set()
    nodes = list(graph.get_results())
    while nodes:
        for value in nodes.pop().input_values():
            node = value.get_node()
            if node.get_type_name() not in _HALF and node.get_instance_id() not in found:
                found.add(node.get_instance_id())
                nodes.append(node)
    return found


def layout_of(norm: Norm, precision: str, in_f32: bool) -> tuple[str, str]:
    """The layout of a norm, and why. in_f32: whether OpenVINO would compute it in f32.

    Raises:
        NotReplaced: OpenVINO's own is as fast.
    """
    shape = norm.x.get_partial_shape()
    if shape.is_dynamic:  # Transposes are no longer free
        return "channels_first", "its shape is dynamic"
    if len(shape) not in (4, 5):
        layout, why = "channels_first", f"its rank is {len(shape)}"
    elif _is_behind_convolution(norm.x, set()):
        layout, why = "channels_last", "it is behind a convolution"
    else:
        layout, why = "channels_first", "it is not behind a convolution"
    elements, least = math.prod(shape.to_shape()), _LEAST[precision != "f32"]
    if in_f32 and elements < least and norm.is_one_node and _is_joined(norm.last.output(0)):
        return layout, f"{why}, and OpenVINO may crash on it"
    if elements < least:
        raise NotReplaced(f"it has {elements} elements; from {least} on the engine is faster")
    return layout, why


def _is_joined(value: Output) -> bool:
    """Whether a value is added to another, or the like, maybe behind an activation."""
    for user in (target.get_node() for target in value.get_target_inputs()):
        kind = user.get_type_name()
        if kind in _MERGED and _is_joined(user.output(0)):
            return True
        shapes = [own.get_partial_shape() for own in _variables(user)]
        if kind in _JOINING and len(shapes) == 2 and shapes[0] == shapes[1]:
            return True
    return False


def _is_behind_convolution(value: Output, seen: set[int]) -> bool:
    """Whether a value lies in memory as convolutions write it, maybe through what keeps the layout."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind in _CONVOLUTIONS or _is_ours(node):
        return True
    if kind not in _FOLLOWERS or node.get_instance_id() in seen or _is_in_place(node):
        return False
    seen.add(node.get_instance_id())
    return any(_is_behind_convolution(each, seen) for each in _variables(node))


def _variables(node: Node) -> list[Output]:
    return [value for value in node.input_values() if constant(value) is None]


def _is_in_place(node: Node) -> bool:
    """Whether a convolution adds its result to this node's other input, in the memory of that.

    A Transpose of such memory is not free.
    """
    values = _variables(node)
    if node.get_type_name() != "Add" or len(values) != 2:
        return False
    shape = node.get_output_partial_shape(0)
    return all(value.get_partial_shape() == shape for value in values) and any(
        _is_convolution(value.get_node()) for value in values
    )


def _is_convolution(node: Node) -> bool:
    """Whether a node is a convolution, or what adds a bias to one."""
    if node.get_type_name() == "Add" and len(_variables(node)) == 1:
        node = _variables(node)[0].get_node()
    return node.get_type_name() in _CONVOLUTIONS


def _is_ours(node: Node) -> bool:
    """Whether a node is the Transpose behind a norm in channels_last."""
    if node.get_type_name() != "Transpose":
        return False
    inner = node.input_value(0).get_node()
    if inner.get_type_name() == "Convert":
        inner = inner.input_value(0).get_node()
    return bool(inner.get_type_name() == "GroupNorm")
