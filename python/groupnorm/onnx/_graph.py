"""A graph with what a match asks: who makes a value, who uses it, its shape, its constant."""

import collections
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

# A value that is larger is no shape, and no parameter of a norm.
_MOST_ELEMENTS = 1 << 16

Dims = tuple[int | None, ...]  # None: a size that is not known


def attributes(node: NodeProto) -> dict[str, Any]:
    """The attributes of a node by name; None for one that a function hands in."""
    return {
        a.name: None if a.ref_attr_name else helper.get_attribute_value(a) for a in node.attribute
    }


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs within a node: of If, Loop, Scan."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def is_standard(node: NodeProto, op: str) -> bool:
    """Whether the node is this operator of ONNX itself."""
    return node.op_type == op and node.domain in ("", "ai.onnx")


def names_used(nodes: Iterable[NodeProto]) -> Iterator[tuple[str, NodeProto]]:
    """Each use of a value by nodes and by what is in them, and the node of the outermost graph."""
    for node in nodes:
        for name in node.input:
            yield name, node
        for graph in subgraphs(node):
            for name, _ in names_used(graph.node):
                yield name, node
            for output in graph.output:
                yield output.name, node


def dtype_of(node: NodeProto) -> Sequence[str]:
    """The values of which a node takes nothing but the dtype."""
    return node.input[1:2] if is_standard(node, "CastLike") else ()


class Scope:
    """A graph, a graph within a node (`outer` is the one around), or the body of a function."""

    def __init__(
        self,
        proto: GraphProto | onnx.FunctionProto,
        inferred: GraphProto | onnx.FunctionProto,
        opset: int,
        folder: str,
        outer: "Scope | None" = None,
    ) -> None:
        self.proto, self.inferred, self.opset, self.outer = proto, inferred, opset, outer
        self._folder = folder
        self.taken: set[int] = set()  # ids of the nodes that belong to a norm
        self.nodes = list(proto.node)  # kept: protobuf makes another object for each look
        is_graph = isinstance(proto, GraphProto)
        self.initializers = {i.name: i for i in proto.initializer} if is_graph else {}
        self.inputs = {i.name for i in proto.input} if is_graph else set(proto.input)
        self.outputs = {o.name for o in proto.output} if is_graph else set(proto.output)
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._users: dict[str, list[NodeProto]] = collections.defaultdict(list)
        for name, node in names_used(self.nodes):
            if name not in dtype_of(node):
                self._users[name].append(node)
        self._types = {}
        infos = [*inferred.value_info]
        if isinstance(inferred, GraphProto):
            infos += [*inferred.input, *inferred.output]
        for info in infos:
            self._types[info.name] = info.type.tensor_type

    def maker(self, name: str) -> NodeProto | None:
        """The node that makes a value, through Identity."""
        node = self._makers.get(name)
        if node is None:
            return self.outer.maker(name) if self.outer is not None else None
        return self.maker(node.input[0]) if is_standard(node, "Identity") else node

    def users(self, name: str) -> Sequence[NodeProto]:
        """The nodes that use a value, more than its dtype, as often as they do."""
        return self._users.get(name, ())

    def only_user(self, name: str, op: str) -> NodeProto | None:
        """The node of that operator that alone uses a value, and belongs to no norm yet."""
        users = self.users(name)
        if len(users) != 1 or name in self.outputs or id(users[0]) in self.taken:
            return None
        return users[0] if is_standard(users[0], op) else None

    def _tensor(self, name: str) -> onnx.TensorProto | None:
        if name in self.initializers:
            return self.initializers[name]
        return self.outer._tensor(name) if self.outer is not None else None

    def element_type(self, name: str) -> int:
        """The TensorProto.DataType of a value; UNDEFINED where it is not known."""
        tensor = self._tensor(name)
        if tensor is not None:
            return tensor.data_type
        if name in self._types:
            return int(self._types[name].elem_type)
        return self.outer.element_type(name) if self.outer is not None else 0

    def dims(self, name: str) -> Dims | None:
        """The shape of a value; None where its rank is not known."""
        tensor = self._tensor(name)
        if tensor is not None:
            return tuple(tensor.dims)
        dims: Dims | None = None
        if name in self._types and self._types[name].HasField("shape"):
            sizes = self._types[name].shape.dim
            dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in sizes)
        elif name not in self._makers and self.outer is not None:
            return self.outer.dims(name)
        if dims is not None and None not in dims:
            return dims
        value = self.constant(name)
        return dims if value is None else value.shape

    def constant(self, name: str) -> numpy.ndarray | None:
        """The value of a small constant; None for others, and where a file has it that is not there.

        Of another dtype maybe: what CastLike does is not looked at.
        """
        tensor = self._tensor(name)
        if tensor is not None:
            is_overridable = name in self.inputs
            return None if is_overridable else self._read(tensor)
        node = self.maker(name)
        if node is None:
            return None
        given = attributes(node)
        if is_standard(node, "Constant"):
            if "value" in given:
                return self._read(given["value"])
            value = next(iter(given.values()), None)
            return None if value is None or isinstance(value, bytes) else numpy.array(value)
        if is_standard(node, "CastLike"):
            return self.constant(node.input[0])
        if is_standard(node, "Shape"):
            sizes = (self.dims(node.input[0]) or (None,))[given.get("start") : given.get("end")]
            return None if None in sizes else numpy.array(sizes, numpy.int64)
        return self._compute(node, name)

    def _read(self, tensor: onnx.TensorProto) -> numpy.ndarray | None:
        if numpy.prod(tensor.dims, dtype=object) > _MOST_ELEMENTS:
            return None
        try:
            return numpy_helper.to_array(tensor, self._folder)
        except (OSError, ValueError, onnx.checker.ValidationError):
            return None

    def _compute(self, node: NodeProto, name: str) -> numpy.ndarray | None:
        """What exporters leave for an optimizer to compute: the operators that make shapes."""
        known = ("Concat", "Expand", "Range", "Reshape", "Sub", "Unsqueeze", "ConstantOfShape")
        if node.domain or node.op_type not in known:
            return None
        inputs = {}
        for used in node.input:
            value = self.constant(used)
            if value is None:
                return None
            inputs[used] = value
        makes = inputs[node.input[-1]] if node.op_type in ("Expand", "ConstantOfShape") else ()
        if numpy.prod(makes, dtype=object) > _MOST_ELEMENTS:
            return None
        graph = helper.make_graph(
            [node],
            "constant",
            [onnx.ValueInfoProto(name=used) for used in inputs],
            [onnx.ValueInfoProto(name=name)],
        )
        opset = helper.make_opsetid("", self.opset)
        try:
            model = ReferenceEvaluator(helper.make_model(graph, opset_imports=[opset]))
            return numpy.asarray(next(iter(model.run(None, inputs))))
        except Exception:  # noqa: BLE001 - of a node that is wrong: whoever runs the model says so
            return None


def infer_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes of its values, and without its larger weights."""
    light = onnx.ModelProto()
    light.ir_version = model.ir_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    for values in ("input", "output", "value_info"):
        getattr(graph, values).extend(getattr(model.graph, values))
    inputs = {i.name for i in graph.input}
    for tensor in model.graph.initializer:
        if numpy.prod(tensor.dims, dtype=object) <= 1024:
            graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # noqa: BLE001 - the model is wrong, or too large: what it says must do
        return light


def base_folder(path: str | os.PathLike[str]) -> str:
    """Where the files lie that a model refers to."""
    return os.path.dirname(os.path.abspath(path))
