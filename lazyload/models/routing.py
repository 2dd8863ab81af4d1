"""Which experts a token is sent to, and with what weights."""

import jax
import jax.numpy as jnp

from lazyload.architecture import Experts

# Keeps the division finite when every selected score underflows (DeepSeek V3's own constant).
_TINY = 1e-20


def route(logits: jax.Array, experts: Experts, selection_bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Selects experts.

    Args:
        logits: The router's, float32 `[token, expert]`.
        experts: How to select.
        selection_bias: float32 `[expert]`: moves the selection, not the weights.

    Returns:
        The weights, float32 `[token, selected]`, and the experts, int32 `[token, selected]`.
    """
    if experts.scores == "topk_softmax":
        best, chosen = jax.lax.top_k(logits, experts.num_selected)
        return jax.nn.softmax(best, axis=-1) * experts.scale, chosen
    scores = jax.nn.softmax(logits, axis=-1) if experts.scores == "softmax" else jax.nn.sigmoid(logits)
    preference = scores if selection_bias is None else scores + selection_bias
    if experts.num_groups > 1:
        preference = _within_best_groups(preference, experts)
    _, chosen = jax.lax.top_k(preference, experts.num_selected)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if experts.normalize:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + _TINY)
    return weights * experts.scale, chosen


def _within_best_groups(preference: jax.Array, experts: Experts) -> jax.Array:
    """The preference with minus infinity for the experts outside a token's best groups."""
    groups = preference.reshape(len(preference), experts.num_groups, -1)
    members = 2 if experts.group_score == "top2" else 1
    group_scores = jnp.sum(jax.lax.top_k(groups, members)[0], axis=-1)
    _, best = jax.lax.top_k(group_scores, experts.num_selected_groups)
    allowed = jnp.any(best[:, :, None] == jnp.arange(experts.num_groups), axis=1)
    return jnp.where(allowed[:, :, None], groups, -jnp.inf).reshape(preference.shape)
