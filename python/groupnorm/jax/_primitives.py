"""The engine as primitives of JAX: how they differentiate, batch, shard and lower.

``groupnorm_forward`` makes y, and on request mean and rstd. Its derivative binds
``groupnorm_tangent``, the linear map of tangents, whose transpose is ``groupnorm_backward``: so
reverse mode meets the engine twice. ``groupnorm_tangent``, derivatives of it and of
``groupnorm_backward``, empty arrays, and every device but a CPU take the formula in jax.numpy.

Of all three, x is [n, c, s] or, channels_last, [n, s, c]; scale and bias, each of them there or
not, are both [c], or both [n, c]. mean and rstd are [n, groups, 2] of uint32, the bytes of a double
each: JAX has float64 on request alone.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy
from jax import Array
from jax import numpy as jnp
from jax._src.dispatch import apply_primitive, prim_requires_devices_during_lowering
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .. import _core
from ._formula import Norm, normalize

_FORWARD, _BACKWARD = "groupnorm_forward", "groupnorm_backward"

for _name, _handler in zip((_FORWARD, _BACKWARD), _core.xla_handlers(), strict=True):
    jax.ffi.register_ffi_target(_name, _handler, platform="cpu")

Affine = tuple[bool, bool]  # whether there is a scale, and a bias
Wanted = tuple[bool, ...]  # of x and of the scale and bias that are there


def forward(norm: Norm, x: Array, scale: Array | None, bias: Array | None) -> Array:
    """y; scale and bias are of `param_dtype`."""
    args = [x, *(param for param in (scale, bias) if param is not None)]
    affine = (scale is not None, bias is not None)
    # Within shard_map all of them vary over the devices where one does.
    axes = frozenset[Any]().union(*(jax.typeof(arg).mat.varying for arg in args))
    args = [
        jax.lax.pcast(arg, tuple(axes - jax.typeof(arg).mat.varying), to="varying") for arg in args
    ]
    return _forward_p.bind(*args, norm=norm, affine=affine, statistics=False)[0]


def reshape(x: Array, sizes: tuple[int, ...]) -> Array:
    """x in another shape. Where its sharding is part of its type, axis 0 alone stays sharded."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x.reshape(sizes)
    lead = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0]))
    return jax.lax.reshape(jax.reshard(x, lead), sizes, out_sharding=lead)


# ---- The formula


def _formula(norm: Norm, affine: Affine) -> Callable[..., Array]:
    """y as a function of x and of the scale and bias that are there."""

    def function(x: Array, *params: Array) -> Array:
        rest = iter(params)
        return normalize(norm, x, *(next(rest) if there else None for there in affine))

    return function


def _restrict(function: Callable[..., Any], args: Sequence[Any], free: Sequence[bool]) -> Any:
    """The function of those arguments that are free, and these."""

    def restricted(*moving: Any) -> Any:
        rest = iter(moving)
        return function(*(next(rest) if f else arg for f, arg in zip(free, args, strict=True)))

    return restricted, [arg for f, arg in zip(free, args, strict=True) if f]


def _forward_formula(
    x: Array, *params: Array, norm: Norm, affine: Affine, statistics: bool
) -> list[Array]:
    y = _formula(norm, affine)(x, *params)
    if not statistics:
        return [y]
    # The formula of backward makes its own.
    return [y, *(jnp.zeros(each.shape, each.dtype) for each in _statistics(norm, jax.typeof(x)))]


def _tangent_formula(*args: Array, norm: Norm, affine: Affine, wanted: Wanted) -> list[Array]:
    primals, tangents = args[: len(wanted)], args[len(wanted) + 2 :]
    function, moving = _restrict(_formula(norm, affine), primals, wanted)
    return [jax.jvp(function, moving, list(tangents))[1]]


def _backward_formula(
    x: Array, dy: Array, *rest: Array, norm: Norm, affine: Affine, wanted: Wanted
) -> list[Array]:
    function, moving = _restrict(_formula(norm, affine), (x, *rest[:-2]), wanted)
    return list(jax.vjp(function, *moving)[1](dy))


# ---- Shapes: results as abstract values of JAX, which know over which devices they are spread


def _statistics(norm: Norm, x: Any) -> list[Any]:
    groups = x.shape[norm.channel_axis()] // norm.channels
    return [x.update(shape=(x.shape[0], groups, 2), dtype=jnp.dtype("uint32"))] * 2


def _forward_shapes(x: Any, *_: Any, norm: Norm, affine: Affine, statistics: bool) -> list[Any]:
    return [x, *_statistics(norm, x)] if statistics else [x]


def _tangent_shapes(x: Any, *_: Any, norm: Norm, affine: Affine, wanted: Wanted) -> list[Any]:
    return [x]


def _backward_shapes(
    x: Any, dy: Any, *rest: Any, norm: Norm, affine: Affine, wanted: Wanted
) -> list[Any]:
    return [of for of, want in zip((x, *rest[:-2]), wanted, strict=True) if want]


# ---- Derivatives


def _no_tangent(value: Any) -> Any:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _forward_jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, statistics: bool, **params: Any
) -> tuple[list[Any], list[Any]]:
    results = _forward_p.bind(*primals, statistics=True, **params)
    wanted = tuple(type(tangent) is not ad.Zero for tangent in tangents)
    moving = [tangent for tangent, want in zip(tangents, wanted, strict=True) if want]
    dy = _tangent_p.bind(*primals, *results[1:], *moving, wanted=wanted, **params)
    if not statistics:
        return results[:1], dy
    return results, dy + [_no_tangent(value) for value in results[1:]]


def _jvp_of_formula(primitive: Primitive, formula: Callable[..., Any]) -> Callable[..., Any]:
    def rule(
        primals: Sequence[Any], tangents: Sequence[Any], **params: Any
    ) -> tuple[list[Any], list[Any]]:
        free = [type(tangent) is not ad.Zero for tangent in tangents]
        function, moving = _restrict(functools.partial(formula, **params), primals, free)
        moved = [tangent for tangent, f in zip(tangents, free, strict=True) if f]
        return primitive.bind(*primals, **params), jax.jvp(function, moving, moved)[1]

    return rule


def _tangent_transpose(
    cotangents: Sequence[Any], *args: Any, norm: Norm, affine: Affine, wanted: Wanted
) -> list[Any]:
    (dy,) = cotangents
    known, linear = args[: len(wanted) + 2], args[len(wanted) + 2 :]
    if type(dy) is ad.Zero:
        return [None] * len(args)
    # Of those that moved, some may be known after all.
    asked = iter(ad.is_undefined_primal(each) for each in linear)
    now = tuple(want and next(asked) for want in wanted)
    found = iter(
        _backward_p.bind(known[0], dy, *known[1:], norm=norm, affine=affine, wanted=now)
        if any(now)
        else []
    )
    return [None] * len(known) + [
        next(found) if ad.is_undefined_primal(each) else None for each in linear
    ]


# ---- Batches: more examples


def _to_front(array: Array, axis: int | None, size: int) -> Array:
    if axis is None:
        return jnp.broadcast_to(array, (size, *array.shape))
    return jnp.moveaxis(array, axis, 0)


def _as_examples(array: Array, axis: int | None, size: int) -> Array:
    """[size, n, ...] -> [size * n, ...]."""
    array = _to_front(array, axis, size)
    return reshape(array, (size * array.shape[1], *array.shape[2:]))


def _param_of_each(param: Array, axis: int | None, size: int, n: int) -> Array:
    """[c] or [n, c] of each in the batch -> [size * n, c]."""
    param = _to_front(param, axis, size)
    if param.ndim == 2:
        param = jnp.broadcast_to(param[:, None], (size, n, param.shape[-1]))
    return reshape(param, (size * n, param.shape[-1]))


def _size(args: Sequence[Any], axes: Sequence[int | None]) -> int:
    return next(
        int(arg.shape[axis]) for arg, axis in zip(args, axes, strict=True) if axis is not None
    )


def _forward_batch(
    args: Sequence[Any], axes: Sequence[int | None], **params: Any
) -> tuple[list[Any], list[int]]:
    size = _size(args, axes)
    x = _as_examples(args[0], axes[0], size)
    n = x.shape[0] // size if size else 0
    affine = list(args[1:])
    if any(
        axis is not None or param.ndim == 2 for param, axis in zip(affine, axes[1:], strict=True)
    ):
        affine = [
            _param_of_each(param, axis, size, n)
            for param, axis in zip(affine, axes[1:], strict=True)
        ]
    found = _forward_p.bind(x, *affine, **params)
    return [reshape(each, (size, n, *each.shape[1:])) for each in found], [0] * len(found)


def _backward_batch(
    args: Sequence[Any], axes: Sequence[int | None], *, wanted: Wanted, **params: Any
) -> tuple[list[Any], list[int]]:
    size = _size(args, axes)
    x, dy, mean, rstd = (_as_examples(args[i], axes[i], size) for i in (0, 1, -2, -1))
    n = x.shape[0] // size if size else 0
    affine, of_affine = args[2:-2], axes[2:-2]
    # Each in the batch has gradients of its own of a scale that all of them share.
    affine = [
        _param_of_each(param, axis, size, n) for param, axis in zip(affine, of_affine, strict=True)
    ]
    found = _backward_p.bind(x, dy, *affine, mean, rstd, wanted=wanted, **params)
    ranks = [3, *(p.ndim - (a is not None) for p, a in zip(args[2:-2], of_affine, strict=True))]
    results = []
    for each, rank in zip(found, (r for r, w in zip(ranks, wanted, strict=True) if w), strict=True):
        many = reshape(each, (size, n, *each.shape[1:]))
        results.append(many.sum(1) if rank == 1 else many)
    return results, [0] * len(results)


def _tangent_batch(
    args: Sequence[Any], axes: Sequence[int | None], **params: Any
) -> tuple[list[Any], list[int]]:
    function = functools.partial(_tangent_formula, **params)
    return jax.vmap(function, tuple(axes))(*args), [0]


# ---- On a CPU


def _attributes(norm: Norm, affine: Affine) -> dict[str, Any]:
    return {
        "layout": norm.layout,
        "channels": numpy.int64(norm.channels),
        "eps": numpy.float64(norm.epsilon),
        "center": norm.center,
        "activation": norm.activation,
        "scale": affine[0],
        "bias": affine[1],
    }


def _forward_on_cpu(
    x: Array, *params: Array, norm: Norm, affine: Affine, statistics: bool
) -> Sequence[Array]:
    def call(x: Array, *params: Array) -> Sequence[Array]:
        shapes = _forward_shapes(jax.typeof(x), norm=norm, affine=affine, statistics=statistics)
        return jax.ffi.ffi_call(_FORWARD, shapes)(x, *params, **_attributes(norm, affine))

    if x.size == 0:
        return _forward_formula(x, *params, norm=norm, affine=affine, statistics=statistics)
    results = _forward_shapes(jax.typeof(x), norm=norm, affine=affine, statistics=statistics)
    by_example = [True, *(param.ndim == 2 for param in params)]
    return _partitioned(call, by_example, [True] * len(results), (x, *params), results)


def _backward_on_cpu(
    x: Array, dy: Array, *rest: Array, norm: Norm, affine: Affine, wanted: Wanted
) -> Sequence[Array]:
    def call(x: Array, dy: Array, *rest: Array) -> Sequence[Array]:
        avals = map(jax.typeof, (x, dy, *rest))
        shapes = _backward_shapes(*avals, norm=norm, affine=affine, wanted=wanted)
        rest_wanted = iter(wanted)
        names = [("dx", True), ("dscale", affine[0]), ("dbias", affine[1])]
        asked = {name: there and next(rest_wanted) for name, there in names}
        attributes = _attributes(norm, affine) | asked
        return jax.ffi.ffi_call(_BACKWARD, shapes)(x, dy, *rest, **attributes)

    if x.size == 0:
        return _backward_formula(x, dy, *rest, norm=norm, affine=affine, wanted=wanted)
    results = _backward_shapes(x, dy, *rest, norm=norm, affine=affine, wanted=wanted)
    of_params = [param.ndim == 2 for param in rest[:-2]]
    each = zip([True, *of_params], wanted, strict=True)
    by_example = [True, True, *of_params, True, True]
    return _partitioned(call, by_example, [e for e, w in each if w], (x, dy, *rest), results)


def _partitioned(
    call: Callable[..., Sequence[Array]],
    operands_by_example: Sequence[bool],
    results_by_example: Sequence[bool],
    operands: Sequence[Any],
    results: Sequence[Any],
) -> Sequence[Array]:
    """call(*operands), by each device on its own examples where these are sharded.

    An operand or a result that is not by example is the same for all; such results are summed.
    """

    def lead(mesh: Mesh, shapes: Sequence[Any]) -> tuple[str, ...] | None:
        """The axes of the mesh over which the examples of x are spread."""
        spec = getattr(shapes[0].sharding, "spec", None) or (None,)
        axes = (spec[0],) if isinstance(spec[0], str) else tuple(spec[0] or ())
        even = shapes[0].shape[0] % math.prod(mesh.shape[axis] for axis in axes) == 0
        return axes if axes and even else None

    def shardings(mesh: Mesh, axes: Any, by_example: Sequence[bool]) -> tuple[NamedSharding, ...]:
        return tuple(NamedSharding(mesh, PartitionSpec(axes if e else None)) for e in by_example)

    def infer(mesh: Mesh, shapes: Sequence[Any], _: Any) -> tuple[NamedSharding, ...]:
        return shardings(mesh, lead(mesh, shapes), results_by_example)

    def partition(mesh: Mesh, shapes: Sequence[Any], _: Any) -> tuple[Any, ...]:
        axes = lead(mesh, shapes)

        def on_each(*shards: Array) -> tuple[Array, ...]:
            found = zip(call(*shards), results_by_example, strict=True)
            return tuple(jax.lax.psum(each, axes) if axes and not e else each for each, e in found)

        return (
            mesh,
            on_each,
            shardings(mesh, axes, results_by_example),
            shardings(mesh, axes, operands_by_example),
        )

    alone: list[str] = []

    def factors(arrays: Sequence[Any], by_example: Sequence[bool]) -> str:
        words = []
        for array, e in zip(arrays, by_example, strict=True):
            names = [f"f{len(alone) + i}" for i in range(array.ndim - e)]
            alone.extend(names)
            words.append(" ".join(["n"] * e + names))
        return ", ".join(words)

    rule = f"{factors(operands, operands_by_example)} -> {factors(results, results_by_example)}"
    function = custom_partitioning(lambda *args: tuple(call(*args)))
    function.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule=rule,
        need_replication_factors=tuple(alone),
    )
    return function(*operands)


# ---- The primitives


def _define(
    name: str,
    shapes: Callable[..., Any],
    formula: Callable[..., Any],
    batch: Callable[..., Any],
    on_cpu: Callable[..., Any] | None = None,
) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(shapes)
    primitive.def_impl(functools.partial(apply_primitive, primitive))
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(formula, multiple_results=True))
    if on_cpu is not None:
        prim_requires_devices_during_lowering.add(primitive)  # as custom_partitioning does
        mlir.register_lowering(
            primitive, mlir.lower_fun(on_cpu, multiple_results=True), platform="cpu"
        )
    return primitive


_forward_p = _define(_FORWARD, _forward_shapes, _forward_formula, _forward_batch, _forward_on_cpu)
_tangent_p = _define("groupnorm_tangent", _tangent_shapes, _tangent_formula, _tangent_batch)
_backward_p = _define(
    _BACKWARD, _backward_shapes, _backward_formula, _backward_batch, _backward_on_cpu
)
ad.primitive_jvps[_forward_p] = _forward_jvp
ad.primitive_jvps[_tangent_p] = _jvp_of_formula(_tangent_p, _tangent_formula)
ad.primitive_transposes[_tangent_p] = _tangent_transpose
ad.primitive_jvps[_backward_p] = _jvp_of_formula(_backward_p, _backward_formula)
