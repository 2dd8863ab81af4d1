"""What the mixers of one call share: positions, rotary angles, masks, each made once."""

import jax
import jax.numpy as jnp

from lazyload.architecture import Rope
from lazyload.models.rope import Rotation, rotation


class Context:
    """The tokens of one call, as mixers need to know them.

    Attributes:
        positions: int32 `[batch, length]`, for rotary embeddings.
        start: How many tokens the key-value cache held before; 0 without one.
        attention_mask: bool `[batch, length, keys]`, True where a token may attend; None for causal.
    """

    def __init__(self, positions: jax.Array, start: jax.Array | int, attention_mask: jax.Array | None):
        self.positions = positions
        self.start = start
        self.attention_mask = attention_mask
        self._rotations: dict[Rope, Rotation] = {}
        self._masks: dict[tuple[int, int | None], jax.Array] = {}

    def rotation(self, rope: Rope | None) -> Rotation | None:
        """The angles of a rotary embedding at the tokens' positions; None for none."""
        if rope is None:
            return None
        if rope not in self._rotations:
            self._rotations[rope] = rotation(rope, self.positions)
        return self._rotations[rope]

    def mask(self, keys: int, window: int | None) -> jax.Array:
        """Which keys each token may attend to, bool `[batch or 1, length, keys]`.

        Args:
            keys: The number of keys: the cache's slots or, without a cache, the tokens.
            window: How many slots back, itself included, a token sees; None for all. It narrows any mask.
        """
        if (keys, window) not in self._masks:
            queries, slots = self.start + jnp.arange(self.positions.shape[1])[:, None], jnp.arange(keys)
            mask = (slots <= queries)[None] if self.attention_mask is None else self.attention_mask
            self._masks[keys, window] = mask if window is None else mask & (slots > queries - window)
        return self._masks[keys, window]

    def real(self) -> jax.Array | None:
        """Which tokens are no padding, bool `[batch, length]`: those that attend to themselves; None for all."""
        if self.attention_mask is None:
            return None
        own = self.start + jnp.arange(self.positions.shape[1])
        return jnp.take_along_axis(self.attention_mask, own[None, :, None], axis=2)[..., 0]
