"""The engine in JAX on CPUs, as functions and as modules of Flax and Equinox.

    import groupnorm.jax
    y = groupnorm.jax.group_norm(x, 32, scale, bias, activation="silu")  # x is [N, ..., C]

They work under jit, grad, vmap, checkpoint and scan, and on arrays whose examples are sharded over
devices. Other devices than a CPU, forward mode and derivatives beyond the first take the same
formula in jax.numpy. ``groupnorm.jax.nnx`` and ``groupnorm.jax.equinox`` have modules.
"""

try:
    from .functional import group_norm, instance_norm, layer_norm, rms_norm
except ImportError as error:
    raise ImportError(f"{error}: pip install groupnorm[jax]") from error

__all__ = ["group_norm", "instance_norm", "layer_norm", "rms_norm"]
