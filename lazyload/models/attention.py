"""Attention: masks, the softmax over keys, and the layer with grouped query heads."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lazyload.architecture.decoder import DecoderConfig
from lazyload.models.kv_cache import LayerCache, append
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import parameter
from lazyload.models.projection import Projection
from lazyload.models.rope import Rotation, rotate


def visible(start: jax.Array | int, length: int, keys: int, window: int | None, mask: jax.Array | None) -> jax.Array:
    """Which keys each query sees, bool `[batch or 1, length, keys]`.

    Args:
        start: The slot of the first query: how many tokens the cache held before.
        length: The number of queries.
        keys: The number of key slots.
        window: How many slots back, itself included, a query sees; None for all.
        mask: What the caller allows, bool `[batch, length, keys]`; None for causal. A window narrows either.
    """
    queries, slots = start + jnp.arange(length)[:, None], jnp.arange(keys)
    seen = (slots <= queries)[None] if mask is None else mask
    return seen if window is None else seen & (slots > queries - window)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention; logits and softmax are in float32.

    Args:
        query: `[batch, length, head, dim]`.
        key: `[batch, keys, kv_head, dim]`; each serves `head / kv_head` neighbouring query heads.
        value: `[batch, keys, kv_head, v_dim]`.
        seen: bool `[batch or 1, length, keys]`. A query that sees nothing (padding) gets finite nonsense.
        scale: What the logits are multiplied with.
        softcap: `softcap * tanh(logits / softcap)`, before the mask.
        sinks: `[head]`: one further logit a head, whose share of the attention goes nowhere.

    Returns:
        `[batch, length, head, v_dim]`, of the values' dtype.
    """
    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(seen[:, None, None], logits, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)
        logits = jnp.concatenate([logits, jnp.broadcast_to(sink, (*logits.shape[:-1], 1))], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)[..., : key.shape[1]]
    mixed = jnp.einsum("bkgts,bskv->btkgv", weights.astype(value.dtype), value)
    return mixed.reshape(batch, length, heads, value.shape[-1])


class Attention(nnx.Module):
    """Attention with grouped query heads, and optional q/k norms, biases, soft cap and sinks."""

    def __init__(self, config: DecoderConfig, *, dtype: DTypeLike, rngs: nnx.Rngs | None):
        self.config = config
        sizes = config.axes

        def project(inputs: tuple[str, ...], outputs: tuple[str, ...], *, bias: bool) -> Projection:
            return Projection(inputs, outputs, sizes, bias=bias, dtype=dtype, rngs=rngs)

        self.q = project(("embed",), ("head", "head_dim"), bias=config.qkv_bias)
        self.k = project(("embed",), ("kv_head", "head_dim"), bias=config.qkv_bias)
        self.v = project(("embed",), ("kv_head", "head_dim"), bias=config.qkv_bias)
        self.o = project(("head", "head_dim"), ("embed",), bias=config.o_bias)
        if config.qk_norm:
            for name, heads in (("q_norm", "head"), ("k_norm", "kv_head")):
                axes = (heads, "head_dim") if config.qk_norm == "full" else ("head_dim",)
                norm = RMSNorm(axes, sizes, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype, rngs=rngs)
                setattr(self, name, norm)
        if config.sinks:
            self.sinks = parameter(nnx.initializers.zeros_init(), ("head",), sizes, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, rotation: Rotation | None, seen: jax.Array, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attends from `x`, `[batch, length, embed]`, to itself or, with a cache, to everything in it.

        Args:
            x: The tokens' vectors.
            rotation: The tokens' rotary angles; None for no rotation.
            seen: bool `[batch or 1, length, keys]`, keys being the cache's slots, or the tokens without a cache.
            cache: The layer's cache, or None.

        Returns:
            `[batch, length, embed]`, and the cache with these tokens.
        """
        query, key, value = self.q(x), self.k(x), self.v(x)
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if cache is not None:
            cache = append(cache, key, value)
            key, value = cache["k"].astype(query.dtype), cache["v"].astype(query.dtype)
        mixed = attend(
            query,
            key,
            value,
            seen,
            scale=self.config.query_scale,
            softcap=self.config.attn_softcap,
            sinks=self.sinks[...] if self.config.sinks else None,
        )
        return self.o(mixed), cache
