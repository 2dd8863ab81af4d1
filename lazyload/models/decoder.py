"""The decoder: a stack of attention and MLP blocks between an embedding and an output projection."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lazyload.architecture.decoder import DecoderConfig, Layer
from lazyload.models import kv_cache
from lazyload.models.attention import Attention, visible
from lazyload.models.kv_cache import Cache, LayerCache
from lazyload.models.latent_attention import MultiHeadLatentAttention
from lazyload.models.meshes import explicit_spec, has_explicit_axes, mesh_of, run_with_automatic_axes
from lazyload.models.mlp import MLP
from lazyload.models.moe import MixtureOfExperts
from lazyload.models.norm import RMSNorm
from lazyload.models.projection import Embedding, Projection
from lazyload.models.rope import Rotation, rotation


class Block(nnx.Module):
    """Attention, then a dense MLP (`mlp`) or a mixture of experts (`moe`), each added to the residual stream."""

    def __init__(self, config: DecoderConfig, layer: Layer, *, dtype: DTypeLike, rngs: nnx.Rngs | None):
        self.config = config
        self.layer = layer
        sizes = config.axes
        names = ("attn_norm", "mlp_norm") * config.pre_norms + ("post_attn_norm", "post_mlp_norm") * config.post_norms
        for name in names:
            norm = RMSNorm(("embed",), sizes, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype, rngs=rngs)
            setattr(self, name, norm)
        if config.latent:
            self.attn = MultiHeadLatentAttention(config, config.latent, dtype=dtype, rngs=rngs)
        else:
            self.attn = Attention(config, dtype=dtype, rngs=rngs)
        if not layer.sparse:
            self.mlp = MLP("mlp", sizes, activation=config.activation, bias=config.mlp_bias, dtype=dtype, rngs=rngs)
        elif config.experts:
            self.moe = MixtureOfExperts(config.experts, sizes, activation=config.activation, dtype=dtype, rngs=rngs)
        else:
            raise ValueError("a layer is sparse, but the configuration has no experts")

    def __call__(
        self, x: jax.Array, rotation: Rotation | None, seen: jax.Array, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """The residual stream after the block; arguments are those of `Attention`."""
        pre, post, scale = self.config.pre_norms, self.config.post_norms, self.config.residual_scale
        branch, cache = self.attn(self.attn_norm(x) if pre else x, rotation, seen, cache)
        x = x + (self.post_attn_norm(branch) if post else branch) * scale
        feed_forward = self.moe if self.layer.sparse else self.mlp
        branch = feed_forward(self.mlp_norm(x) if pre else x)
        return x + (self.post_mlp_norm(branch) if post else branch) * scale, cache


class Decoder(nnx.Module):
    """A decoder-only transformer, whatever its family.

    Parameters and activations have one dtype; norms, rotary embedding, softmax and routing are computed in float32.
    The model runs without a mesh and on any mesh, with automatic or explicit axes, whether or not one is set. Made with
    `rngs=None`, its parameters have shapes and no values.

    Attributes:
        config: What it is.
        embed: The embedding.
        layers: The blocks.
        final_norm: The norm before the output projection.
        lm_head: The output projection; absent where the embedding is used for it, too.
    """

    def __init__(self, config: DecoderConfig, *, dtype: DTypeLike = jnp.bfloat16, rngs: nnx.Rngs | None):
        self.config = config
        sizes = config.axes
        self.embed = Embedding(sizes, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Block(config, layer, dtype=dtype, rngs=rngs) for layer in config.layers])
        self.final_norm = RMSNorm(
            ("embed",), sizes, eps=config.norm_eps, offset=config.norm_offset, dtype=dtype, rngs=rngs
        )
        if not config.tied:
            self.lm_head = Projection(("embed",), ("vocab",), sizes, dtype=dtype, rngs=rngs)

    @property
    def num_embed(self) -> int:
        """The rows of the embedding, by the name that Tunix reads."""
        return self.config.vocab_size

    def init_cache(self, batch_size: int, cache_size: int, dtype: DTypeLike) -> Cache:
        """An empty cache (see `kv_cache`) for sequences of up to `cache_size` tokens."""
        return kv_cache.init_cache(self.config, batch_size, cache_size, dtype)

    def get_model_input(self) -> dict[str, Any]:
        """Arguments for a trial call, by the name that qwix reads."""
        tokens = jnp.ones((2, 1), jnp.int32)
        return {"tokens": tokens, "positions": tokens, "cache": None, "attention_mask": jnp.ones((2, 1, 1), bool)}

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        attention_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Predicts the next token after each of the tokens.

        Args:
            tokens: int32 `[batch, length]`.
            positions: int32 `[batch, length]`, for the rotary embedding; None counts up from the cache's end.
            cache: What earlier calls left, or `init_cache(...)`; None for a whole sequence at once.
            attention_mask: bool `[batch, length, keys]`, True where a token may attend, keys being the cache's slots
                or, without a cache, the tokens. None is causal, over the slots filled so far. Sliding windows narrow
                either, counted in slots.

        Returns:
            Logits, float32 `[batch, length, vocab]` (the projection itself is computed in the activations' dtype),
            and the cache with these tokens, None where none was given.
        """
        with mesh_of(self.embed.embedding[...]):
            if not has_explicit_axes():
                return self._forward(tokens, positions, cache, attention_mask)
            return run_with_automatic_axes(
                Decoder._forward,
                self,
                tokens,
                positions,
                cache,
                attention_mask,
                out_specs=(self._logits_spec(tokens), jax.tree.map(explicit_spec, cache)),
            )

    def _forward(
        self, tokens: jax.Array, positions: jax.Array | None, cache: Cache | None, attention_mask: jax.Array | None
    ) -> tuple[jax.Array, Cache | None]:
        length = tokens.shape[1]
        start: jax.Array | int = 0 if cache is None else cache["layer_0"]["end_index"][0]
        keys = length if cache is None else cache["layer_0"]["k"].shape[1]
        if positions is None:
            positions = jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), tokens.shape)
        rotations = {layer.rope: rotation(layer.rope, positions) for layer in self.config.layers if layer.rope}
        seen = {
            window: visible(start, length, keys, window, attention_mask)
            for window in {layer.window for layer in self.config.layers}
        }
        x = self.embed(tokens)
        x = x * jnp.asarray(self.config.embed_scale, x.dtype)
        filled: Cache = {}
        for number, (layer, block) in enumerate(zip(self.config.layers, self.layers, strict=True)):
            name = f"layer_{number}"
            rotated = rotations[layer.rope] if layer.rope else None
            x, layer_cache = block(x, rotated, seen[layer.window], cache[name] if cache is not None else None)
            if layer_cache is not None:
                filled[name] = layer_cache
        return self._logits(self.final_norm(x)), None if cache is None else filled

    def _logits(self, x: jax.Array) -> jax.Array:
        logits = self.embed.attend(x) if self.config.tied else self.lm_head(x)
        logits = logits.astype(jnp.float32) * self.config.logits_scale
        cap = self.config.final_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _logits_spec(self, tokens: jax.Array) -> PartitionSpec:
        """The tokens' own sharding, and the embedding's along the vocabulary as far as that is still free."""
        batch, length = explicit_spec(tokens)
        vocab = explicit_spec(self.embed.embedding[...])[0]
        taken = set(_names(batch)) | set(_names(length))
        return PartitionSpec(batch, length, None if taken & set(_names(vocab)) else vocab)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else entry or ()
