"""Sequences cut into chunks, for mixers whose tokens see each other within a chunk by matrix products."""

import jax
import jax.numpy as jnp
import numpy as np


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


def sums_between(x: jax.Array) -> jax.Array:
    """Of `[..., token]`, the sums after token s up to token t, `[..., t, s]`; zero where t is not after s.

    Each is a sum of its own: as a difference of sums from the start it would have their error, which is large where a
    head forgets quickly.
    """
    after = np.tri(x.shape[-1], k=-1, dtype=bool)
    return jnp.cumsum(jnp.where(after, x[..., :, None], 0), axis=-2)
