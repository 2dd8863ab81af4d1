"""Multi-head latent attention (DeepSeek V2, https://arxiv.org/abs/2405.04434, section 2.1)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.models.attention_kernels import attend, dense, split_of
from lazyload.models.context import Context
from lazyload.models.indexer import Indexer
from lazyload.models.kv_cache import LayerCache, append
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection
from lazyload.models.rope import rotate

# DeepSeek's models fix the epsilon of the two inner norms, whatever `rms_norm_eps` is.
_INNER_NORM = architecture.Norm(eps=1e-6)


class LatentAttention(nnx.Module):
    """Keys and values of all heads come from one latent vector a token, and from one rotated key shared by all heads.

    Without a cache the latents are expanded to keys and values. With one, the latents themselves are what is kept and
    attended to: the key part of `kv_b_proj` is applied to the queries instead, the value part to what was attended.
    """

    q_proj: Projection
    q_a_proj: Projection
    q_a_layernorm: RMSNorm
    q_b_proj: Projection
    kv_a_proj_with_mqa: Projection
    kv_a_layernorm: RMSNorm
    kv_b_proj: Projection
    o_proj: Projection
    indexer: Indexer

    def __init__(self, block: architecture.LatentAttention, parameters: Parameters):
        self.block = block
        if block.q_rank is None:
            self.q_proj = Projection(parameters["q_proj"])
        else:
            self.q_a_proj = Projection(parameters["q_a_proj"])
            self.q_a_layernorm = RMSNorm(parameters["q_a_layernorm"], _INNER_NORM)
            self.q_b_proj = Projection(parameters["q_b_proj"])
        self.kv_a_proj_with_mqa = Projection(parameters["kv_a_proj_with_mqa"])
        self.kv_a_layernorm = RMSNorm(parameters["kv_a_layernorm"], _INNER_NORM)
        self.kv_b_proj = Projection(parameters["kv_b_proj"])
        self.o_proj = Projection(parameters["o_proj"], inputs=2)
        if block.indexer is not None:
            self.indexer = Indexer(block.indexer, parameters["indexer"])

    def __call__(self, x: jax.Array, context: Context, cache: LayerCache | None) -> tuple[jax.Array, LayerCache | None]:
        """Attends from `x`, `[batch, length, embed]`; arguments and results are those of `Attention`."""
        latent, query = self._query(x)
        q_nope, q_rope = jnp.split(query, [self.block.nope_dim], axis=-1)
        compressed, k_rope = jnp.split(self.kv_a_proj_with_mqa(x), [self.block.kv_rank], axis=-1)
        compressed, k_rope = self.kv_a_layernorm(compressed)[:, :, None], k_rope[:, :, None]
        rotation = context.rotation(self.block.rope)
        if rotation is not None:
            q_rope, k_rope = rotate(q_rope, rotation), rotate(k_rope, rotation)
        kept = {"k": compressed, "v": k_rope}
        if self.block.indexer is not None:
            kept["index_k"] = self.indexer.keys(x, context)
        if cache is not None:
            cache = append(cache, **kept)
            kept = {name: cache[name].astype(x.dtype) for name in kept}
        if self.block.indexer is not None:
            mask = context.mask(kept["k"].shape[1])
            context.selected = self.indexer(x, latent, kept["index_k"], mask, context)
        attend_to = self._attend_expanded if cache is None else self._attend_compressed
        return self.o_proj(attend_to(q_nope, q_rope, kept["k"], kept["v"], context)), cache

    def _query(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The compressed query, or `x` where queries are projected directly, and the query of each head."""
        if self.block.q_rank is None:
            return x, self.q_proj(x)
        latent = self.q_a_layernorm(self.q_a_proj(x))
        return latent, self.q_b_proj(latent)

    def _selected(self, context: Context) -> jax.Array | None:
        """Which keys each token attends to; None where no indexer has selected them."""
        return context.selected if self.block.indexer is not None or self.block.shares_selection else None

    def _attend_expanded(
        self, q_nope: jax.Array, q_rope: jax.Array, compressed: jax.Array, k_rope: jax.Array, context: Context
    ) -> jax.Array:
        k_nope, value = jnp.split(self.kv_b_proj(compressed[:, :, 0]), [self.block.nope_dim], axis=-1)
        shared = jnp.broadcast_to(k_rope, (*k_nope.shape[:-1], self.block.rope_dim))
        query, key = jnp.concatenate([q_nope, q_rope], axis=-1), jnp.concatenate([k_nope, shared], axis=-1)
        mask = self._selected(context)
        if mask is not None:
            return dense(query, key, value, mask, scale=self.block.scale)
        heads = self.q_proj if self.block.q_rank is None else self.q_b_proj
        return attend(query, key, value, context, self.block, split_of(heads))

    def _attend_compressed(
        self, q_nope: jax.Array, q_rope: jax.Array, compressed: jax.Array, k_rope: jax.Array, context: Context
    ) -> jax.Array:
        to_key, to_value = jnp.split(self._expansion(compressed), [self.block.nope_dim], axis=-1)
        mapped = jnp.einsum("btnh,rnh->btnr", q_nope, to_key).astype(q_nope.dtype)
        query = jnp.concatenate([mapped, q_rope], axis=-1)
        key = jnp.concatenate([compressed, k_rope], axis=-1)
        mask = self._selected(context)
        mask = context.mask(key.shape[1]) if mask is None else mask
        mixed = dense(query, key, compressed, mask, scale=self.block.scale)
        return jnp.einsum("btnr,rnv->btnv", mixed, to_value).astype(mixed.dtype)

    def _expansion(self, compressed: jax.Array) -> jax.Array:
        """What keys and values are expanded by, `[rank, head, nope_dim + v_dim]`, with what LoRA adds to it."""
        if not hasattr(self.kv_b_proj, "kernel_lora_a"):
            return self.kv_b_proj.weights()
        # Only a call of the projection has it.
        return self.kv_b_proj(jnp.eye(compressed.shape[-1], dtype=compressed.dtype)[None])[0]
