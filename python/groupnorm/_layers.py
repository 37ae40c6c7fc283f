"""The norms as layers: they keep parameters, their gradients and what backward needs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from ._arrays import Array, ArrayLike, as_array, as_float, as_integer
from ._blocks import (
    Blocks,
    Result,
    as_shape,
    batched,
    differentiate,
    grouped,
    normalize,
    trailing,
)
from ._functional import as_momentum, batch_norm


class _Recorded(NamedTuple):
    """What backward needs of a forward call, as it was then."""

    blocks: Blocks
    x: Array
    weight: Array | None
    bias: Array | None
    mean: Array
    rstd: Array
    activation: str | None
    correction: int
    given_statistics: bool


class Normalization:
    """What the layers share. One call at a time on a layer.

    Attributes:
        weight: one a channel, or of normalized_shape: 1 until written. None in a layer without
            parameters. It is float64, used as it is for a float64 x and rounded to float32 for
            every other. Write to it, or assign another array of its shape.
        bias: as weight, and 0 until written.
        dweight: the sum of dL/dweight over all calls of backward since zero_grad, float64.
        dbias: as dweight, of dL/dbias.
        mean: of the last forward, as the function of this norm returns it (0 for RMS).
        rstd: as mean.
        eps: read at each forward, as are activation and correction.
        activation: see group_norm.
        correction: see group_norm.
    """

    _center = True
    _shown: tuple[str, ...] = ()  # the attributes that repr shows

    def __init__(self, params: tuple[int, ...] | None, eps: float, activation: str | None) -> None:
        self.eps = as_float("eps", eps)
        self.activation = activation
        self.correction = 0
        self.weight: Array | None = None if params is None else numpy.ones(params)
        self.bias: Array | None = None if params is None else numpy.zeros(params)
        self.dweight: Array | None = None if params is None else numpy.zeros(params)
        self.dbias: Array | None = None if params is None else numpy.zeros(params)
        self.mean: Array | None = None
        self.rstd: Array | None = None
        self._recorded: _Recorded | None = None

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in (*self._shown, "eps", "activation"))
        return f"{type(self).__name__}({', '.join(shown)})"

    def __call__(self, x: ArrayLike, out: Array | None = None) -> Array:
        """Calls forward."""
        return self.forward(x, out)

    def forward(self, x: ArrayLike, out: Array | None = None) -> Array:
        """Returns y, in `out` if given.

        x is kept, not copied, until the next forward: it must not change before backward. Hence
        a forward in place (out is x) cannot be differentiated.

        Args:
            x: see the function of this norm; so for out.
            out: may be x.

        Raises:
            TypeError: an argument, or an attribute of the layer, is of the wrong type or dtype.
            ValueError: it has the wrong shape or value. Nothing has been written.
        """
        x = as_array("x", x)
        blocks = self._blocks(x)
        param = numpy.float64 if x.dtype == numpy.float64 else numpy.float32
        weight = None if self.weight is None else numpy.array(self.weight, param)
        bias = None if self.bias is None else numpy.array(self.bias, param)
        y: Array
        y, mean, rstd = self._normalize(blocks, x, weight, bias, out)
        self.mean, self.rstd = mean, rstd
        self._recorded = None
        if out is None or not numpy.may_share_memory(out, x):
            self._recorded = _Recorded(
                blocks,
                x,
                weight,
                bias,
                mean,
                rstd,
                self.activation,
                self.correction,
                self._given_statistics(),
            )
        return y

    def backward(self, dy: ArrayLike) -> Array:
        """Returns dx = dL/dx of the last forward, and adds to dweight and dbias.

        Parameters and options count as they were at forward.

        Args:
            dy: dL/dy, in the shape and dtype of x.

        Raises:
            RuntimeError: no forward came before, or it was in place.
            ValueError: dy is not as x.
        """
        if self._recorded is None:
            raise RuntimeError("backward: must follow a forward that was not in place")
        recorded = self._recorded
        dx, dweight, dbias = differentiate(
            recorded.blocks,
            dy,
            recorded.x,
            recorded.weight,
            recorded.bias,
            recorded.mean,
            recorded.rstd,
            recorded.activation,
            correction=recorded.correction,
            center=self._center,
            given_statistics=recorded.given_statistics,
        )
        if dweight is not None and self.dweight is not None:
            self.dweight += dweight
        if dbias is not None and self.dbias is not None:
            self.dbias += dbias
        return dx

    def zero_grad(self) -> None:
        """Sets dweight and dbias to 0."""
        for gradient in (self.dweight, self.dbias):
            if gradient is not None:
                gradient.fill(0)

    def _blocks(self, x: Array) -> Blocks:
        raise NotImplementedError

    def _normalize(
        self, blocks: Blocks, x: Array, weight: Array | None, bias: Array | None, out: Array | None
    ) -> Result:
        return normalize(
            blocks,
            x,
            weight,
            bias,
            self.eps,
            self.activation,
            out,
            (False, True),
            correction=self.correction,
            center=self._center,
        )

    def _given_statistics(self) -> bool:
        return False


class _ChannelNormalization(Normalization):
    """A layer with parameters for each channel, or none: then for any number of channels."""

    def __init__(
        self, num_channels: int | None, eps: float, activation: str | None, layout: str
    ) -> None:
        if num_channels is not None:
            num_channels = as_integer("num_channels", num_channels)
            if num_channels < 1:
                raise ValueError(f"num_channels: must be at least 1; got {num_channels}")
        super().__init__(None if num_channels is None else (num_channels,), eps, activation)
        self.num_channels = num_channels
        self.layout = layout

    def _blocks(self, x: Array) -> Blocks:
        if self.num_channels is not None and x.ndim >= 2:
            channels = x.shape[1 if self.layout == "channels_first" else -1]
            if channels != self.num_channels:
                raise ValueError(
                    f"x: must have num_channels={self.num_channels} channels; got shape {x.shape}"
                )
        return self._channel_blocks(x.shape)

    def _channel_blocks(self, shape: tuple[int, ...]) -> Blocks:
        raise NotImplementedError


class GroupNormalization(_ChannelNormalization):
    """Groups of channels, each example by itself: group_norm (Wu & He, arXiv:1803.08494)."""

    _shown = ("num_groups", "num_channels", "layout")

    def __init__(
        self,
        num_groups: int,
        num_channels: int | None = None,
        eps: float = 1e-5,
        *,
        activation: str | None = None,
        layout: str = "channels_first",
    ) -> None:
        """Makes a layer with parameters, or, without num_channels, without any.

        Args:
            num_groups: divides the channels.
            num_channels: C of every x. None: any that num_groups divides.
            eps: see group_norm, as for the arguments that follow.
            activation: see group_norm.
            layout: see group_norm.

        Raises:
            TypeError: an argument is of the wrong type.
            ValueError: an argument has a wrong value.
        """
        super().__init__(num_channels, eps, activation, layout)
        self.num_groups = as_integer("num_groups", num_groups)
        if self.num_groups < 1 or (self.num_channels or 0) % self.num_groups != 0:
            divide = "" if num_channels is None else f" and divide num_channels={num_channels}"
            raise ValueError(f"num_groups: must be at least 1{divide}; got {num_groups}")

    def _channel_blocks(self, shape: tuple[int, ...]) -> Blocks:
        return grouped(shape, self.num_groups, self.layout)


class InstanceNormalization(_ChannelNormalization):
    """Each channel of each example: instance_norm (Ulyanov et al., arXiv:1607.08022)."""

    _shown = ("num_channels", "layout")

    def __init__(
        self,
        num_channels: int | None = None,
        eps: float = 1e-5,
        *,
        activation: str | None = None,
        layout: str = "channels_first",
    ) -> None:
        """Makes a layer; see GroupNormalization."""
        super().__init__(num_channels, eps, activation, layout)

    def _channel_blocks(self, shape: tuple[int, ...]) -> Blocks:
        return grouped(shape, None, self.layout)


class BatchNormalization(_ChannelNormalization):
    """Each channel over all examples: batch_norm (Ioffe & Szegedy, arXiv:1502.03167).

    In training, which it starts in, forward takes the statistics of x and moves the running ones;
    after eval() it takes the running ones. backward goes through the former, but takes the latter
    as constants.

    Attributes:
        training: whether it trains.
        momentum: see batch_norm.
        running_mean: [C], float64, 0 at first.
        running_var: [C], float64, 1 at first.
    """

    _shown = ("num_channels", "momentum", "layout")

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        activation: str | None = None,
        layout: str = "channels_first",
    ) -> None:
        """Makes a layer; see GroupNormalization, and batch_norm for momentum."""
        super().__init__(as_integer("num_channels", num_channels), eps, activation, layout)
        self.momentum = as_momentum(momentum)
        self.training = True
        self.running_mean = numpy.zeros(num_channels)
        self.running_var = numpy.ones(num_channels)

    def train(self, mode: bool = True) -> "BatchNormalization":
        """Sets whether the layer trains, and returns it."""
        self.training = mode
        return self

    def eval(self) -> "BatchNormalization":
        """Ends training, and returns the layer."""
        return self.train(False)

    def _channel_blocks(self, shape: tuple[int, ...]) -> Blocks:
        return batched(shape, self.layout)

    def _normalize(
        self, blocks: Blocks, x: Array, weight: Array | None, bias: Array | None, out: Array | None
    ) -> Result:
        return batch_norm(
            x,
            self.running_mean,
            self.running_var,
            weight,
            bias,
            self.training,
            self.momentum,
            self.eps,
            activation=self.activation,
            layout=self.layout,
            out=out,
            return_statistics=True,
        )

    def _given_statistics(self) -> bool:
        return not self.training


class LayerNormalization(Normalization):
    """The last axes together: layer_norm (Ba, Kiros & Hinton, arXiv:1607.06450)."""

    _shown = ("normalized_shape",)

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: str | None = None,
    ) -> None:
        """Makes a layer.

        Args:
            normalized_shape: the last sizes of every x.
            eps: see layer_norm.
            affine: whether it has weight and bias.
            activation: see layer_norm.

        Raises:
            TypeError: an argument is of the wrong type.
        """
        self.normalized_shape = as_shape(normalized_shape)
        super().__init__(self.normalized_shape if affine else None, eps, activation)

    def _blocks(self, x: Array) -> Blocks:
        return trailing(x.shape, self.normalized_shape)


class RmsNormalization(LayerNormalization):
    """As LayerNormalization, but not centred: rms_norm (Zhang & Sennrich, arXiv:1910.07467)."""

    _center = False
