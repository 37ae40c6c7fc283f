"""Norms of other code that compute what one of torch does: known by the source of their forward.

Such a class stands in many code bases under many names (the GroupNorm32 of diffusion models, the
LayerNorm of CLIP, LayerNorm2d). `computation` writes its forward as one expression: names of
arguments and variables, ways to write a cast and aliases of modules are gone from it, and what is
left is looked up in a table.
"""

import ast
import builtins
import copy
import functools
import inspect
import textwrap
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import functional
from .fusion import is_idle, kind_of, refuse_script
from .modules import Activated

# --- What they compute, on the engine.


class KnownNorm(Activated):
    """Comes before one of our modules: a class that computes the same, maybe in float32.

    The engine computes a 16-bit input in float32 and rounds once, with parameters of either dtype.
    Whatever else it would take otherwise than the class goes to the forward of the class.
    """

    takes_activation = True
    rank: ClassVar[int | None] = None  # of the input

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.run(*args, *kwargs.values())  # whatever the name of its argument

    def takes_neighbours(self) -> bool:
        return self.rank is None and super().takes_neighbours()

    def normalize(self, input: Tensor, activation: str, **neighbours: Any) -> Tensor:
        dtypes = {p.dtype for p in (self.weight, self.bias) if p is not None}
        narrow = input.dtype in (torch.float16, torch.bfloat16)
        fit = dtypes <= {input.dtype, torch.float32 if narrow else input.dtype}
        if not fit or not input.is_cpu or self.rank not in (None, input.dim()):
            return self.own(input, activation, **neighbours)
        return self.back(super().normalize(self.forth(input), activation, **neighbours))

    def forth(self, x: Tensor) -> Tensor:
        """The input of the class as torch's module takes it."""
        return x

    def back(self, y: Tensor) -> Tensor:
        """The result of torch's module as the class gives it."""
        return y

    def __prepare_scriptable__(self) -> nn.Module:
        return refuse_script(self)


class OverChannels(KnownNorm):
    """A LayerNorm of [N, C, H, W] over C."""

    takes_activation = True
    rank = 4

    def forth(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)

    def back(self, y: Tensor) -> Tensor:
        return y.permute(0, 3, 1, 2)


class OverRows(KnownNorm):
    """A LayerNorm of [N, C, L] over C."""

    takes_activation = True
    rank = 3

    def forth(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def back(self, y: Tensor) -> Tensor:
        return y.transpose(1, 2)


class WithActivation(KnownNorm):
    """A norm with a drop and an activation of its own."""

    takes_activation = False  # of the module behind it
    drop: nn.Module
    act: nn.Module

    def fused_kind(self) -> str | None:
        return kind_of(self.act) if is_idle(self.drop) else None

    def takes_neighbours(self) -> bool:
        return is_idle(self.drop) and is_idle(self.act)

    def normalize(self, input: Tensor, activation: str, **neighbours: Any) -> Tensor:
        kind = self.fused_kind()
        if kind is not None:
            return super().normalize(input, kind)
        if self.takes_neighbours():
            return super().normalize(input, activation, **neighbours)
        y: Tensor = self.act(self.drop(super().normalize(input, activation)))
        return y


class WithActivationApart(WithActivation):
    """The same; the activation is called by itself."""

    def fused_kind(self) -> str | None:
        return None


class ChannelNorm(KnownNorm):
    """The LayerNorm of ConvNeXt and SAM: of [N, C, H, W] over C, with parameters of its own."""

    takes_activation = True
    weight: Tensor
    bias: Tensor
    eps: float

    def takes_neighbours(self) -> bool:
        return False  # of the axes of its input

    def normalize(self, input: Tensor, activation: str, **_: Any) -> Tensor:
        # Of mixed dtypes it makes the wider one.
        if self.weight.dtype is not input.dtype or self.bias.dtype is not input.dtype:
            return self.own(input, activation)
        norm = functools.partial(
            functional.layer_norm,
            normalized_shape=self.weight.shape,
            weight=self.weight,
            bias=self.bias,
            eps=self.eps,
            activation=activation,
        )
        if getattr(self, "data_format", "channels_first") == "channels_last":
            return norm(input)
        if input.dim() != 4 or self.weight.dim() != 1:
            return self.own(input, activation)
        y = norm(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y.contiguous() if input.is_contiguous() else y


# Of classes whose parent is a norm of torch; its functional form is written as super().forward.
_SUBCLASSES: dict[str, type[KnownNorm]] = {
    "super().forward(x)": KnownNorm,
    "super().forward(x).to(x.dtype)": KnownNorm,
    "super().forward(x.float()).to(x.dtype)": KnownNorm,
    "super().forward(x.to(self.weight.dtype)).to(x.dtype)": KnownNorm,
    "self.act(self.drop(super().forward(x)))": WithActivation,
}
_LAYER_NORMS: dict[str, type[KnownNorm]] = {
    "super().forward(x.transpose(1, 2)).transpose(1, 2)": OverRows,
    "super().forward(x.float().transpose(1, 2)).to(x.dtype).transpose(1, 2)": OverRows,
    "super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)": OverChannels,
    "super().forward(x.float().permute(0, 2, 3, 1)).to(x.dtype).permute(0, 3, 1, 2)": OverChannels,
}

_CENTRED = "x - x.mean(1, keepdim=True)"
_OVER_CHANNELS = (
    f"self.weight[:, None, None] * (({_CENTRED}) / torch.sqrt(({_CENTRED}).pow(2)"
    ".mean(1, keepdim=True) + self.eps)) + self.bias[:, None, None]"
)
_LAST = "F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)"
_EITHER = f"{_LAST} if self.data_format == 'channels_last' else {_OVER_CHANNELS}"
# Of classes with weight, bias and eps whose parent is nn.Module.
_CHANNEL_NORMS = (
    *(_OVER_CHANNELS, _EITHER),
    f"{_EITHER} if self.data_format == 'channels_first' else None",
)

# Attributes that choose between two ways of a forward -> the way that is known: timm's.
_SETTINGS = {"self._fast_norm": False}


def of_subclass(module: nn.Module, parent: type[nn.Module]) -> tuple[type[KnownNorm], ...] | None:
    """What comes before our class for a subclass of one of torch; None where it is not known."""
    cls: Any = type(module)
    methods = ("__call__", "_call_impl", "_apply_instance_norm", "_check_input_dim")
    if any(getattr(cls, m, None) is not getattr(parent, m, None) for m in methods):
        return None
    if cls.forward is parent.forward:
        return ()
    table = _SUBCLASSES | _LAYER_NORMS if parent is nn.LayerNorm else _SUBCLASSES
    known = table.get(computation(cls) or "")
    return None if known is None or not _has_settings(module) else (known,)


def is_channel_norm(module: nn.Module) -> bool:
    """Whether `ChannelNorm` computes what a module that is none of torch's does."""
    cls: Any = type(module)
    if module._parameters.keys() != {"weight", "bias"} or module._modules:
        return False
    if not hasattr(module, "eps") or cls.__call__ is not nn.Module.__call__:
        return False
    return computation(cls) in _CHANNEL_NORMS


def _has_settings(module: nn.Module) -> bool:
    names = ((name.removeprefix("self."), value) for name, value in _SETTINGS.items())
    return all(getattr(module, name, value) is value for name, value in names)


# --- A forward as one expression.


@functools.lru_cache(maxsize=256)
def computation(cls: type[nn.Module]) -> str | None:
    """What forward of a class computes of x; None where it is more than an expression."""
    forward = cls.forward
    if not isinstance(forward, FunctionType) or forward.__closure__ and not _only_class(forward):
        return None
    try:
        source = textwrap.dedent(inspect.getsource(forward.__code__))
        (function,) = ast.parse(source).body
        return ast.unparse(_Expression(cls, forward).of(function))
    except (OSError, SyntaxError, ValueError, _Unknown):
        return None


def _only_class(forward: FunctionType) -> bool:
    return forward.__code__.co_freevars == ("__class__",)


class _Unknown(Exception):
    """There is something in it that this file does not read."""


_NAMES: dict[str, Any] = {
    "F.group_norm": nn.functional.group_norm,
    "F.layer_norm": nn.functional.layer_norm,
    "torch.float32": torch.float32,
    "torch.sqrt": torch.sqrt,
}
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "F.group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "F.layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
}
_PARENTS: dict[str, tuple[type[nn.Module], list[str]]] = {
    "F.group_norm": (nn.GroupNorm, ["num_groups", "weight", "bias", "eps"]),
    "F.layer_norm": (nn.LayerNorm, ["normalized_shape", "weight", "bias", "eps"]),
}
_CASTS = ("float", "to")
_MOVES = ("permute", "transpose")


class _Expression(ast.NodeTransformer):
    """Writes a function of straight lines and branches as an expression of x."""

    def __init__(self, cls: type[nn.Module], forward: FunctionType) -> None:
        self.owner = next(c for c in cls.__mro__ if vars(c).get("forward") is forward)
        after = self.owner.__mro__[1:]
        self.parent: Any = next(c for c in after if "forward" in vars(c))
        self.globals = {**vars(builtins), **forward.__globals__}
        self.values: dict[str, ast.expr] = {}

    def of(self, function: ast.stmt) -> ast.expr:
        if not isinstance(function, ast.FunctionDef) or function.decorator_list:
            raise _Unknown
        a = function.args
        if len(a.args) != 2 or a.posonlyargs or a.kwonlyargs or a.vararg or a.kwarg or a.defaults:
            raise _Unknown
        for argument, name in zip(a.args, ("self", "x"), strict=True):
            self.values[argument.arg] = ast.Name(name)
        return self.result(function.body)

    def result(self, body: list[ast.stmt]) -> ast.expr:
        for i, line in enumerate(body):
            match line:
                case ast.Expr(ast.Constant()) | ast.Pass():
                    continue
                case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, value):
                    self.values[name] = self.visit(value or ast.Constant(None))
                case ast.Return(value):
                    returned: ast.expr = self.visit(value or ast.Constant(None))
                    return returned
                case ast.If(test, then, otherwise):
                    return self.branch(
                        self.visit(test), *([*b, *body[i + 1 :]] for b in (then, otherwise))
                    )
                case _:
                    raise _Unknown
        return ast.Constant(None)

    def branch(self, test: ast.expr, then: list[ast.stmt], otherwise: list[ast.stmt]) -> ast.expr:
        before = dict(self.values)
        known = _SETTINGS.get(ast.unparse(test))
        if known is not None:
            return self.result(then if known else otherwise)
        first = self.result(then)
        self.values = before
        return ast.IfExp(test, first, self.result(otherwise))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.values:
            return copy.deepcopy(self.values[node.id])
        return self.name_of(self.globals.get(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        meant = self.global_of(node)
        if meant is not None:
            return self.name_of(meant)
        value = self.visit(node.value)
        if node.attr == "dtype":  # moving axes keeps it
            while isinstance(value, ast.Call) and _method(value) in _MOVES:
                value = value.func.value  # type: ignore[attr-defined]
        return ast.Attribute(value, node.attr)

    def global_of(self, node: ast.expr) -> Any:
        """The object that a dotted name means; None where it begins with a variable."""
        if isinstance(node, ast.Attribute):
            return getattr(self.global_of(node.value), node.attr, None)
        if isinstance(node, ast.Name) and node.id not in self.values:
            return self.globals.get(node.id)
        return None

    def name_of(self, meant: Any) -> ast.expr:
        for name, value in _NAMES.items():
            if value is meant:
                return ast.Name(name)
        raise _Unknown

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        # weight.float() if weight is not None else None
        test, then = (self.visit(n) for n in (node.test, node.body))
        otherwise = self.visit(node.orelse)
        there = ast.unparse(test) == f"{ast.unparse(then)} is not None"
        if there and _is_param(then) and ast.unparse(otherwise) == "None":
            return then
        return ast.IfExp(test, then, otherwise)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        call = self.super_call(node)
        if call is not None:
            return call
        function = self.visit(node.func)
        args = [self.visit(a) for a in node.args]
        keywords = {k.arg or "**": self.visit(k.value) for k in node.keywords}
        name = ast.unparse(function)
        if name in _PARAMETERS:
            rest = _PARAMETERS[name][len(args) :]
            if set(keywords) != set(rest):
                raise _Unknown
            args += [keywords.pop(n) for n in rest]
            parent, own = _PARENTS[name]
            if self.parent is parent and [ast.unparse(a) for a in args[1:]] == [
                f"self.{n}" for n in own
            ]:
                return _forward(args[0])
        if name == "super().forward" and len(args) == 1 and not keywords:
            return _forward(args[0])
        if isinstance(function, ast.Attribute):
            return self.method(function.value, function.attr, args, keywords)
        return _call(function, args, keywords)

    def super_call(self, node: ast.Call) -> ast.expr | None:
        """super() and GroupNorm.forward(self, x), however they are written, of torch's class."""
        if not self.parent.__module__.startswith("torch.nn."):
            return None
        match node:
            case ast.Call(ast.Name("super"), [], []) if self.globals["super"] is super:
                return ast.Call(ast.Name("super"), [], [])
            case ast.Call(ast.Name("super"), [cls, me], []) if self.globals["super"] is super:
                if self.global_of(cls) is self.owner and ast.unparse(self.visit(me)) == "self":
                    return ast.Call(ast.Name("super"), [], [])
            case ast.Call(ast.Attribute(cls, "forward"), [me, x], []):
                if (
                    self.global_of(node.func) is self.parent.forward
                    and ast.unparse(self.visit(me)) == "self"
                ):
                    return _forward(self.visit(x))
        return None

    def method(
        self, value: ast.expr, name: str, args: list[ast.expr], keywords: dict[str, ast.expr]
    ) -> ast.expr:
        """One way to write a cast, a mean, and to move axes: casts come first."""
        dtype = keywords.get("dtype") if name == "to" and not args else None
        if name in ("to", "type", "type_as") and len(args) + len(keywords) == 1:
            target = dtype or args[0]
            if name == "type_as" or ast.unparse(target) == "x":
                target = ast.Attribute(target, "dtype")
            is_float = ast.unparse(target) == "torch.float32"
            name, args = ("float", []) if is_float else ("to", [target])
            keywords = {}
        if name in _CASTS and not keywords:
            if _is_param(value):
                return value  # the engine takes it in float32 and in the dtype of x
            if isinstance(value, ast.Call) and _method(value) in _MOVES:
                inner: Any = value
                inner.func.value = self.method(inner.func.value, name, args, keywords)
                return value
        if name == "mean" and not args and "dim" in keywords:
            args = [keywords.pop("dim")]
        if name == "permute" and len(args) == 1 and isinstance(args[0], ast.Tuple | ast.List):
            args = args[0].elts
        return _call(ast.Attribute(value, name), args, keywords)


def _call(function: ast.expr, args: list[ast.expr], keywords: dict[str, ast.expr]) -> ast.expr:
    return ast.Call(function, args, [ast.keyword(k, v) for k, v in keywords.items()])


def _forward(x: ast.expr) -> ast.expr:
    """super().forward(x). A layer norm reads a contiguous copy of x anyway."""
    while isinstance(x, ast.Call) and _method(x) == "contiguous" and not x.args:
        x = x.func.value  # type: ignore[attr-defined]
    return ast.Call(ast.Attribute(ast.Call(ast.Name("super"), [], []), "forward"), [x], [])


def _method(call: ast.Call) -> str | None:
    return call.func.attr if isinstance(call.func, ast.Attribute) else None


def _is_param(node: ast.expr) -> bool:
    return ast.unparse(node) in ("self.weight", "self.bias")
