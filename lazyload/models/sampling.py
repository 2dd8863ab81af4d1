"""The next token, chosen from the logits of a batch."""

import jax
import jax.numpy as jnp


def choose(
    logits: jax.Array,
    key: jax.Array | None,
    temperature: jax.Array | float,
    top_k: int | None,
    top_p: jax.Array | float | None,
) -> jax.Array:
    """The next token of each sequence, int32 `[batch]`.

    As in transformers, logits are divided by the temperature, then all but the `top_k` largest are dropped, and of the
    rest all but the most likely ones that together have the probability `top_p`.

    Args:
        logits: float32 `[batch, vocab]`.
        key: What is drawn with; None for the likeliest token.
        temperature: Above 0.
        top_k: How many tokens may be drawn; None for all.
        top_p: Their probability in all; None for 1.
    """
    if key is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        likely = jax.nn.softmax(ordered, axis=-1)
        # What comes before a token that is kept does not have that probability yet; the likeliest one is always kept.
        is_kept = jnp.cumsum(likely, axis=-1) - likely < top_p
        least = jnp.min(jnp.where(is_kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
