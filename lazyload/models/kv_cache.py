"""The keys and values of the tokens seen so far.

A cache is a plain pytree, `{"layer_0": {"k", "v", "end_index"}, ...}`, the structure that Tunix's sampler carries.
`k` and `v` are `[batch, cache_size, kv_head, dim]`; `end_index`, int32 `[batch]`, counts the slots filled. All rows of
a batch are filled alike: shorter prompts are padded, and the attention mask hides the padding.

Latent attention keeps its compressed form, `k` the latents `[batch, cache_size, 1, kv_rank]` and `v` the shared
rotated keys `[batch, cache_size, 1, rope_dim]`: DeepSeek V3 needs 576 numbers a token instead of 40,960.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lazyload.architecture.decoder import DecoderConfig

LayerCache = dict[str, jax.Array]
Cache = dict[str, LayerCache]


def init_cache(config: DecoderConfig, batch_size: int, cache_size: int, dtype: DTypeLike) -> Cache:
    """An empty cache for sequences of up to `cache_size` tokens; more must not be written to it."""
    heads, key_dim, value_dim = config.num_kv_heads, config.head_dim, config.head_dim
    if config.latent:
        heads, key_dim, value_dim = 1, config.latent.kv_rank, config.latent.rope_dim
    return {
        f"layer_{number}": {
            "k": jnp.zeros((batch_size, cache_size, heads, key_dim), dtype),
            "v": jnp.zeros((batch_size, cache_size, heads, value_dim), dtype),
            "end_index": jnp.zeros((batch_size,), jnp.int32),
        }
        for number in range(config.num_layers)
    }


def append(cache: LayerCache, key: jax.Array, value: jax.Array) -> LayerCache:
    """The cache with the keys and values of further tokens, `[batch, length, kv_head, dim]`."""
    start = cache["end_index"][0]
    return {
        "k": jax.lax.dynamic_update_slice_in_dim(cache["k"], key.astype(cache["k"].dtype), start, axis=1),
        "v": jax.lax.dynamic_update_slice_in_dim(cache["v"], value.astype(cache["v"].dtype), start, axis=1),
        "end_index": cache["end_index"] + key.shape[1],
    }
