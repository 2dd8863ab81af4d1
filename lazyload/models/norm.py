"""Root mean square norm, in float32."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lazyload.models.parameters import parameter


class RMSNorm(nnx.Module):
    """Divides by the root mean square over the named trailing dimensions, then scales.

    Attributes:
        scale: The weights as checkpoints store them; `offset` is added to them before use.
    """

    def __init__(
        self,
        axes: tuple[str, ...],
        sizes: Mapping[str, int],
        *,
        eps: float,
        offset: float = 0.0,
        dtype: DTypeLike,
        rngs: nnx.Rngs | None,
    ):
        self.eps = eps
        self.offset = offset
        self.scale = parameter(nnx.initializers.constant(1.0 - offset), axes, sizes, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises the trailing dimensions; shape and dtype are those of `x`, the arithmetic is in float32."""
        scale = self.scale[...].astype(jnp.float32) + self.offset
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=tuple(range(-scale.ndim, 0)), keepdims=True)
        return (wide * jax.lax.rsqrt(mean_square + self.eps) * scale).astype(x.dtype)
