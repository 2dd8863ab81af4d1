"""Attention: the softmax over keys, and the mixer with grouped query heads."""

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.models.context import Context
from lazyload.models.kv_cache import LayerCache, append
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection
from lazyload.models.rope import rotate


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
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
        mask: bool `[batch or 1, length, keys]`. A query that may attend to nothing (padding) gets finite nonsense.
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
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)
        logits = jnp.concatenate([logits, jnp.broadcast_to(sink, (*logits.shape[:-1], 1))], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)[..., : key.shape[1]]
    mixed = jnp.einsum("bkgts,bskv->btkgv", weights.astype(value.dtype), value)
    return mixed.reshape(batch, length, heads, value.shape[-1])


class Attention(nnx.Module):
    """Attention with grouped query heads, and optional q/k norms, biases, soft cap, sinks and output gate."""

    def __init__(self, block: architecture.Attention, parameters: Parameters):
        self.block = block
        self.q_proj = Projection(parameters["q_proj"])
        self.k_proj = Projection(parameters["k_proj"])
        self.v_proj = Projection(parameters["v_proj"])
        self.o_proj = Projection(parameters["o_proj"], inputs=2)
        if block.qk_norm:
            self.q_norm = RMSNorm(parameters["q_norm"], block.norm)
            self.k_norm = RMSNorm(parameters["k_norm"], block.norm)
        if block.sinks:
            self.sinks = parameters.declare("sinks", nnx.initializers.zeros_init())

    def __call__(self, x: jax.Array, context: Context, cache: LayerCache | None) -> tuple[jax.Array, LayerCache | None]:
        """Attends from `x`, `[batch, length, embed]`, to itself or, with a cache, to everything in it.

        Args:
            x: The tokens' vectors.
            context: What the mixers of the call share.
            cache: The layer's cache, or None.

        Returns:
            `[batch, length, embed]`, and the cache with these tokens.
        """
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        gate = None
        if self.block.gated:
            query, gate = query[..., 0, :], query[..., 1, :]
        if self.block.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        rotation = context.rotation(self.block.rope)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if self.block.temperature is not None:
            query = query * _growth(self.block.temperature, context.positions).astype(query.dtype)
        if cache is not None:
            cache = append(cache, key, value)
            key, value = cache["k"].astype(query.dtype), cache["v"].astype(query.dtype)
        mixed = attend(
            query,
            key,
            value,
            context.mask(key.shape[1], self.block.window),
            scale=self.block.scale,
            softcap=self.block.softcap,
            sinks=self.sinks[...] if self.block.sinks else None,
        )
        if gate is not None:
            mixed = mixed * jax.nn.sigmoid(gate)
        return self.o_proj(mixed), cache


def _growth(temperature: architecture.Temperature, positions: jax.Array) -> jax.Array:
    """What queries are multiplied with, float32 `[batch, length, 1, 1]`."""
    times = jnp.floor(positions.astype(jnp.float32) / temperature.length)
    return (1 + temperature.beta * jnp.log1p(times))[..., None, None]
