"""Sequences cut into chunks, for mixers whose tokens see each other within a chunk by matrix products."""

import jax
import jax.numpy as jnp
import numpy as np

from lazyload.models.context import segment_starts

# The exponential of it is zero in float32, and so are those of its sums, which no infinity would be safe for.
_FORGOTTEN = -1e4


def split(x: jax.Array, size: int) -> jax.Array:
    """`[batch, length, ...]` as `[chunk, batch, size, ...]`; the last chunk is filled up with zeros."""
    batch, length, *rest = x.shape
    count = -(-length // size)
    padded = jnp.pad(x, [(0, 0), (0, count * size - length)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(padded.reshape(batch, count, size, *rest), 1, 0)


def joined(chunks: jax.Array) -> jax.Array:
    """`[chunk, batch, size, ...]` as `[batch, chunk * size, ...]`."""
    count, batch, size, *rest = chunks.shape
    return jnp.moveaxis(chunks, 0, 1).reshape(batch, count * size, *rest)


def forgetting(log_decay: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """The logarithms of a state's decay, so that the first token of each segment finds nothing of those before it.

    Args:
        log_decay: `[batch, length, ...]`, float32.
        segment_ids: int32 `[batch, length]`; None for one segment a row, which goes on with the state before it.
    """
    if segment_ids is None:
        return log_decay
    starts = segment_starts(segment_ids)
    return jnp.where(starts.reshape(*starts.shape, *(1,) * (log_decay.ndim - 2)), _FORGOTTEN, log_decay)


def sums_between(x: jax.Array) -> jax.Array:
    """Of `[..., token]`, the sums after token s up to token t, `[..., t, s]`; zero where t is not after s.

    Each is a sum of its own: as a difference of sums from the start it would have their error, which is large where a
    head forgets quickly.
    """
    after = np.tri(x.shape[-1], k=-1, dtype=bool)
    return jnp.cumsum(jnp.where(after, x[..., :, None], 0), axis=-2)
