"""The indexer of sparse attention (DeepSeek V3.2, https://arxiv.org/abs/2512.02556, section 2.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.models.context import Context
from lazyload.models.norm import LayerNorm
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection
from lazyload.models.rope import rotate

# Whatever `rms_norm_eps` is.
_NORM = architecture.LayerNorm(eps=1e-6, bias=True)


class Indexer(nnx.Module):
    """Selects the keys that each token attends to, those with the largest scores.

    A score is the sum of what is positive of each head's product of query and key, weighted by what the token says of
    the head. No gradient comes of a selection.
    """

    wq_b: Projection
    wk: Projection
    k_norm: LayerNorm
    weights_proj: Projection

    def __init__(self, block: architecture.Indexer, parameters: Parameters):
        self.block = block
        self.wq_b = Projection(parameters["wq_b"])
        self.wk = Projection(parameters["wk"])
        self.k_norm = LayerNorm(parameters["k_norm"], _NORM)
        self.weights_proj = Projection(parameters["weights_proj"])

    def keys(self, x: jax.Array, context: Context) -> jax.Array:
        """The keys of the tokens of `x`, `[batch, length, embed]`, rotated: `[batch, length, 1, index_dim]`."""
        return self._rotated(self.k_norm(self.wk(x))[:, :, None], context)

    def __call__(
        self, x: jax.Array, latent: jax.Array, keys: jax.Array, mask: jax.Array, context: Context
    ) -> jax.Array:
        """The keys that each token attends to, bool `[batch or 1, length, keys]`.

        Args:
            x: The tokens' vectors, `[batch, length, embed]`.
            latent: Their compressed queries, `[batch, length, q_rank]`.
            keys: The keys to choose from, `[batch, keys, 1, index_dim]`.
            mask: Which of them each token may attend to, bool `[batch or 1, length, keys]`.
            context: What the mixers of the call share.
        """
        if keys.shape[1] <= self.block.num_selected:
            return mask
        query = self._rotated(self.wq_b(latent), context)
        products = jnp.einsum("bthd,bsd->bths", query, keys[:, :, 0], preferred_element_type=jnp.float32)
        # The positive factors head_dim ** -0.5 and num_heads ** -0.5 would change no order.
        scores = jnp.einsum("bths,bth->bts", jax.nn.relu(products), self.weights_proj(x.astype(jnp.float32)))
        return mask & largest(jnp.where(mask, scores, -jnp.inf), self.block.num_selected)

    def _rotated(self, x: jax.Array, context: Context) -> jax.Array:
        rotation = context.rotation(self.block.rope)
        return x if rotation is None else rotate(x, rotation)


def largest(scores: jax.Array, count: int) -> jax.Array:
    """Which of the last dimension's numbers are its `count` largest, bool; of equal ones the first.

    They are found by the smallest of them, and not put in their places one by one, which is slow where there are many.
    """
    last = jax.lax.top_k(scores, count)[0][..., -1:]
    above, equal = scores > last, scores == last
    room = count - jnp.sum(above, axis=-1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= room))
