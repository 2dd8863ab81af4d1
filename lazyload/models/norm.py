"""Norms, in float32."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.architecture import Norm
from lazyload.models.activations import value_of
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
        scale = value_of(self.scale).astype(jnp.float32) + self.offset
        y: jax.Array = _scaled(x, scale, self.eps)
        return y


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
        scale = value_of(self.scale).astype(jnp.float32)
        bias = None if self.bias is None else value_of(self.bias).astype(jnp.float32)
        y: jax.Array = _centred(x, scale, bias, self.eps)
        return y


def norm_of(parameters: Parameters, norm: Norm | architecture.LayerNorm) -> RMSNorm | LayerNorm:
    """The module of a norm."""
    return RMSNorm(parameters, norm) if isinstance(norm, Norm) else LayerNorm(parameters, norm)


def normalized(x: jax.Array, eps: float, trailing: int = 1) -> jax.Array:
    """`x` by its root mean square over so many trailing dimensions; in float32."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=tuple(range(-trailing, 0)), keepdims=True)
    return wide * jax.lax.rsqrt(mean_square + eps)


# For the backward pass only what came in is kept, not the float32 arrays in between, each twice as large.
@functools.partial(jax.checkpoint, static_argnums=2)
def _scaled(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return (normalized(x, eps, scale.ndim) * scale).astype(x.dtype)


@functools.partial(jax.checkpoint, static_argnums=3)
def _centred(x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float) -> jax.Array:
    wide = x.astype(jnp.float32)
    y = normalized(wide - jnp.mean(wide, axis=-1, keepdims=True), eps) * scale
    return (y if bias is None else y + bias).astype(x.dtype)
