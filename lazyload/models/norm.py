"""Norms, in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.architecture import Norm
from lazyload.models.parameters import Parameters


class RMSNorm(nnx.Module):
    """Divides by the root mean square over the trailing dimensions that its scale has, then scales.

    Attributes:
        scale: The weights as checkpoints store them; `offset` is added to them before use.
    """

    eps: float
    offset: float
    scale: nnx.Param[jax.Array]

    def __init__(self, parameters: Parameters, norm: Norm):
        self.eps = norm.eps
        self.offset = norm.offset
        self.scale = parameters.declare("scale", nnx.initializers.constant(1.0 - norm.offset))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the trailing dimensions; shape and dtype are those of `x`, the arithmetic is in float32."""
        scale = self.scale[...].astype(jnp.float32) + self.offset
        return (normalized(x, self.eps, scale.ndim) * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Takes the mean away, divides by the standard deviation over the last dimension, then scales and shifts."""

    eps: float
    scale: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None

    def __init__(self, parameters: Parameters, norm: architecture.LayerNorm):
        self.eps = norm.eps
        self.scale = parameters.declare("scale", nnx.initializers.ones_init())
        self.bias = parameters.declare("bias", nnx.initializers.zeros_init()) if norm.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the last dimension; shape and dtype are those of `x`, the arithmetic is in float32."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        y = normalized(centred, self.eps) * self.scale[...].astype(jnp.float32)
        return (y if self.bias is None else y + self.bias[...].astype(jnp.float32)).astype(x.dtype)


def norm_of(parameters: Parameters, norm: Norm | architecture.LayerNorm) -> RMSNorm | LayerNorm:
    """The module of a norm."""
    return RMSNorm(parameters, norm) if isinstance(norm, Norm) else LayerNorm(parameters, norm)


def normalized(x: jax.Array, eps: float, trailing: int = 1) -> jax.Array:
    """`x` by its root mean square over so many trailing dimensions; in float32."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=tuple(range(-trailing, 0)), keepdims=True)
    return wide * jax.lax.rsqrt(mean_square + eps)
