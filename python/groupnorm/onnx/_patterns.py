"""The norms in a graph: GroupNormalization, and what exporters write for it before opset 21."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from onnx import NodeProto

from ._graph import Dims, Scope, attributes, is_standard

NORMS = ("GroupNormalization", "InstanceNormalization")


class NotConverted(Exception):
    """Why a norm stays as it is, in a few words."""


class Param(NamedTuple):
    """scale or bias: a value of any shape, and how many numbers it has; None: it is [C]."""

    name: str
    size: int | None


@dataclass
class Norm:
    """y = scale * xhat + bias, by `nodes`, of which nobody else needs anything but y."""

    x: str
    y: str
    scale: Param | None  # None: 1
    bias: Param | None  # None: 0
    channels: int | None  # None: not known, and then scale and bias are [C]
    groups: int
    eps: float
    nodes: list[NodeProto]


def match_norm(scope: Scope, node: NodeProto) -> Norm:
    """The norm that a node of `NORMS` is, or is the middle of."""
    is_whole = is_standard(node, "GroupNormalization")
    return _group_normalization(scope, node) if is_whole else _reshaped(scope, node)


def _need(fact: Any, otherwise: str) -> None:
    if not fact:
        raise NotConverted(otherwise)


def _eps(given: dict[str, Any]) -> float:
    eps = given.get("epsilon", 1e-5)
    _need(eps is not None, "its epsilon is an argument of the function it is in")
    return float(eps)


def _group_normalization(scope: Scope, node: NodeProto) -> Norm:
    given = attributes(node)
    _need(scope.opset >= 21, "of opset 18: its scale and bias are per group")
    _need(given.get("stash_type", 1) == 1, "its stash_type is not 1 (float)")
    groups = given.get("num_groups")
    _need(groups is not None, "its num_groups is missing, or an argument of the function it is in")
    _need(len(node.input) == 3 and all(node.input), "it needs X, scale and bias")
    x, scale, bias = node.input
    x_dims = scope.dims(x)
    channels = x_dims[1] if x_dims is not None and len(x_dims) > 1 else None
    for param in (scale, bias):
        dims = scope.dims(param)
        per_channel = dims is None or (len(dims) == 1 and channels in (None, dims[0] or channels))
        _need(per_channel, "its parameters are not per channel")
    params = Param(scale, None), Param(bias, None)
    return Norm(x, node.output[0], *params, None, int(groups or 0), _eps(given), [node])


def _reshaped(scope: Scope, node: NodeProto) -> Norm:
    """Reshape to [N, G, -1], InstanceNormalization of ones and zeros, Reshape back, Mul, Add."""
    ones, zeros = scope.constant(node.input[1]), scope.constant(node.input[2])
    first = scope.maker(node.input[0])
    is_grouped = first is not None and is_standard(first, "Reshape")
    _need(is_grouped, "an instance normalization, not between Reshapes")
    assert first is not None
    _need(ones is not None and zeros is not None, "its inner scale and bias are not constant")
    assert ones is not None and zeros is not None
    _need((ones == 1).all() and (zeros == 0).all(), "its inner scale and bias are not 1 and 0")
    last = scope.only_user(node.output[0], "Reshape")
    _need(last is not None, "no Reshape behind it that alone uses it")
    assert last is not None

    x, groups = first.input[0], ones.size
    dims = _dims_of(scope, x, last)
    _need(_is_by_groups(scope, first, dims, groups), "it is not reshaped to [N, groups, -1]")
    params, y, nodes = _affine(scope, last.output[0], dims)
    sizes = {param.size for param in params.values() if param.size != 1}
    channels = dims[1] if dims[1] is not None else next(iter(sizes), None)
    _need(channels is not None, "its number of channels is not known")
    assert channels is not None
    _need(sizes <= {channels}, "its parameters are not per channel")
    _need(channels % groups == 0, "its groups do not divide the channels")
    eps = _eps(attributes(node))
    nodes = [node, last, *nodes]
    return Norm(x, y, params.get("Mul"), params.get("Add"), channels, groups, eps, nodes)


def _dims_of(scope: Scope, x: str, last: NodeProto) -> Dims:
    """The shape of x, to which `last` reshapes."""
    dims = scope.dims(x)
    _need(dims is not None, "its rank is not known")
    assert dims is not None
    _need(len(dims) >= 2, "its input has no channels")
    shape = scope.constant(last.input[1])
    if shape is None:
        made_by = scope.maker(last.input[1])
        given = {} if made_by is None else attributes(made_by)
        of_x = (
            made_by is not None
            and is_standard(made_by, "Shape")
            and _same(scope, made_by.input[0], x)
            and given.get("start", 0) == 0
            and "end" not in given
        )
    else:
        of_x = _is_shape([int(size) for size in shape.reshape(-1)], dims)
    _need(of_x, "it is reshaped to something that is not the shape of its input")
    return dims


def _same(scope: Scope, a: str, b: str) -> bool:
    made = scope.maker(a)
    return a == b or (made is not None and made is scope.maker(b))


def _is_shape(to: Sequence[int], dims: Dims) -> bool:
    """Whether a Reshape to `to` gives `dims`: one size may be -1, or not known."""
    if len(to) != len(dims):
        return False
    differ = [i for i, (a, b) in enumerate(zip(to, dims, strict=True)) if a != b]
    # 0 stands for the size of what is reshaped, [N, groups, ...], where N alone is at its place.
    differ = [i for i in differ if not (to[i] == 0 and i == 0)]
    return len(differ) == 0 or (
        len(differ) == 1 and (to[differ[0]] == -1 or dims[differ[0]] is None)
    )


def _is_by_groups(scope: Scope, first: NodeProto, dims: Dims, groups: int) -> bool:
    shape = scope.constant(first.input[1])
    if shape is None or shape.size != 3 or attributes(first).get("allowzero", 0):
        return False
    n, g, rest = (int(size) for size in shape)
    if g != groups or not (n == 0 or n == dims[0]):
        return False
    # Where all but one of the sizes agree, so does the last.
    return rest == -1 or n == 0 or n == dims[0]


def _affine(scope: Scope, y: str, dims: Dims) -> tuple[dict[str, Param], str, list[NodeProto]]:
    """The Mul and Add behind y: their parameters with sizes, the result, the nodes."""
    params: dict[str, Param] = {}
    nodes = []
    for op in ("Mul", "Add"):
        node = scope.only_user(y, op)
        if node is None:
            continue
        other = node.input[1] if node.input[0] == y else node.input[0]
        size = _size_by_channel(scope.dims(other), dims)
        if size is None:
            if op == "Mul":
                break  # an Add behind it is not the norm's
            continue
        params[op] = Param(other, size)
        nodes.append(node)
        y = node.output[0]
    return params, y, nodes


def _size_by_channel(dims: Dims | None, x_dims: Dims) -> int | None:
    """How many numbers a parameter has that broadcasts along the channels alone; None: it doesn't."""
    if dims is None or len(dims) > len(x_dims) or None in dims:
        return None
    full = (1,) * (len(x_dims) - len(dims)) + tuple(dims)
    if any(size != 1 for i, size in enumerate(full) if i != 1):
        return None
    return full[1] if x_dims[1] is None or full[1] in (1, x_dims[1]) else None
