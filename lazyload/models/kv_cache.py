"""The key-value cache: what the mixers keep of the tokens seen so far.

A cache is a plain pytree, `{"layer_0": {"k", "v", "end_index"}, ...}`, the structure that Tunix's sampler carries. A
layer has the arrays that its mixer says it keeps, `[batch, ...]`, and `end_index`, int32 `[batch]`, the number of
tokens seen, which a layer without a mixer has, too; one whose keys and values are another layer's has no entry. Layers
that are stacked have one entry, by the number of the first of them, whose arrays but `end_index` are `[layer, batch,
...]`. All rows of a batch are filled alike: shorter prompts are padded, and the attention mask hides the padding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from lazyload.architecture import DecoderConfig
from lazyload.architecture.stacking import stacks
from lazyload.errors import InputError

LayerCache = dict[str, jax.Array]
KVCache = dict[str, LayerCache]


def init_cache(
    config: DecoderConfig,
    batch_size: int,
    cache_size: int,
    dtype: DTypeLike,
    *,
    scan_layers: bool = False,
    zeros: Callable[[int, tuple[str, ...], tuple[int, ...], DTypeLike], jax.Array],
) -> KVCache:
    """An empty cache for sequences of up to `cache_size` tokens.

    Args:
        config: What the decoder is.
        batch_size: The number of sequences.
        cache_size: The tokens that each of them may have.
        dtype: The dtype of keys and values.
        scan_layers: Whether the decoder's layers are stacked, and what they keep, too.
        zeros: Makes an array of a layer, called with the layer's number, the logical axes, the shape, and the dtype.
    """
    alone = tuple(range(number, number + 1) for number in range(config.num_layers))
    cache = {}
    for stack in stacks(config) if scan_layers else alone:
        number, layer = stack[0], config.layers[stack[0]]
        if config.kv_layer(number) != number:
            continue
        several = {"layer": len(stack)} if len(stack) > 1 else {}
        sizes = {**layer.axes, "batch": batch_size, "1": 1, **several}
        arrays = {}
        for name, array in layer.cache.items():
            sizes["slot"] = -(-cache_size // array.every)
            axes = (*several, "batch", *array.axes)
            arrays[name] = zeros(number, axes, tuple(sizes[axis] for axis in axes), array.dtype or dtype)
        cache[f"layer_{number}"] = {**arrays, "end_index": zeros(number, (), (batch_size,), jnp.int32)}
    return cache


def slots(config: DecoderConfig, cache: KVCache) -> int | None:
    """How many tokens a cache can hold; None where no mixer keeps anything for each of them."""
    for number, layer in enumerate(config.layers):
        for name, array in layer.cache.items():
            if array.axes[:1] == ("slot",) and array.every == 1:
                return cache[f"layer_{number}"][name].shape[-len(array.axes)]
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
