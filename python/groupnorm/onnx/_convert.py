"""A model with operators of ai.groupnorm in place of its norms."""

import collections
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ._activations import find_activation
from ._functions import DOMAIN, fallback
from ._graph import (
    Scope,
    base_folder,
    dtype_of,
    infer_types,
    is_standard,
    names_used,
    subgraphs,
)
from ._patterns import NORMS, Norm, NotConverted, Param, match_norm
from ._report import Left, Report

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_LEAST_OPSET = 15  # CastLike, in fallbacks
_LEAST_IR = 8  # functions in a model


def convert(
    model: onnx.ModelProto | str | os.PathLike[str], with_fallback: bool
) -> tuple[onnx.ModelProto, Report]:
    """See `groupnorm.onnx.convert`."""
    folder = ""
    if isinstance(model, (str, os.PathLike)):
        folder = base_folder(model)
        new = onnx.load(model, load_external_data=False)
    elif isinstance(model, onnx.ModelProto):
        new = onnx.ModelProto()
        new.CopyFrom(model)
    else:
        raise TypeError(
            f"model: must be an onnx.ModelProto or the path of a file; got {type(model).__name__}"
        )
    run = _Conversion(new, folder, with_fallback)
    run.report.nodes_before = _count(new)
    inferred = infer_types(new)
    opset = _opset(new.opset_import)
    run.convert_graph(Scope(new.graph, inferred.graph, opset, folder))
    for function in new.functions:
        if function.domain == DOMAIN:  # a fallback
            continue
        before = sum(run.report.converted.values())
        run.convert_graph(Scope(function, function, _opset(function.opset_import), folder))
        if sum(run.report.converted.values()) > before:
            _import_domain(function.opset_import)
    run.report.nodes_after = _count(new)
    if run.report.converted:
        _import_domain(new.opset_import)
        if with_fallback:
            run.add_fallbacks(opset)
    return new, run.report


def _opset(imports: Iterable[onnx.OperatorSetIdProto]) -> int:
    return max((int(i.version) for i in imports if i.domain in ("", "ai.onnx")), default=1)


def _import_domain(imports: Any) -> None:
    if all(known.domain != DOMAIN for known in imports):
        imports.append(helper.make_opsetid(DOMAIN, 1))


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in subgraphs(node):
            yield from _all_nodes(graph.node)


def _all_graphs(model: onnx.ModelProto) -> Iterator[Iterable[NodeProto]]:
    yield model.graph.node
    for function in model.functions:
        if function.domain != DOMAIN:
            yield function.node


def _count(model: onnx.ModelProto) -> int:
    return sum(1 for nodes in _all_graphs(model) for _ in _all_nodes(nodes))


class _Conversion:
    def __init__(self, model: onnx.ModelProto, folder: str, with_fallback: bool) -> None:
        self.report = Report()
        self._with_fallback = with_fallback
        self._model, self._folder = model, folder
        self._in_double = False
        self._names = {i.name for i in model.graph.initializer}
        self._names |= {value.name for value in model.graph.input}
        for nodes in _all_graphs(model):
            for node in _all_nodes(nodes):
                self._names.update(node.output)
                for graph in subgraphs(node):
                    self._names.update(i.name for i in graph.initializer)

    def add_fallbacks(self, opset: int) -> None:
        known = {f.name for f in self._model.functions if f.domain == DOMAIN}
        for name in self.report.converted:
            if name not in known:
                activation = name.removeprefix("GroupNorm")
                self._model.functions.append(fallback(activation, opset, self._in_double))
        self._model.ir_version = max(self._model.ir_version, _LEAST_IR)

    def convert_graph(self, scope: Scope) -> list[str]:
        """Converts a graph and those in it; returns values from around it that it needs no more."""
        needless = self._convert_inner(scope)
        new: dict[int, list[NodeProto]] = {}
        dtypes: dict[str, str] = {}  # values that are gone, and one of the same dtype that is not
        for node in scope.nodes:
            if not any(is_standard(node, op) for op in NORMS):
                continue
            try:
                self._check(scope)
                norm = match_norm(scope, node)
                kind = _known_type(scope, norm)
            except NotConverted as why:
                label = node.name or node.output[0]
                self.report.left.append(Left(label, node.op_type, str(why)))
                continue
            activation, y, behind = find_activation(scope, norm.y)
            nodes = norm.nodes + behind
            scope.taken |= {id(each) for each in nodes}
            needless += [name for each in nodes for name in each.input]
            dtypes |= dict.fromkeys((name for each in nodes for name in each.output), norm.x)
            maker = next(each for each in nodes if y in each.output)
            name = f"GroupNorm{activation}"
            new[id(maker)] = self._nodes(norm, name, y, kind, node.name)
            self.report.converted[name] = self.report.converted.get(name, 0) + 1
            self._in_double |= kind == TensorProto.DOUBLE
        kept: list[NodeProto] = []
        for node in scope.nodes:
            if id(node) in new:
                kept += new[id(node)]
            elif id(node) not in scope.taken:
                kept.append(node)
                for name in dtype_of(node):
                    node.input[1] = dtypes.get(name, name)
        return _store(scope, kept, needless)

    def _convert_inner(self, scope: Scope) -> list[str]:
        inferred = {node.output[0]: node for node in scope.inferred.node if node.output}
        needless = []
        for node in scope.nodes:
            other = inferred.get(node.output[0]) if node.output else None
            types = list(subgraphs(node if other is None else other))
            for graph, its_types in zip(subgraphs(node), types, strict=True):
                inner = Scope(graph, its_types, scope.opset, self._folder, scope)
                needless += self.convert_graph(inner)
        return needless

    def _check(self, scope: Scope) -> None:
        if self._with_fallback and scope.opset < _LEAST_OPSET:
            raise NotConverted(
                f"of opset {scope.opset}: a fallback needs {_LEAST_OPSET}; fallback=False does not"
            )

    def _new_name(self, stem: str) -> str:
        name, count = stem, 1
        while name in self._names:
            name, count = f"{stem}_{count}", count + 1
        self._names.add(name)
        return name

    def _nodes(self, norm: Norm, op: str, y: str, kind: int, label: str) -> list[NodeProto]:
        """The operator that makes y, and what it needs before and behind."""
        nodes: list[NodeProto] = []

        def make(op_type: str, inputs: list[str], name: str, **attributes: Any) -> str:
            name = self._new_name(f"{y}_{name}")
            nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
            return name

        def constant(value: numpy.ndarray, name: str) -> str:
            return make("Constant", [], name, value=numpy_helper.from_array(value))

        def per_channel(param: Param | None, otherwise: float, name: str) -> str:
            c = norm.channels
            if param is None:
                dtype = numpy.float64 if kind == TensorProto.DOUBLE else numpy.float32
                return constant(numpy.full(c or 0, otherwise, dtype), name)
            value = param.name
            if c is not None and c > 1 and param.size == c:
                value = make("Squeeze", [value], name)
            elif c is not None:
                value = make("Reshape", [value, constant(numpy.array([1]), f"{name}_dims")], name)
                size = constant(numpy.array([c]), f"{name}_channels")
                value = make("Expand", [value, size], f"{name}_expanded")
            if kind in _HALVES:
                value = make("Cast", [value], f"{name}_float", to=TensorProto.FLOAT)
            return value

        x, result = norm.x, y
        scale, bias = per_channel(norm.scale, 1, "scale"), per_channel(norm.bias, 0, "bias")
        if kind in _HALVES:
            x = make("Cast", [x], "x_float", to=TensorProto.FLOAT)
            result = self._new_name(f"{y}_float")
        settings: dict[str, Any] = {"num_groups": norm.groups, "epsilon": norm.eps}
        node = helper.make_node(op, [x, scale, bias], [result], label, domain=DOMAIN, **settings)
        nodes.append(node)
        if result != y:
            nodes.append(helper.make_node("Cast", [result], [y], to=kind))
        return nodes


def _known_type(scope: Scope, norm: Norm) -> int:
    """The dtype of x, where something depends on it."""
    kind = scope.element_type(norm.x)
    if kind == TensorProto.UNDEFINED and None in (norm.scale, norm.bias):
        raise NotConverted("its dtype is not known")
    return kind


def _store(scope: Scope, nodes: list[NodeProto], needless: list[str]) -> list[str]:
    """Gives a graph its nodes, without those whose only users are gone.

    Returns those of `needless` that are of a graph around this one.
    """
    users = collections.Counter(name for name, _ in names_used(nodes))
    users.update(scope.outputs)
    makers = {name: node for node in nodes for name in node.output}
    gone, outer = set(), []
    while needless:
        name = needless.pop()
        node = makers.get(name)
        if node is not None and id(node) not in gone and not any(users[o] for o in node.output):
            gone.add(id(node))
            used = [each for each, _ in names_used([node])]
            users.subtract(used)
            needless += used
        elif node is None and name not in scope.initializers:
            outer.append(name)
        elif name in scope.initializers and not users[name] and name not in scope.inputs:
            gone.add(id(scope.initializers[name]))
    _replace(scope.proto.node, [node for node in nodes if id(node) not in gone])
    if isinstance(scope.proto, GraphProto):
        _replace(
            scope.proto.initializer, [i for i in scope.initializers.values() if id(i) not in gone]
        )
    return outer


def _replace(field: Any, values: list[Any]) -> None:
    if len(field) != len(values) or any(a is not b for a, b in zip(field, values, strict=True)):
        del field[:]
        field.extend(values)
