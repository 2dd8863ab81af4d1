"""What the mixers of one call share: positions, rotary angles, masks, each made once."""

import jax
import jax.numpy as jnp

from lazyload.architecture import Rope
from lazyload.errors import InputError
from lazyload.models.rope import Rotation, rotation


class Context:
    """The tokens of one call, as mixers need to know them.

    Attributes:
        positions: int32 `[batch, length]`, for rotary embeddings.
        start: How many tokens the key-value cache held before; 0 without one.
        attention_mask: bool `[batch, keys]` or `[batch, length, keys]`, see `checked_mask`; None for causal.
        tokens: Which tokens they are, int32 `[batch, length]`; None where nobody asks.
        selected: Which of the keys that it may attend to the last indexer has selected for each token, bool `[batch or
            1, length, keys]`; None before there was one.
    """

    def __init__(
        self,
        positions: jax.Array,
        start: jax.Array | int,
        attention_mask: jax.Array | None,
        tokens: jax.Array | None = None,
    ):
        self.positions = positions
        self.start = start
        self.attention_mask = attention_mask
        self.tokens = tokens
        self.selected: jax.Array | None = None
        self._rotations: dict[Rope, Rotation] = {}
        self._masks: dict[tuple[int, int | None, int | None], jax.Array] = {}

    def rotation(self, rope: Rope | None) -> Rotation | None:
        """The angles of a rotary embedding at the tokens' positions; None for none."""
        if rope is None:
            return None
        if rope not in self._rotations:
            self._rotations[rope] = rotation(rope, self.positions)
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
