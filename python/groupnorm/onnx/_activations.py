"""An activation behind a norm, as exporters write it."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import NodeProto

from ._graph import Scope, attributes, is_standard

Y = "y"  # the value that the activation is of


@dataclass
class Op:
    """An expression: an operator of expressions, of Y, and of numbers."""

    name: str
    of: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


def _op(name: str, *of: Any, **attributes: Any) -> Op:
    return Op(name, of, attributes)


def _half_of(part: Op) -> list[Op]:
    """0.5 y part, in any order."""
    return [
        _op("Mul", Y, _op("Mul", 0.5, part)),
        _op("Mul", 0.5, _op("Mul", Y, part)),
        _op("Mul", part, _op("Mul", 0.5, Y)),
    ]


_ERFS = [_op("Erf", _op("Div", Y, math.sqrt(2))), _op("Erf", _op("Mul", Y, math.sqrt(0.5)))]
_CUBES = [_op("Pow", Y, 3), _op("Mul", Y, _op("Mul", Y, Y))]
_TANHS = [
    _op("Tanh", _op("Mul", math.sqrt(2 / math.pi), _op("Add", Y, _op("Mul", 0.044715, cube))))
    for cube in _CUBES
]
_CLIP = _op("Clip", _op("Add", Y, 3), 0, 6)

# An attribute that a node does not have is that of the operator's definition.
_DEFAULTS = {"approximate": b"none", "alpha": {"HardSigmoid": 0.2, "Swish": 1.0}, "beta": 0.5}

_FORMS: list[tuple[str, list[Op]]] = [
    ("Relu", [_op("Relu", Y)]),
    ("Silu", [_op("Mul", Y, _op("Sigmoid", Y)), _op("Swish", Y, alpha=1.0)]),
    (
        "Gelu",
        [
            _op("Gelu", Y, approximate=b"none"),
            *(form for erf in _ERFS for form in _half_of(_op("Add", 1, erf))),
        ],
    ),
    (
        "GeluTanh",
        [
            _op("Gelu", Y, approximate=b"tanh"),
            *(form for tanh in _TANHS for form in _half_of(_op("Add", 1, tanh))),
        ],
    ),
    (
        "HardSwish",
        [
            _op("HardSwish", Y),
            _op("Mul", Y, _op("HardSigmoid", Y, alpha=1 / 6, beta=0.5)),
            _op("Mul", Y, _op("Div", _CLIP, 6)),
            _op("Div", _op("Mul", Y, _CLIP), 6),
        ],
    ),
]
_MOST_NODES = 12


def _is_near(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, bytes):
        return bool(value == wanted)
    return value is not None and math.isclose(value, wanted, rel_tol=5e-4)  # rounded to float16


def _match(scope: Scope, y: str, value: str, form: Any) -> list[NodeProto] | None:
    """The nodes that make `value` of y by `form`."""
    if form is Y:
        return [] if value == y else None
    if not isinstance(form, Op):
        constant = scope.constant(value)
        is_it = constant is not None and constant.size == 1 and _is_near(constant.item(), form)
        return [] if is_it else None
    node = scope.maker(value)
    if node is None or not is_standard(node, form.name) or len(node.input) != len(form.of):
        return None
    given = attributes(node)
    for name, wanted in form.attributes.items():
        default = _DEFAULTS[name]
        default = default[form.name] if isinstance(default, dict) else default
        if not _is_near(given.get(name, default), wanted):
            return None
    orders: Sequence[Sequence[Any]] = [form.of]
    if form.name in ("Add", "Mul"):
        orders = list(itertools.permutations(form.of))
    for order in orders:
        parts = [_match(scope, y, name, part) for name, part in zip(node.input, order, strict=True)]
        if all(part is not None for part in parts):
            return [node, *(inner for part in parts for inner in part or [])]
    return None


def _behind(scope: Scope, y: str) -> list[NodeProto]:
    """Nodes that y leads to, the nearest first."""
    found: list[NodeProto] = []
    values = [y]
    while values and len(found) < _MOST_NODES:
        for node in scope.users(values.pop(0)):
            if not any(node is other for other in found):
                found.append(node)
                values += node.output
    return found


def find_activation(scope: Scope, y: str) -> tuple[str, str, list[NodeProto]]:
    """The activation that alone uses y: its name ("" for none), its result, its nodes."""
    behind = [] if y in scope.outputs else _behind(scope, y)
    for node in behind:
        for name, forms in _FORMS:
            for form in forms:
                if node.op_type != form.name or len(node.output) != 1:
                    continue
                nodes = _match(scope, y, node.output[0], form)
                if nodes and _is_closed(scope, y, nodes):
                    return name, node.output[0], nodes
    return "", y, []


def _is_closed(scope: Scope, y: str, nodes: list[NodeProto]) -> bool:
    """Whether nobody else sees y, nor what lies between it and the result of nodes[0]."""
    inner = [y, *(name for node in nodes[1:] for name in node.output)]
    mine = {id(node) for node in nodes}
    return all(
        name not in scope.outputs and all(id(user) in mine for user in scope.users(name))
        for name in inner
    )
