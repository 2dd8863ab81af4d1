"""Keys that are made of windows of tokens, and the selection among them (DeepSeek V4's compressed attention).

Windows count from a sequence's first token that is no padding; a token sees the windows that are complete with it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.architecture import Norm, Rope
from lazyload.models.context import Context
from lazyload.models.indexer import largest
from lazyload.models.kv_cache import LayerCache
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection
from lazyload.models.rope import rotation, turn_in_place


class Place(NamedTuple):
    """Where the tokens of a call stand in their sequences.

    Attributes:
        seen: How many tokens of each sequence came before, without padding, int32 `[batch]`.
        first: Which of the call's tokens is the first that is no padding, int32 `[batch]`.
        real: How many are no padding, int32 `[batch]`.
        position: The first one's position, less its number in the sequence, int32 `[batch]`.
    """

    seen: jax.Array
    first: jax.Array
    real: jax.Array
    position: jax.Array

    @property
    def after(self) -> jax.Array:
        """How many tokens of each sequence there are with the call's, int32 `[batch]`."""
        return self.seen + self.real

    def complete(self, length: int, keys: int, rate: int) -> jax.Array:
        """Which windows of `rate` tokens each of the call's tokens sees, bool `[batch, length, keys]`."""
        number = self.seen[:, None] + jnp.arange(length) - self.first[:, None]
        return jnp.arange(keys) < ((number + 1) // rate)[..., None]


def place_of(context: Context, seen: jax.Array | None) -> Place:
    """Where the tokens of a call stand; `seen` is what the cache says, None without one."""
    batch, length = context.positions.shape
    seen = jnp.zeros(batch, jnp.int32) if seen is None else seen
    real = context.real()
    if real is None:
        first, count = jnp.zeros(batch, jnp.int32), jnp.full(batch, length, jnp.int32)
    else:
        real = jnp.broadcast_to(real, (batch, length))
        first, count = jnp.argmax(real, axis=1).astype(jnp.int32), jnp.sum(real, axis=1, dtype=jnp.int32)
    position = jnp.take_along_axis(context.positions, first[:, None], axis=1)[:, 0]
    return Place(seen, first, count, position - seen)


class Compressor(nnx.Module):
    """Makes a key of each window: a mixture of its tokens' vectors, weighted in each dimension by their gates."""

    rope: Rope | None
    kv_proj: Projection
    gate_proj: Projection
    position_bias: nnx.Param[jax.Array]
    kv_norm: RMSNorm

    def __init__(self, block: architecture.Compressor, rope: Rope | None, norm: Norm, parameters: Parameters):
        self.block = block
        self.rope = rope
        self.kv_proj = Projection(parameters["kv_proj"])
        self.gate_proj = Projection(parameters["gate_proj"])
        self.position_bias = parameters.declare("position_bias", nnx.initializers.zeros_init())
        self.kv_norm = RMSNorm(parameters["kv_norm"], norm)

    def __call__(self, x: jax.Array, place: Place, cache: LayerCache | None) -> tuple[jax.Array, LayerCache]:
        """The keys of all windows so far, `[batch, keys, dim]`, and what the cache is to keep.

        A window that is not complete has a key, too, which nobody may see.

        Args:
            x: The tokens' vectors, `[batch, length, embed]`.
            place: Where they stand.
            cache: The layer's cache, or None.
        """
        prefix, new = self.block.prefix, jnp.stack([self.kv_proj(x), self.gate_proj(x)], axis=2)
        if cache is None:
            return self._keys(new, place.first, place, x.shape[1]), {}
        past = cache[f"{prefix}past"]
        known = jnp.concatenate([past.astype(new.dtype), new], axis=1)
        made = self._keys(known, place.first + past.shape[1], place, x.shape[1])
        start = place.seen // self.block.rate
        keys = jax.vmap(lambda keys, made, start: jax.lax.dynamic_update_slice_in_dim(keys, made, start, axis=0))(
            cache[f"{prefix}keys"], made.astype(cache[f"{prefix}keys"].dtype), start
        )
        last = (place.first + place.real)[:, None] + jnp.arange(past.shape[1])
        kept = jnp.take_along_axis(known, last[:, :, None, None], axis=1).astype(past.dtype)
        return keys.astype(x.dtype), {f"{prefix}keys": keys, f"{prefix}past": kept}

    def _keys(self, known: jax.Array, first: jax.Array, place: Place, length: int) -> jax.Array:
        """The keys of the windows that so many further tokens may complete, `[batch, windows, dim]`.

        Args:
            known: Vectors and gates of tokens that are there, `[batch, tokens, 2, window_dim]`.
            first: Where the call's first one stands in it, int32 `[batch]`.
            place: Where it stands in its sequence.
            length: How many tokens the call has.
        """
        rate, span = self.block.rate, self.block.span
        windows = (place.seen // rate)[:, None] + jnp.arange(-(-length // rate))
        numbers = ((windows + 1) * rate)[..., None] - span + jnp.arange(span)
        there = (first - place.seen)[:, None, None] + numbers
        batch, count, _ = there.shape
        flat = jnp.take_along_axis(known, there.reshape(batch, -1, 1, 1), axis=1, mode="clip").astype(jnp.float32)
        kv, gate = jnp.moveaxis(flat.reshape(batch, count, span, *known.shape[2:]), 3, 0)
        bias = self.position_bias[...].astype(jnp.float32)
        gate = jnp.where(numbers[..., None] < 0, -jnp.inf, gate + jnp.tile(bias, (span // rate, 1)))
        if self.block.overlapping:
            kv, gate = self._of_two_windows(kv), self._of_two_windows(gate)
        keys = self.kv_norm(jnp.sum(kv * jax.nn.softmax(gate, axis=2), axis=2)).astype(known.dtype)
        if self.rope is None:
            return keys
        turned = rotation(self.rope, windows * rate + place.position[:, None])
        return turn_in_place(keys[:, :, None], turned)[:, :, 0]

    def _of_two_windows(self, x: jax.Array) -> jax.Array:
        """What the tokens of the window before have for the next one's key, and what its own have for it."""
        dim, rate = self.block.dim, self.block.rate
        return jnp.concatenate([x[:, :, :rate, :dim], x[:, :, rate:, dim:]], axis=2)


class CompressedIndexer(nnx.Module):
    """Selects the compressed keys with the largest scores; a score is that of `lazyload.models.indexer.Indexer`."""

    rope: Rope | None
    compressor: Compressor
    q_b_proj: Projection
    weights_proj: Projection

    def __init__(self, block: architecture.CompressedIndexer, rope: Rope | None, norm: Norm, parameters: Parameters):
        self.block = block
        self.rope = rope
        self.compressor = Compressor(block.compressor, rope, norm, parameters["compressor"])
        self.q_b_proj = Projection(parameters["q_b_proj"])
        self.weights_proj = Projection(parameters["weights_proj"])

    def __call__(
        self, x: jax.Array, latent: jax.Array, mask: jax.Array, place: Place, context: Context, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache]:
        """The keys that each token attends to, bool `[batch, length, keys]`, and what the cache is to keep.

        Args:
            x: The tokens' vectors, `[batch, length, embed]`.
            latent: Their compressed queries, `[batch, length, q_rank]`.
            mask: Which keys each token sees, bool `[batch, length, keys]`.
            place: Where the tokens stand.
            context: What the mixers of the call share.
            cache: The layer's cache, or None.
        """
        keys, kept = self.compressor(x, place, cache)
        if keys.shape[1] <= self.block.num_selected:
            return mask, kept
        query, turned = self.q_b_proj(latent), context.rotation(self.rope)
        query = query if turned is None else turn_in_place(query, turned)
        products = jnp.einsum("bthd,bsd->bths", query, keys, preferred_element_type=jnp.float32)
        # The positive factors head_dim ** -0.5 and num_heads ** -0.5 would change no order.
        scores = jnp.einsum("bths,bth->bts", jax.nn.relu(products), self.weights_proj(x.astype(jnp.float32)))
        return mask & largest(jnp.where(mask, scores, -jnp.inf), self.block.num_selected), kept
