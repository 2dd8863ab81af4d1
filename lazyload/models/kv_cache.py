"""The key-value cache: what the mixers keep of the tokens seen so far.

A cache is a plain pytree, `{"layer_0": {"k", "v", "end_index"}, ...}`, the structure that Tunix's sampler carries. A
layer has the arrays that its mixer says it keeps, `[batch, ...]`, and `end_index`, int32 `[batch]`, the number of
tokens seen. All rows of a batch are filled alike: shorter prompts are padded, and the attention mask hides the padding.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lazyload.architecture import DecoderConfig

LayerCache = dict[str, jax.Array]
Cache = dict[str, LayerCache]


def init_cache(config: DecoderConfig, batch_size: int, cache_size: int, dtype: DTypeLike) -> Cache:
    """An empty cache for sequences of up to `cache_size` tokens; more must not be written to it."""
    cache = {}
    for number, layer in enumerate(config.layers):
        sizes = {**layer.axes, "slot": cache_size}
        arrays = {
            name: jnp.zeros((batch_size, *(sizes[axis] for axis in array.axes)), array.dtype or dtype)
            for name, array in layer.mixer.cache.items()
        }
        cache[f"layer_{number}"] = {**arrays, "end_index": jnp.zeros((batch_size,), jnp.int32)}
    return cache


def append(cache: LayerCache, key: jax.Array, value: jax.Array) -> LayerCache:
    """The cache with the keys and values of further tokens, `[batch, length, kv_head, dim]`."""
    start = cache["end_index"][0]
    return {
        "k": jax.lax.dynamic_update_slice_in_dim(cache["k"], key.astype(cache["k"].dtype), start, axis=1),
        "v": jax.lax.dynamic_update_slice_in_dim(cache["v"], value.astype(cache["v"].dtype), start, axis=1),
        "end_index": cache["end_index"] + key.shape[1],
    }
