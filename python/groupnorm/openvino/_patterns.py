"""The norms in a graph: GroupNormalization, MVN between two Reshapes, and activations behind them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
from openvino import Node, Output, PartialShape

from .._arrays import Array

# A constant that is larger is no shape, and no parameter of a norm.
_MOST_ELEMENTS = 1 << 16


class NotReplaced(Exception):
    """Why a norm stays as it is, in a few words."""


@dataclass
class Norm:
    """activation(scale * xhat + bias), from x to the one output of `last`."""

    node: Node  # GroupNormalization or MVN
    last: Node
    x: Output
    y: Output  # before the activation
    scale: Output | None  # None: 1
    bias: Output | None  # None: 0
    channels: int | None  # None: not known, and then scale and bias are [C]
    groups: int
    eps: float
    activation: str = "none"

    @property
    def is_one_node(self) -> bool:
        """Whether it is a GroupNormalization, with what is behind it."""
        return _is(self.node, "GroupNormalization")


def graphs_of(model: Any) -> Iterator[Any]:
    """A model and the models within it."""
    yield model
    for node in model.get_ordered_ops():
        if _is(node, "If"):
            yield from graphs_of(node.get_then_body())
            yield from graphs_of(node.get_else_body())
        elif _is(node, "Loop") or _is(node, "TensorIterator"):
            yield from graphs_of(node.get_function())


def match_norm(node: Node) -> Norm | None:
    """The norm that a node is or is the middle of; None: it is of another kind.

    Raises:
        NotReplaced: it is a norm, but not one that the engine can take.
    """
    if _is(node, "GroupNormalization"):
        given = node.get_attributes()
        x, scale, bias = node.input_values()
        numbers = int(given["num_groups"]), float(given["epsilon"])
        norm = Norm(node, node, x, node.output(0), scale, bias, None, *numbers)
    elif _is(node, "MVN") and _is(node.input_value(0).get_node(), "Reshape"):
        norm = _between_reshapes(node)
    else:
        return None
    norm.last, norm.activation = _activation(norm.last)
    return norm


def _need(fact: Any, otherwise: str) -> None:
    if not fact:
        raise NotReplaced(otherwise)


def _is(node: Node, kind: str) -> bool:
    """Whether a node is this operator of OpenVINO itself."""
    info = node.get_type_info()
    return bool(info.name == kind and info.version_id.startswith("opset"))


def _users(value: Output) -> list[Node]:
    """The nodes that use a value, more than its shape, as often as they do."""
    nodes = [each.get_node() for each in value.get_target_inputs()]
    return [node for node in nodes if not _is(node, "ShapeOf")]


def _only_user(value: Output, kind: str) -> Node | None:
    """The node of that kind that alone uses a value."""
    found = _users(value)
    return found[0] if len(found) == 1 and _is(found[0], kind) else None


def _other(node: Node, value: Output) -> Output:
    """The other operand of a node of two."""
    left, right = node.input_values()
    return right if left == value else left


def constant(value: Output, repeated: bool = False) -> Array | None:
    """The elements of a small constant in float64, if it is one. repeated: as often as they may be."""
    node = value.get_node()
    kinds = {"Convert", "ConvertLike", "Reshape", "Squeeze", "Unsqueeze"}
    if repeated:
        kinds.add("Broadcast")
    while node.get_type_name() in kinds:
        node = node.input_value(0).get_node()
    if not _is(node, "Constant") or math.prod(node.get_output_shape(0)) > _MOST_ELEMENTS:
        return None
    found: Array = node.get_data(dtype=numpy.float64).reshape(-1)
    return found


def _between_reshapes(node: Node) -> Norm:
    """Reshape to [N, groups, ...], MVN over the rest, Reshape back, Multiply, Add."""
    given = node.get_attributes()
    first = node.input_value(0).get_node()
    x = first.input_value(0)
    dims, grouped = x.get_partial_shape(), first.get_output_partial_shape(0)
    axes = constant(node.input_value(1))
    _need(dims.rank.is_static and len(dims) >= 2, "its input has no known rank of 2 or more")
    _need(grouped.rank.is_static and len(grouped) >= 3, "it is not reshaped to [N, groups, ...]")
    _need(axes is not None, "its axes are not constant")
    assert axes is not None
    rest = {int(axis) % len(grouped) for axis in axes}
    _need(rest == set(range(2, len(grouped))), "its axes are not those behind N and groups")
    _need(given["normalize_variance"], "it does not divide by the deviation")
    _need(given["eps_mode"].lower() == "inside_sqrt", "its eps is outside of the root")
    _need(dims[1].is_static and grouped[1].is_static, "its channels or groups are not known")
    channels, groups = dims[1].get_length(), grouped[1].get_length()
    _need(channels % groups == 0, "its groups do not divide the channels")
    _need(_keeps_examples(first, dims, grouped), "it is not reshaped to [N, groups, ...]")

    value = _skip_ones_and_zeros(node.output(0))
    last = _only_user(value, "Reshape")
    _need(last is not None, "no Reshape behind it that alone uses it")
    assert last is not None
    _need(_is_back(last, x), "it is reshaped to something that is not the shape of its input")
    params: dict[str, Output] = {}
    for kind in ("Multiply", "Add"):
        behind = _only_user(last.output(0), kind)
        if behind is None:
            continue
        param = _other(behind, last.output(0))
        if _is_by_channel(param.get_partial_shape(), dims):
            params[kind], last = param, behind
        elif kind == "Multiply":
            break  # an Add behind it is not the norm's
    pair = params.get("Multiply"), params.get("Add")
    return Norm(node, last, x, last.output(0), *pair, channels, groups, float(given["eps"]))


def _keeps_examples(first: Node, dims: PartialShape, grouped: PartialShape) -> bool:
    """Whether a Reshape of `dims` to `grouped` leaves the first axis as it is."""
    if dims[0].is_static and grouped[0].is_static:
        return bool(dims[0] == grouped[0])
    pattern = constant(first.input_value(1))
    if pattern is not None and pattern[0] == 0 and first.get_attributes()["special_zero"]:
        return True
    rests = [list(shape)[1:] for shape in (dims, grouped)]
    if any(dim.is_dynamic for rest in rests for dim in rest):
        return False
    before, after = (math.prod(dim.get_length() for dim in rest) for rest in rests)
    return before == after


def _is_back(last: Node, x: Output) -> bool:
    """Whether a Reshape gives the shape of x, which is known to have as many elements."""
    source = last.input_value(1).get_node()
    if _is(source, "Convert"):
        source = source.input_value(0).get_node()
    if _is(source, "ShapeOf") and source.input_value(0) == x:
        return True
    before, after = x.get_partial_shape(), last.get_output_partial_shape(0)
    if not after.rank.is_static or len(before) != len(after):
        return False
    unknown = [pair for pair in zip(before, after, strict=True) if any(d.is_dynamic for d in pair)]
    return len(unknown) <= 1 and before.compatible(after)


def _skip_ones_and_zeros(value: Output) -> Output:
    """Behind the inner scale and bias of an InstanceNormalization, if they are ones and zeros."""
    for kind, neutral in (("Multiply", 1), ("Add", 0)):
        node = _only_user(value, kind)
        if node is not None:
            param = constant(_other(node, value), repeated=True)
            _need(
                param is not None and (param == neutral).all(),
                "its inner scale and bias are not constant ones and zeros",
            )
            value = node.output(0)
    return value


def _is_by_channel(shape: PartialShape, dims: PartialShape) -> bool:
    """Whether a parameter broadcasts along the channels of `dims` alone."""
    if shape.is_dynamic or len(shape) > len(dims):
        return False
    sizes = [1] * (len(dims) - len(shape)) + list(shape.to_shape())
    alone = all(size == 1 for i, size in enumerate(sizes) if i != 1)
    return alone and sizes[1] in (1, dims[1].get_length())


def _activation(node: Node) -> tuple[Node, str]:
    """The last node of the activation that alone uses a node's output, and its name."""
    y = node.output(0)
    behind = _users(y)
    if len(behind) == 1:
        name = _unary(behind[0])
    elif len(behind) == 2:
        behind.sort(key=lambda user: user.get_type_name() != "Multiply")
        name = _product(y, *behind)
    else:
        name = ""
    return (behind[0], name) if name else (node, "none")


def _unary(node: Node) -> str:
    """The activation that a node is; "": none."""
    if _is(node, "Swish"):
        beta = constant(node.input_value(1)) if node.get_input_size() == 2 else numpy.ones(1)
        return "silu" if beta is not None and (beta == 1).all() else ""
    if _is(node, "Gelu"):
        mode = node.get_attributes().get("approximation_mode", "ERF").upper()
        return "gelu_tanh" if mode == "TANH" else "gelu"
    return {"Relu": "relu", "HSwish": "hard_swish"}.get(node.get_type_name(), "")


def _product(y: Output, product: Node, factor: Node) -> str:
    """The activation that y * f(y) is; "": none."""
    if not _is(product, "Multiply") or _only_user(factor.output(0), "Multiply") is None:
        return ""
    if sorted(map(_id, product.input_values())) != sorted(map(_id, (y, factor.output(0)))):
        return ""
    if _is(factor, "Sigmoid"):
        return "silu"
    if _is(factor, "HardSigmoid"):
        numbers = [constant(value) for value in factor.input_values()[1:]]
        wanted = (1 / 6, 0.5)
        near = (
            number is not None
            and number.size == 1
            and math.isclose(number.item(), want, rel_tol=5e-4)
            for number, want in zip(numbers, wanted, strict=True)
        )
        return "hard_swish" if all(near) else ""
    return ""


def _id(value: Output) -> tuple[int, int]:
    return value.get_node().get_instance_id(), value.get_index()
