"""What the mixers of one call share: positions, rotary angles, masks, each made once."""

from typing import Any

import jax
import jax.numpy as jnp

from lazyload.architecture import AttentionKernel, Rope
from lazyload.errors import InputError
from lazyload.models.kv_cache import KVCache
from lazyload.models.rope import Rotation, rotation


@jax.tree_util.register_pytree_with_keys_class
class Context:
    """The tokens of one call, as mixers need to know them.

    Attributes:
        positions: int32 `[batch, length]`, for rotary embeddings.
        start: How many tokens the key-value cache held before; 0 without one.
        attention_mask: bool `[batch, keys]` or `[batch, length, keys]`, see `checked_mask`; None for causal.
        segment_ids: int32 `[batch, length]`, the document that each token belongs to; None for one document a row.
            There are none where there is a cache.
        tokens: Which tokens they are, int32 `[batch, length]`; None where nobody asks.
        attention: What is to compute attention; None for what suits platform and layer best.
        platform: Where it runs, where the decoder's arrays tell; None where they are traced.
        selected: Which of the keys that it may attend to the last indexer has selected for each token, bool `[batch or
            1, length, keys]`; None before there was one.
    """

    def __init__(
        self,
        positions: jax.Array,
        start: jax.Array | int,
        attention_mask: jax.Array | None,
        segment_ids: jax.Array | None = None,
        tokens: jax.Array | None = None,
        attention: AttentionKernel | None = None,
        platform: str | None = None,
    ):
        self.positions = positions
        self.start = start
        self.attention_mask = attention_mask
        self.segment_ids = segment_ids
        self.tokens = tokens
        self.attention = attention
        self.platform = platform
        self.selected: jax.Array | None = None
        self._rotations: dict[Rope, Rotation] = {}
        self._masks: dict[tuple[int, int | None, int | None], jax.Array] = {}

    @property
    def has_cache(self) -> bool:
        """Whether there is a key-value cache."""
        return not isinstance(self.start, int)

    def copy(self) -> "Context":
        """The same, with a memory of its own of what is made once."""
        leaves, treedef = jax.tree.flatten(self)
        copied: Context = jax.tree.unflatten(treedef, leaves)
        return copied

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """What is traced, and what is not: whether there is a cache, and of which kinds of things there are any."""
        children = {
            "positions": self.positions,
            "start": self.start if self.has_cache else None,
            "attention_mask": self.attention_mask,
            "segment_ids": self.segment_ids,
            "tokens": self.tokens,
            "selected": self.selected,
            "rotations": tuple(self._rotations.values()),
            "masks": tuple(self._masks.values()),
        }
        keyed = tuple((jax.tree_util.GetAttrKey(name), child) for name, child in children.items())
        start = None if self.has_cache else self.start
        return keyed, (start, self.attention, self.platform, tuple(self._rotations), tuple(self._masks))

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "Context":
        """The inverse of that."""
        start, attention, platform, ropes, kinds = static
        positions, traced_start, attention_mask, segment_ids, tokens, selected, rotations, masks = children
        start = traced_start if start is None else start
        context = cls(positions, start, attention_mask, segment_ids, tokens, attention, platform)
        context.selected = selected
        context._rotations = dict(zip(ropes, rotations, strict=True))
        context._masks = dict(zip(kinds, masks, strict=True))
        return context

    def rotation(self, rope: Rope | None) -> Rotation | None:
        """The angles of a rotary embedding at the tokens' positions; None for none."""
        if rope is None:
            return None
        if rope not in self._rotations:
            self._rotations[rope] = rotation(rope, self.positions, self.segment_ids)
        return self._rotations[rope]

    def mask(self, keys: int, window: int | None = None, chunk: int | None = None) -> jax.Array:
        """Which keys each token may attend to, bool `[batch or 1, length, keys]`.

        Args:
            keys: The number of keys: the cache's slots or, without a cache, the tokens.
            window: How many slots back, itself included, a token sees; None for all. It narrows any mask.
            chunk: How many slots make a chunk, beyond whose start a token does not see; None for no chunks. They count
                from the first key that the token may attend to, after the padding. It narrows any mask, too.
        """
        kind = (keys, window, chunk)
        if kind not in self._masks:
            queries, slots = self.start + jnp.arange(self.positions.shape[1])[:, None], jnp.arange(keys)
            mask = self.attention_mask
            if mask is None:
                mask = (slots <= queries)[None]
            elif mask.ndim == 2:
                mask = (slots <= queries) & _filled_up(mask, keys)[:, None]
            if self.segment_ids is not None:
                mask &= self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
            first = jnp.argmax(mask, axis=-1, keepdims=True)
            if window is not None:
                mask &= slots > queries - window
            if chunk is not None:
                mask &= (slots - first) // chunk == (queries - first) // chunk
            self._masks[kind] = mask
        return self._masks[kind]

    def real(self) -> jax.Array | None:
        """Which tokens are no padding, bool `[batch, length]`: those that attend to themselves; None for all."""
        mask = self.attention_mask
        if mask is None:
            return None
        length = self.positions.shape[1]
        if mask.ndim == 2:
            padded = jnp.pad(mask, ((0, 0), (0, length)), constant_values=True)
            return jax.lax.dynamic_slice_in_dim(padded, jnp.minimum(self.start, mask.shape[1]), length, axis=1)
        own = self.start + jnp.arange(length)
        return jnp.take_along_axis(mask, own[None, :, None], axis=2)[..., 0]

    def carried_segments(self) -> jax.Array | None:
        """The segments as states are carried along, int32 `[batch, length]`; None for one document a row.

        Padding leaves states alone: it counts to the segment of the last token before it that is none.
        """
        real = self.real()
        if self.segment_ids is None or real is None:
            return self.segment_ids
        last = jax.lax.cummax(jnp.where(real, jnp.arange(real.shape[1]), 0), axis=1)
        return jnp.take_along_axis(self.segment_ids, last, axis=1)


def segment_starts(segment_ids: jax.Array) -> jax.Array:
    """Which tokens are the first of their segment, bool `[batch, length]`."""
    return jnp.diff(segment_ids, axis=1, prepend=segment_ids[:, :1] - 1) != 0


def counted_positions(tokens: jax.Array, start: jax.Array | int, segment_ids: jax.Array | None) -> jax.Array:
    """Positions that count up from `start`, or from 0 in each segment, int32 `[batch, length]`."""
    slots = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    if segment_ids is None:
        return jnp.broadcast_to(start + slots, tokens.shape)
    return slots - jax.lax.cummax(jnp.where(segment_starts(segment_ids), slots, 0), axis=1)


def require_segments(segment_ids: jax.Array, tokens: jax.Array, cache: KVCache | None) -> None:
    """Makes sure that segments can be told from each other.

    Raises:
        InputError: They have another shape than the tokens, are no integers, or there is a cache.
    """
    if segment_ids.shape != tokens.shape or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise InputError(
            f"segment_ids is {segment_ids.dtype} {list(segment_ids.shape)}; give int32 {list(tokens.shape)}, the "
            "number of each token's document"
        )
    if cache is not None:
        raise InputError(
            "there are segment_ids and a cache, which does not say of its tokens what segments they belong to; give "
            "cache=None, or each document a row of its own"
        )


def checked_mask(mask: jax.Array | None, batch: int, length: int, keys: int) -> jax.Array | None:
    """The attention mask of a call in one of two forms.

    Args:
        mask: bool, or 0 and 1. `[batch, keys]`, as tokenizers make it, says which keys are no padding, and is combined
            with causality; keys that it has no column for are real. `[batch, length, keys]` and `[batch, 1, length,
            keys]` say which keys each token may attend to, and are taken as they are.
        batch: The number of sequences.
        length: The number of tokens in each.
        keys: The number of keys: the cache's slots or, without a cache, the tokens.

    Returns:
        bool `[batch, up to keys]`, or `[batch or 1, length, keys]`; None for None.

    Raises:
        InputError: It has another shape, or holds other numbers than 0 and 1.
    """
    if mask is None:
        return None
    if not (jnp.issubdtype(mask.dtype, jnp.bool_) or jnp.issubdtype(mask.dtype, jnp.integer)):
        raise InputError(f"attention_mask is {mask.dtype}; give bool, True (or 1) where a key may be attended to")
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    pairs = mask.ndim == 3 and mask.shape in ((batch, length, keys), (1, length, keys))
    if not pairs and not (mask.ndim == 2 and mask.shape[0] == batch and mask.shape[1] <= keys):
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}; with {batch} sequences of {length} tokens and {keys} keys, "
            f"give [{batch}, {keys}] (which keys are no padding), [{batch}, {length}, {keys}] or "
            f"[{batch}, 1, {length}, {keys}] (which keys each token may attend to)"
        )
    return mask.astype(bool)


def _filled_up(mask: jax.Array, keys: int) -> jax.Array:
    return jnp.pad(mask, ((0, 0), (0, keys - mask.shape[1])), constant_values=True)
