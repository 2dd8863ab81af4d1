"""DeepSeek V4's attention: to tokens nearby one by one, and to compressed keys of what lies further back."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lazyload import architecture
from lazyload.errors import InputError
from lazyload.models.attention_kernels import dense
from lazyload.models.compressor import CompressedIndexer, Compressor, Place, place_of
from lazyload.models.context import Context
from lazyload.models.kv_cache import LayerCache, append
from lazyload.models.norm import RMSNorm, normalized
from lazyload.models.parameters import Parameters, computed
from lazyload.models.projection import Projection
from lazyload.models.rope import turn_in_place


class GroupedProjection(nnx.Module):
    """One linear map for each group of heads, `[batch, length, group, ...]` to `[batch, length, group, rank]`."""

    kernel: nnx.Param[jax.Array]
    compute_dtype: DTypeLike | None

    def __init__(self, parameters: Parameters):
        normal = nnx.initializers.lecun_normal(in_axis=(1, 2), out_axis=3, batch_axis=0)
        self.kernel = parameters.declare("kernel", normal)
        self.compute_dtype = parameters.compute_dtype("kernel")

    def __call__(self, x: jax.Array) -> jax.Array:
        """As in `Projection`, the dtype of the kernel may be another one."""
        return jnp.einsum("btgmd,gmdr->btgr", x, computed(self.kernel, self.compute_dtype)).astype(x.dtype)


class CompressedAttention(nnx.Module):
    """Attention to one head of keys, which are the values, too, with sinks and a projection by groups of heads."""

    q_a_proj: Projection
    q_a_norm: RMSNorm
    q_b_proj: Projection
    kv_proj: Projection
    kv_norm: RMSNorm
    o_a_proj: GroupedProjection
    o_b_proj: Projection
    sinks: nnx.Param[jax.Array]
    compressor: Compressor
    indexer: CompressedIndexer

    def __init__(self, block: architecture.CompressedAttention, parameters: Parameters):
        self.block = block
        self.q_a_proj = Projection(parameters["q_a_proj"])
        self.q_a_norm = RMSNorm(parameters["q_a_norm"], block.norm)
        self.q_b_proj = Projection(parameters["q_b_proj"])
        self.kv_proj = Projection(parameters["kv_proj"])
        self.kv_norm = RMSNorm(parameters["kv_norm"], block.norm)
        self.o_a_proj = GroupedProjection(parameters["o_a_proj"])
        self.o_b_proj = Projection(parameters["o_b_proj"], inputs=2)
        self.sinks = parameters.declare("sinks", nnx.initializers.zeros_init())
        if block.compressor is not None:
            self.compressor = Compressor(block.compressor, block.rope, block.norm, parameters["compressor"])
        if block.indexer is not None:
            self.indexer = CompressedIndexer(block.indexer, block.rope, block.norm, parameters["indexer"])

    def __call__(self, x: jax.Array, context: Context, cache: LayerCache | None) -> tuple[jax.Array, LayerCache | None]:
        """Attends from `x`, `[batch, length, embed]`; arguments and results are those of `Attention`.

        Raises:
            InputError: Several documents are packed into a row: windows of tokens would hold tokens of two.
        """
        if context.segment_ids is not None:
            raise InputError(
                "segment_ids: compressed attention (DeepSeek V4) does not take rows of several documents; give each "
                "document a row of its own"
            )
        latent = self.q_a_norm(self.q_a_proj(x))
        query = self.q_b_proj(latent)
        query = self._rotated(normalized(query, self.block.norm.eps).astype(query.dtype), context)
        key = self._rotated(self.kv_norm(self.kv_proj(x))[:, :, None], context)
        kept = None if cache is None else append(cache, k=key)
        keys = key if kept is None else kept["k"].astype(x.dtype)
        mask = context.mask(keys.shape[1], self.block.window)
        if self.block.compressor is not None:
            place = place_of(context, None if cache is None else cache["seen"])
            further, seen, compressed = self._compressed(x, latent, place, context, cache)
            keys = jnp.concatenate([keys, further[:, :, None]], axis=1)
            mask = jnp.concatenate([jnp.broadcast_to(mask, (len(x), *mask.shape[1:])), seen], axis=2)
            kept = None if kept is None else {**kept, "seen": place.after, **compressed}
        mixed = dense(query, keys, keys, mask, scale=self.block.scale, sinks=self.sinks[...])
        mixed = self._rotated(mixed, context, back=True)
        groups = mixed.reshape(*mixed.shape[:2], self.block.num_groups, -1, self.block.head_dim)
        return self.o_b_proj(self.o_a_proj(groups)), kept

    def _compressed(
        self, x: jax.Array, latent: jax.Array, place: Place, context: Context, cache: LayerCache | None
    ) -> tuple[jax.Array, jax.Array, LayerCache]:
        """The compressed keys, which of them each token attends to, and what the cache is to keep of them."""
        keys, kept = self.compressor(x, place, cache)
        mask = place.complete(x.shape[1], keys.shape[1], self.compressor.block.rate)
        if self.block.indexer is None:
            return keys, mask, kept
        mask, of_indexer = self.indexer(x, latent, mask, place, context, cache)
        return keys, mask, kept | of_indexer

    def _rotated(self, x: jax.Array, context: Context, *, back: bool = False) -> jax.Array:
        rotation = context.rotation(self.block.rope)
        return x if rotation is None else turn_in_place(x, rotation, back=back)
