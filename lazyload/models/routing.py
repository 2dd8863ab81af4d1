"""Which experts a token is sent to, and with what weights."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lazyload.architecture import Experts

# Keeps the division finite when every selected score underflows (DeepSeek V3's own constant).
_TINY = 1e-20

_SCORES: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "softmax": jax.nn.softmax,
    "sigmoid": jax.nn.sigmoid,
    "sqrtsoftplus": lambda logits: jnp.sqrt(jax.nn.softplus(logits)),
}


def route(
    logits: jax.Array, experts: Experts, selection_bias: jax.Array | None, chosen: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Selects experts, and weights them.

    Args:
        logits: The router's, float32 `[token, expert]`.
        experts: How to select.
        selection_bias: float32 `[expert]`: moves the selection, not the weights.
        chosen: The experts where they are known already, int32 `[token, selected]`.

    Returns:
        The weights, float32 `[token, selected]`, and the experts, int32 `[token, selected]`.
    """
    if experts.scores == "topk_softmax":
        best, chosen = jax.lax.top_k(logits, experts.num_selected)
        return jax.nn.softmax(best, axis=-1) * experts.scale, chosen
    if experts.scores == "sparsemixer":
        return _sparsemixer(logits, experts)
    scores = _SCORES[experts.scores](logits)
    if chosen is None:
        preference = scores if selection_bias is None else scores + selection_bias
        if experts.num_groups > 1:
            preference = _within_best_groups(preference, experts)
        _, chosen = jax.lax.top_k(preference, experts.num_selected)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if experts.normalize:
        total = jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), experts.least_sum)
        weights = weights / (total + _TINY)
    return weights * experts.scale, chosen


def _sparsemixer(logits: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """The best expert, and the best of the others; each has its share among those within the margin."""
    weights, chosen, left = [], [], logits
    for _ in range(experts.num_selected):
        best = jnp.argmax(left, axis=-1, keepdims=True)
        score = jnp.take_along_axis(left, best, axis=-1)
        behind = (score - logits) / jnp.maximum(jnp.abs(logits), score)
        shares = jax.nn.softmax(jnp.where(behind > 2 * experts.margin, -jnp.inf, left), axis=-1)
        weights.append(jnp.take_along_axis(shares, best, axis=-1))
        chosen.append(best)
        left = jnp.where(jnp.arange(logits.shape[-1]) == best, -jnp.inf, left)
    return jnp.concatenate(weights, axis=-1) * experts.scale, jnp.concatenate(chosen, axis=-1)


def _within_best_groups(preference: jax.Array, experts: Experts) -> jax.Array:
    """The preference with minus infinity for the experts outside a token's best groups."""
    groups = preference.reshape(len(preference), experts.num_groups, -1)
    members = 2 if experts.group_score == "top2" else 1
    group_scores = jnp.sum(jax.lax.top_k(groups, members)[0], axis=-1)
    _, best = jax.lax.top_k(group_scores, experts.num_selected_groups)
    allowed = jnp.any(best[:, :, None] == jnp.arange(experts.num_groups), axis=1)
    return jnp.where(allowed[:, :, None], groups, -jnp.inf).reshape(preference.shape)
