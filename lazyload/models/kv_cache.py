"""The key-value cache: what the mixers keep of the tokens seen so far.

A cache is a plain pytree, `{"layer_0": {"k", "v", "end_index"}, ...}`, the structure that Tunix's sampler carries. A
layer has the arrays that its mixer says it keeps, `[batch, ...]`, and `end_index`, int32 `[batch]`, the number of
tokens seen, which a layer without a mixer has, too; one whose keys and values are another layer's has no entry. All
rows of a batch are filled alike: shorter prompts are padded, and the attention mask hides the padding.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lazyload.architecture import DecoderConfig
from lazyload.errors import InputError

LayerCache = dict[str, jax.Array]
KVCache = dict[str, LayerCache]


def init_cache(config: DecoderConfig, batch_size: int, cache_size: int, dtype: DTypeLike) -> KVCache:
    """An empty cache for sequences of up to `cache_size` tokens."""
    cache = {}
    for number, layer in enumerate(config.layers):
        if config.kv_layer(number) != number:
            continue
        sizes = {**layer.axes, "slot": cache_size, "1": 1}
        arrays = {
            name: jnp.zeros((batch_size, *(sizes[axis] for axis in array.axes)), array.dtype or dtype)
            for name, array in layer.cache.items()
        }
        cache[f"layer_{number}"] = {**arrays, "end_index": jnp.zeros((batch_size,), jnp.int32)}
    return cache


def slots(config: DecoderConfig, cache: KVCache) -> int | None:
    """How many tokens a cache can hold; None where no mixer keeps anything for each of them."""
    for number, layer in enumerate(config.layers):
        for name, array in layer.cache.items():
            if array.axes[0] == "slot":
                return cache[f"layer_{number}"][name].shape[1]
    return None


def require_room(cache: KVCache, size: int, length: int) -> None:
    """Makes sure that further tokens fit, as far as that is known: inside `jax.jit` the tokens that are there are not.

    Raises:
        InputError: They do not fit.
    """
    end = cache["layer_0"]["end_index"]
    there = 0 if isinstance(end, jax.core.Tracer) else int(end[0])
    if there + length > size:
        raise InputError(
            f"the key-value cache has {size} slots and holds {there} tokens: {length} more do not fit; make a larger "
            "one, init_cache(batch_size, cache_size, dtype)"
        )


def passed(cache: LayerCache, length: int) -> LayerCache:
    """The cache after further tokens of which it keeps nothing but their number."""
    return {**cache, "end_index": cache["end_index"] + length}


def append(cache: LayerCache, **arrays: jax.Array) -> LayerCache:
    """The cache with what it keeps of further tokens, such as keys and values, `[batch, length, kv_head, dim]`."""
    start = cache["end_index"][0]
    kept = {
        name: jax.lax.dynamic_update_slice_in_dim(cache[name], array.astype(cache[name].dtype), start, axis=1)
        for name, array in arrays.items()
    }
    (length,) = {array.shape[1] for array in arrays.values()}
    return {**kept, "end_index": cache["end_index"] + length}
