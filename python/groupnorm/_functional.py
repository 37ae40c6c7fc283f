"""The norms as functions of arrays."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy

from ._arrays import Array, ArrayLike, as_array, as_float
from ._blocks import (
    Blocks,
    GradientResult,
    Result,
    batched,
    differentiate,
    grouped,
    normalize,
    trailing,
)
from ._neighbours import Neighbours

if TYPE_CHECKING:
    from typing_extensions import Unpack


def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
    out: Array | None = None,
    return_statistics: bool = False,
    return_sum: bool = False,
    **neighbours: "Unpack[Neighbours]",
) -> Result:
    """Normalizes groups of channels, each example by itself (Wu & He, arXiv:1803.08494).

    With mean and var over the channels of a group and all positions of one example::

        y = activation(weight * (x - mean) / sqrt(var + eps) + bias)

    Args:
        x: [N, C, ...], or [N, ..., C] by `layout`. float16, bfloat16 (of ml_dtypes), float32 or
            float64: a NumPy array, or an array on the CPU that supports DLPack or that
            numpy.asarray accepts. It is read without a copy if its memory is in one of the two
            orders, whichever `layout` is; otherwise (a slice, a reversed axis) it is copied in C
            order first.
        num_groups: divides C. 1 takes all channels together, C each by itself.
        weight: [C], or [N, C] with one for each example (adaptive normalization), in the dtype of
            x, or float32 beside float16 and bfloat16. None: 1.
        bias: in the shape and dtype of weight. None: 0.
        eps: finite and not negative. Where var + eps is 0, y is activation(bias).
        activation: None (or "none"), "relu", "silu", "gelu" (the exact one), "gelu_tanh" or
            "hard_swish".
        layout: "channels_first" or "channels_last", the order of the axes of x and y.
        correction: var divides by m - correction, where m elements share it: 0, or 1.
        out: the array to write y to, contiguous in C order or in that of the other layout, in
            the shape and dtype of x. It may be x itself, but must not overlap x otherwise, nor
            weight or bias.
        return_statistics: whether to return mean and rstd too, as group_norm_backward takes them.
        return_sum: whether to return x + skip + shift too, rounded once to the dtype of x.
        neighbours: skip, shift, residual, scale_shift and lengths; see Neighbours. `out` may be
            skip or residual itself.

    Returns:
        y, in the shape and dtype of x, and in its memory order if x is read without a copy. With
        return_sum (y, sum). With return_statistics these are followed by mean and rstd, float64 of
        shape [N, num_groups], rstd = 1 / sqrt(var + eps); NaN where x is empty, 0 where a length
        is 0.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value. Nothing has been written.
    """
    x = as_array("x", x)
    blocks = grouped(x.shape, num_groups, layout)
    wanted = return_sum, return_statistics
    return normalize(
        blocks, x, weight, bias, eps, activation, out, wanted, neighbours, correction=correction
    )


def group_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None,
    mean: ArrayLike,
    rstd: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
    dsum: ArrayLike | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> GradientResult:
    """Differentiates group_norm: from dy = dL/dy to dL/dx, dL/dweight and dL/dbias.

    Args:
        dy: in the shape and dtype of x.
        x: of group_norm, as are num_groups, weight, activation, layout and correction.
        num_groups: of group_norm.
        weight: of group_norm.
        mean: as group_norm returned it, float64.
        rstd: as group_norm returned it, float64.
        bias: of group_norm. Its values are read only where there is an activation; then it must
            not be left out.
        activation: of group_norm.
        layout: of group_norm.
        correction: of group_norm.
        dsum: dL/dsum of the sum that return_sum gave, in the shape and dtype of x.
        neighbours: of group_norm.

    Returns:
        dx in the shape and dtype of x; dweight and dbias in those of weight (of bias, without
        weight). dweight is None without weight, dbias without both. With neighbours or dsum, these
        and dshift, dresidual and dscale_shift; see NeighbourGradients.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value.
    """
    x = as_array("x", x)
    blocks = grouped(x.shape, num_groups, layout)
    return differentiate(
        blocks, dy, x, weight, bias, mean, rstd, activation, dsum, neighbours, correction=correction
    )


def layer_norm(
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    correction: int = 0,
    out: Array | None = None,
    return_statistics: bool = False,
    return_sum: bool = False,
    **neighbours: "Unpack[Neighbours]",
) -> Result:
    """Normalizes over the last axes of x (Ba, Kiros & Hinton, arXiv:1607.06450).

    Layer normalization over all channels and positions of [N, C, ...], with one weight a channel,
    is group_norm with one group.

    Args:
        x: [..., *normalized_shape]; see group_norm.
        normalized_shape: the sizes of the axes that share one mean and one variance, the last of x.
        weight: normalized_shape. None: 1.
        bias: normalized_shape. None: 0.
        eps: see group_norm, as for the arguments that follow.
        activation: see group_norm.
        correction: see group_norm.
        out: see group_norm; in C order.
        return_statistics: whether to return mean and rstd too.
        return_sum: see group_norm.
        neighbours: see Neighbours.

    Returns:
        y, or a tuple as of group_norm; mean and rstd of the shape of x without normalized_shape.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value. Nothing has been written.
    """
    x = as_array("x", x)
    blocks = trailing(x.shape, normalized_shape)
    wanted = return_sum, return_statistics
    return normalize(
        blocks, x, weight, bias, eps, activation, out, wanted, neighbours, correction=correction
    )


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None,
    mean: ArrayLike,
    rstd: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    correction: int = 0,
    dsum: ArrayLike | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> GradientResult:
    """Differentiates layer_norm; see group_norm_backward."""
    x = as_array("x", x)
    blocks = trailing(x.shape, normalized_shape)
    return differentiate(
        blocks, dy, x, weight, bias, mean, rstd, activation, dsum, neighbours, correction=correction
    )


def rms_norm(
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    out: Array | None = None,
    return_statistics: bool = False,
    return_sum: bool = False,
    **neighbours: "Unpack[Neighbours]",
) -> Result:
    """Divides by the root of the mean square over the last axes (arXiv:1910.07467).

    As layer_norm, but nothing is subtracted: y = weight * x / sqrt(mean(x^2) + eps) + bias.

    Returns:
        y, or a tuple as of layer_norm, without mean.
    """
    x = as_array("x", x)
    blocks = trailing(x.shape, normalized_shape)
    wanted = return_sum, return_statistics
    result = normalize(
        blocks, x, weight, bias, eps, activation, out, wanted, neighbours, center=False
    )
    return (*result[:-2], result[-1]) if return_statistics else result


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    normalized_shape: int | Sequence[int],
    weight: ArrayLike | None,
    rstd: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    dsum: ArrayLike | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> GradientResult:
    """Differentiates rms_norm; see group_norm_backward."""
    x = as_array("x", x)
    blocks = trailing(x.shape, normalized_shape)
    return differentiate(
        blocks, dy, x, weight, bias, None, rstd, activation, dsum, neighbours, center=False
    )


def instance_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
    out: Array | None = None,
    return_statistics: bool = False,
    return_sum: bool = False,
    **neighbours: "Unpack[Neighbours]",
) -> Result:
    """Normalizes each channel of each example (Ulyanov, Vedaldi & Lempitsky, arXiv:1607.08022).

    Arguments and errors are those of group_norm, with a group of one channel. mean and rstd are
    [N, C].
    """
    x = as_array("x", x)
    blocks = grouped(x.shape, None, layout)
    wanted = return_sum, return_statistics
    return normalize(
        blocks, x, weight, bias, eps, activation, out, wanted, neighbours, correction=correction
    )


def instance_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None,
    mean: ArrayLike,
    rstd: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    layout: str = "channels_first",
    correction: int = 0,
    dsum: ArrayLike | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> GradientResult:
    """Differentiates instance_norm; see group_norm_backward."""
    x = as_array("x", x)
    blocks = grouped(x.shape, None, layout)
    return differentiate(
        blocks, dy, x, weight, bias, mean, rstd, activation, dsum, neighbours, correction=correction
    )


def batch_norm(
    x: ArrayLike,
    running_mean: ArrayLike | None,
    running_var: ArrayLike | None,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    layout: str = "channels_first",
    out: Array | None = None,
    return_statistics: bool = False,
    return_sum: bool = False,
    **neighbours: "Unpack[Neighbours]",
) -> Result:
    """Normalizes each channel over all examples (Ioffe & Szegedy, arXiv:1502.03167).

    In training mean and var are those of x, and the running ones move towards them in place, once
    y is written::

        running += momentum * (batch - running)      var divided by m - 1, m = N * positions

    Else they are the running ones. Arguments that are not listed are those of group_norm.

    Args:
        x: [N, C, ...], or [N, ..., C] by `layout`. In training with two elements a channel or more.
        running_mean: [C], of any dtype that x may have; in training a writeable NumPy array, or
            None: not kept.
        running_var: as running_mean.
        weight: [C] or [N, C].
        bias: as weight.
        training: whether to use the statistics of x.
        momentum: from 0 to 1.
        eps: see group_norm.
        activation: see group_norm.
        layout: see group_norm.
        out: see group_norm. It must not overlap the running arrays either.
        return_statistics: whether to return mean and rstd too, as batch_norm_backward takes them.
        return_sum: see group_norm.
        neighbours: see Neighbours. Running statistics are those of x + skip + shift; lengths must
            be None.

    Returns:
        y, or a tuple as of group_norm; mean and rstd are the statistics used, of shape [C].

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: an argument has the wrong shape or value. Nothing has been written.
    """
    x = as_array("x", x)
    blocks = batched(x.shape, layout)
    eps = as_float("eps", eps)
    momentum = as_momentum(momentum)
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        raise ValueError(
            "running_mean, running_var: must both be given, or in training both be None"
        )
    m = blocks.n * blocks.s
    if training and m == 1 and x.size:
        raise ValueError(
            f"x: must have two elements a channel or more in training; got shape {x.shape}"
        )
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None:
            _check_running(name, running, blocks, training, out)
    given = None if training else _given(running_mean, running_var, eps)
    wanted = return_sum, True
    *results, mean, rstd = normalize(
        blocks, x, weight, bias, eps, activation, out, wanted, neighbours, given=given
    )
    if training and running_mean is not None and x.size:
        # rstd is 0 where var + eps is 0. Rounding may leave 1 / rstd^2 a hair below eps.
        with numpy.errstate(divide="ignore"):
            var = numpy.where(rstd == 0, 0, numpy.maximum(1 / rstd**2 - eps, 0)) * (m / (m - 1))
        _move(running_mean, mean, momentum)
        _move(running_var, var, momentum)
    if return_statistics:
        results += [mean, rstd]
    return tuple(results) if len(results) > 1 else results[0]


def batch_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None,
    mean: ArrayLike,
    rstd: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    training: bool = True,
    activation: str | None = None,
    layout: str = "channels_first",
    dsum: ArrayLike | None = None,
    **neighbours: "Unpack[Neighbours]",
) -> GradientResult:
    """Differentiates batch_norm; see group_norm_backward.

    Without `training`, mean and rstd were the running ones: constants, of which x is no part.
    """
    x = as_array("x", x)
    blocks = batched(x.shape, layout)
    arrays = blocks, dy, x, weight, bias, mean, rstd
    return differentiate(*arrays, activation, dsum, neighbours, given_statistics=not training)


def as_momentum(momentum: float) -> float:
    """Returns momentum as a float."""
    value = as_float("momentum", momentum)
    if not 0 <= value <= 1:
        raise ValueError(f"momentum: must be from 0 to 1; got {momentum}")
    return value


def _check_running(
    name: str, running: Any, blocks: Blocks, training: bool, out: Array | None
) -> None:
    if training and not (isinstance(running, numpy.ndarray) and running.flags.writeable):
        raise TypeError(f"{name}: must be a writeable numpy.ndarray in training")
    array = as_array(name, running)
    if array.shape != (blocks.c,):
        raise ValueError(f"{name}: must have shape {(blocks.c,)} for this x; got {array.shape}")
    if out is not None and numpy.may_share_memory(out, array):
        raise ValueError(f"out: may be x itself, but must not overlap {name}")


def _given(running_mean: Any, running_var: Any, eps: float) -> tuple[Array, Array]:
    """Returns mean and rstd, as of a block with those moments."""
    mean = as_array("running_mean", running_mean).astype(numpy.float64)
    spread = as_array("running_var", running_var).astype(numpy.float64) + eps
    with numpy.errstate(divide="ignore", invalid="ignore"):  # NaN for a negative variance
        return mean, numpy.where(spread == 0, 0, 1 / numpy.sqrt(spread))


def _move(running: Any, batch: Array, momentum: float) -> None:
    before = running.astype(numpy.float64)
    running[...] = before + momentum * (batch - before)
