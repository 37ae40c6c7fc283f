"""The engine in Keras 3, on CPUs.

    import groupnorm.keras
    layer = groupnorm.keras.GroupNormalization(groups=32, activation="silu")
    model = groupnorm.keras.replace_group_normalization(model)

Keras' backend does the rest: on torch the layer calls groupnorm.torch, on jax groupnorm.jax. On
others it calls what its parent does.
"""

import math
from collections.abc import Callable
from typing import Any

try:
    import keras
except ImportError as error:
    raise ImportError(f"{error}: pip install groupnorm[keras]") from error

__all__ = ["GroupNormalization", "gelu_tanh", "replace_group_normalization"]


@keras.saving.register_keras_serializable(package="groupnorm")
def gelu_tanh(x: Any) -> Any:
    """GELU by its approximation with tanh, which the layer computes in one go with the norm."""
    return keras.activations.gelu(x, approximate=True)


# What the engine calls those that it computes.
_FUSED: dict[Callable[..., Any], str] = {
    keras.activations.linear: "none",
    keras.activations.relu: "relu",
    keras.activations.silu: "silu",
    keras.activations.gelu: "gelu",
    gelu_tanh: "gelu_tanh",
    keras.activations.hard_silu: "hard_swish",
}


# The engine on the tensors of a backend: x, groups, axis from 0, gamma, beta, epsilon, activation.


def _by_torch(
    x: Any, groups: int, axis: int, gamma: Any, beta: Any, epsilon: float, activation: str
) -> Any:
    from .torch.functional import group_norm

    last = axis == x.ndim - 1
    # Channels last, torch knows [N, C, S, 1] alone, of any rank.
    rows = (x.shape[0], math.prod(x.shape[1:-1]), 1, x.shape[-1])
    seen = x.reshape(rows).movedim(-1, 1) if last else x.movedim(axis, 1)
    y = group_norm(seen, groups, gamma, beta, epsilon, activation=activation)
    return y.movedim(1, -1).reshape(x.shape) if last else y.movedim(1, axis)


def _by_jax(
    x: Any, groups: int, axis: int, gamma: Any, beta: Any, epsilon: float, activation: str
) -> Any:
    from .jax import group_norm

    return group_norm(x, groups, gamma, beta, epsilon=epsilon, axis=axis, activation=activation)


_BY_BACKEND: dict[str, Callable[..., Any]] = {"torch": _by_torch, "jax": _by_jax}


@keras.saving.register_keras_serializable(package="groupnorm")
class GroupNormalization(keras.layers.GroupNormalization):
    """keras.layers.GroupNormalization on the engine, with an activation behind it.

    Its arguments, weights and their file are those of the parent, so are those of
    tfa.layers.GroupNormalization: groups (32; -1: each channel by itself), axis (-1), epsilon
    (1e-3), center, scale, and initializers, regularizers and constraints of beta and gamma.

    Args:
        activation: None, a function, or its name in keras.activations. linear, relu, silu (swish),
            gelu, hard_silu (hard_swish) and "gelu_tanh" are computed with the norm, the others
            behind it.

    Raises:
        TypeError: axis is no int.
        ValueError: groups is no int, or does not divide the channels; axis is that of the examples
            or none of the input; or activation names none.
    """

    def __init__(
        self, groups: int = 32, axis: int = -1, epsilon: float = 1e-3, *args: Any, **kwargs: Any
    ) -> None:
        activation = kwargs.pop("activation", None)
        if not isinstance(axis, int):
            raise TypeError(f"axis: must be an int; got {axis!r}")
        super().__init__(groups, axis, epsilon, *args, **kwargs)
        self.activation = (
            gelu_tanh if activation == "gelu_tanh" else keras.activations.get(activation)
        )

    def build(self, input_shape: Any) -> None:
        rank = len(input_shape)
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise ValueError(
                f"axis: must be an axis of the input, of shape {input_shape}, and not that of the "
                f"examples, 0; got {self.axis}"
            )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        compute = _BY_BACKEND.get(keras.backend.backend())
        if compute is None:
            return self.activation(super().call(inputs))
        x = keras.ops.convert_to_tensor(inputs)
        dtype = keras.backend.standardize_dtype(x.dtype)
        if not keras.backend.is_float_dtype(dtype):
            x = keras.ops.cast(x, self.compute_dtype)
        wide = "float64" if dtype == "float64" else "float32"
        fused = _FUSED.get(self.activation)
        gamma, beta = (
            None if each is None else keras.ops.cast(each, wide) for each in (self.gamma, self.beta)
        )
        axis = self.axis % len(x.shape)
        y = compute(x, self.groups, axis, gamma, beta, self.epsilon, fused or "none")
        y = keras.ops.cast(y, self.compute_dtype)
        return y if fused else self.activation(y)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "activation": keras.activations.serialize(self.activation)}


def replace_group_normalization(model: Any) -> Any:
    """Clones a Functional or Sequential model, with this layer in place of Keras' own.

    Layers of the model, and of models within it, are cloned as keras.models.clone_model does. Only
    keras.layers.GroupNormalization itself is replaced, none of its subclasses. The clone has the
    weights of the model, copied, and is not compiled.

    Args:
        model: a keras.Model made by the functional interface, or a keras.Sequential.

    Returns:
        The clone. Names of layers and weights are those of the model.

    Raises:
        TypeError: model is no keras.Model.
        ValueError: model is of a class of its own, which cannot be cloned so.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"model: must be a keras.Model; got {type(model).__name__}")

    def clone(layer: Any) -> Any:
        kind = GroupNormalization if type(layer) is keras.layers.GroupNormalization else type(layer)
        return kind.from_config(layer.get_config())

    try:
        cloned = keras.models.clone_model(model, clone_function=clone, recursive=True)
    except ValueError as error:
        kind = type(model).__name__
        raise ValueError(f"model: must be one that Keras can clone; got {kind}: {error}") from error
    cloned.set_weights(model.get_weights())
    return cloned
