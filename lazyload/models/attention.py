"""The mixer with grouped query heads."""

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.models.activations import value_of
from lazyload.models.attention_kernels import attend, split_of
from lazyload.models.context import Context
from lazyload.models.kv_cache import LayerCache, append
from lazyload.models.norm import RMSNorm, normalized
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection
from lazyload.models.rope import Rotation, rotate


class Attention(nnx.Module):
    """Attention with grouped query heads, and optional norms, biases, soft cap, sinks and output gate.

    A block whose keys and values are another layer's has no projections for them.
    """

    q_proj: Projection
    k_proj: Projection | None
    v_proj: Projection | None
    o_proj: Projection
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    sinks: nnx.Param[jax.Array]

    def __init__(self, block: architecture.Attention, parameters: Parameters):
        self.block = block
        self.q_proj = Projection(parameters["q_proj"])
        self.k_proj = Projection(parameters["k_proj"]) if "k_proj" in parameters else None
        self.v_proj = Projection(parameters["v_proj"]) if "v_proj" in parameters else None
        self.o_proj = Projection(parameters["o_proj"], inputs=2)
        self.q_norm = RMSNorm(parameters["q_norm"], block.norm) if "q_norm" in parameters else None
        self.k_norm = RMSNorm(parameters["k_norm"], block.norm) if "k_norm" in parameters else None
        if block.sinks:
            self.sinks = parameters.declare("sinks", nnx.initializers.zeros_init())

    def __call__(self, x: jax.Array, context: Context, cache: LayerCache | None) -> tuple[jax.Array, LayerCache | None]:
        """Attends from `x`, `[batch, length, embed]`, to itself or, with a cache, to everything in it.

        Args:
            x: The tokens' vectors.
            context: What the mixers of the call share.
            cache: The layer's cache, or None. Where keys and values are another layer's, what that one returned.

        Returns:
            `[batch, length, embed]`, and what was attended to: the cache with these tokens, or their keys and values.
        """
        rotation = context.rotation(self.block.rope)
        query, gate = self.q_proj(x), None
        if self.block.gated:
            query, gate = query[..., 0, :], query[..., 1, :]
        query = self._normed_and_rotated(query, self.q_norm, rotation)
        if self.block.temperature is not None:
            query = query * _growth(self.block.temperature, context.positions).astype(query.dtype)
        kept = self._kept(x, rotation, cache)
        key, value = kept["k"].astype(query.dtype), kept["v"].astype(query.dtype)
        mixed = attend(
            query,
            key,
            value,
            context,
            self.block,
            split_of(self.q_proj),
            value_of(self.sinks) if self.block.sinks else None,
        )
        if gate is not None:
            mixed = mixed * jax.nn.sigmoid(gate)
        return self.o_proj(mixed), kept

    def _kept(self, x: jax.Array, rotation: Rotation | None, cache: LayerCache | None) -> LayerCache:
        """The keys and values to attend to."""
        if self.k_proj is None:
            assert cache is not None  # the decoder passes what the other layer returned
            return cache
        key = self.k_proj(x)
        value = key if self.v_proj is None else self.v_proj(x)
        if self.block.v_norm:
            value = normalized(value, self.block.norm.eps).astype(value.dtype)
        key, value = self._normed_and_rotated(key, self.k_norm, rotation), self._clipped(value)
        return {"k": key, "v": value} if cache is None else append(cache, k=key, v=value)

    def _normed_and_rotated(self, x: jax.Array, norm: RMSNorm | None, rotation: Rotation | None) -> jax.Array:
        """Queries or keys, `[batch, length, heads, head_dim]`, as the logits take them."""
        if norm is not None and not self.block.norm_after_rope:
            x = norm(x)
        x = self._clipped(x)
        if rotation is not None:
            x = rotate(x, rotation)
        if self.block.qk_norm == "bare":
            return normalized(x, self.block.norm.eps).astype(x.dtype)
        return norm(x) if norm is not None and self.block.norm_after_rope else x

    def _clipped(self, x: jax.Array) -> jax.Array:
        clip = self.block.qkv_clip
        return x if clip is None else jnp.clip(x, -clip, clip)


def _growth(temperature: architecture.Temperature, positions: jax.Array) -> jax.Array:
    """What queries are multiplied with, float32 `[batch, length, 1, 1]`."""
    times = jnp.floor((positions + temperature.counted_from).astype(jnp.float32) / temperature.length)
    return (1 + temperature.beta * jnp.log1p(times))[..., None, None]
