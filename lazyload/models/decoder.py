"""The decoder: a stack of layers between an embedding and an output projection."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lazyload import architecture
from lazyload.architecture import DecoderConfig, Layer
from lazyload.models import attention, card, gated_delta_net, kv_cache, latent_attention, mamba2, moe, per_layer_input
from lazyload.models.altup import AltUp, AltUpStreams
from lazyload.models.context import Context, checked_mask
from lazyload.models.kv_cache import KVCache, LayerCache
from lazyload.models.laurel import Laurel
from lazyload.models.meshes import explicit_spec, has_explicit_axes, mesh_of, run_with_automatic_axes
from lazyload.models.mlp import MLP
from lazyload.models.norm import LayerNorm, RMSNorm, norm_of
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Embedding, Projection

BLOCKS: Mapping[type[Any], Callable[..., nnx.Module]] = {
    architecture.Attention: attention.Attention,
    architecture.LatentAttention: latent_attention.LatentAttention,
    architecture.GatedDeltaNet: gated_delta_net.GatedDeltaNet,
    architecture.Mamba2: mamba2.Mamba2,
    architecture.MLP: MLP,
    architecture.Experts: moe.MixtureOfExperts,
    architecture.PerLayerInput: per_layer_input.PerLayerInput,
    architecture.PerLayerEmbedding: per_layer_input.PerLayerEmbedding,
    architecture.Laurel: Laurel,
    architecture.AltUp: AltUp,
    architecture.AltUpStreams: AltUpStreams,
}
"""The module of every block; it is made from the block and its `Parameters`."""


class DecoderLayer(nnx.Module):
    """A mixer, then a feed-forward, or one of them, each added to the residual stream.

    They are attributes by the names that their blocks have: `attn` and `mlp`, or `moe`. There may be experts beside the
    feed-forward, a branch beside the mixer, and one for the layer's own input.
    """

    mixer: str | None
    feed_forward: str | None
    experts: str | None
    per_layer: str | None
    parallel: bool
    residual_scale: float
    attn_norm: RMSNorm | LayerNorm | None
    post_attn_norm: RMSNorm | LayerNorm | None
    mlp_norm: RMSNorm | LayerNorm | None
    post_mlp_norm: RMSNorm | LayerNorm | None
    moe_norm: RMSNorm | LayerNorm | None
    post_moe_norm: RMSNorm | LayerNorm | None
    post_dense_norm: RMSNorm | LayerNorm | None
    layer_scalar: nnx.Param[jax.Array] | None
    laurel: Laurel | None
    altup: AltUp | None

    def __init__(self, layer: Layer, parameters: Parameters):
        self.mixer = None if layer.mixer is None else layer.mixer.name
        self.feed_forward = None if layer.feed_forward is None else layer.feed_forward.name
        self.experts = None if layer.experts is None else layer.experts.name
        self.per_layer = None if layer.per_layer_input is None else layer.per_layer_input.name
        self.parallel = layer.parallel
        self.residual_scale = layer.residual_scale

        def norm(name: str) -> RMSNorm | LayerNorm | None:
            return norm_of(parameters[name], layer.norm) if name in parameters else None

        self.attn_norm, self.post_attn_norm = norm("attn_norm"), norm("post_attn_norm")
        self.mlp_norm, self.post_mlp_norm = norm("mlp_norm"), norm("post_mlp_norm")
        self.moe_norm, self.post_moe_norm = norm("moe_norm"), norm("post_moe_norm")
        self.post_dense_norm = norm("post_dense_norm")
        ones = nnx.initializers.ones_init()
        self.layer_scalar = parameters.declare("layer_scalar", ones) if layer.scalar else None
        for block in layer.blocks:
            setattr(self, block.name, BLOCKS[type(block)](block, parameters[block.name]))
        if layer.laurel is None:
            self.laurel = None
        if layer.altup is None:
            self.altup = None

    def __call__(
        self, x: jax.Array, context: Context, cache: LayerCache | None, own_input: jax.Array | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """The residual stream after the layer, and what its mixer returns of the tokens seen so far.

        Args:
            x: `[batch, length, embed]`, or several streams, `[batch, length, stream, embed]`.
            context: What the mixers of the call share.
            cache: The cache that the mixer reads, or None.
            own_input: The input that the layer has of its own, `[batch, length, dim]`, or None.
        """
        if self.altup is None:
            x, kept = self._run_blocks(x, context, cache)
            if self.per_layer is not None:
                x = x + getattr(self, self.per_layer)(x, own_input)
        else:
            predicted = self.altup.predict(x)
            activated, kept = self._run_blocks(self.altup.active(predicted), context, cache)
            x = self.altup.correct(predicted, activated)
            if self.per_layer is not None:
                own = getattr(self, self.per_layer)(self.altup.scaled(self.altup.active(x)), own_input)
                x = x.at[:, :, 1:].add(own[:, :, None])
        return x if self.layer_scalar is None else x * self.layer_scalar[...].astype(x.dtype), kept

    def _run_blocks(
        self, x: jax.Array, context: Context, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """One residual stream after the mixer and the feed-forward, and what the mixer returns."""
        normed = _normed(self.attn_norm, x)
        if self.mixer is None:
            kept = None if cache is None else kv_cache.passed(cache, x.shape[1])
        else:
            branch, kept = getattr(self, self.mixer)(normed, context, cache)
            x = x + _normed(self.post_attn_norm, branch) * self.residual_scale
        if self.laurel is not None:
            x = (x + self.laurel(normed)) * 2**-0.5
        if self.feed_forward is not None:
            branch = getattr(self, self.feed_forward)(normed if self.parallel else _normed(self.mlp_norm, x))
            if self.experts is not None:
                experts = getattr(self, self.experts)(_normed(self.moe_norm, x), routed_by=x)
                branch = _normed(self.post_dense_norm, branch) + _normed(self.post_moe_norm, experts)
            x = x + _normed(self.post_mlp_norm, branch) * self.residual_scale
        return x, kept


class Decoder(nnx.Module):
    """A decoder-only transformer, whatever its family.

    Activations have the dtype of the embedding. Products with parameters of another dtype are computed in the wider of
    the two; norms, rotary embedding, softmax and routing in float32, whatever dtype their parameters have.
    The model runs without a mesh and on any mesh, with automatic or explicit axes, whether or not one is set. Made with
    `rngs=None`, its parameters have shapes and no values.

    Attributes:
        config: What it is.
        embed: The embedding.
        layers: The layers.
        per_layer_embedding: What makes the layers' own inputs; absent where they have none.
        streams: What makes several residual streams of one, and one again; absent where there is one.
        final_norm: The norm before the output projection.
        lm_head: The output projection; absent where the embedding is used for it, too.
        logits_bias: The bias of either; absent where there is none.
    """

    embed: Embedding
    per_layer_embedding: nnx.Module
    streams: AltUpStreams
    layers: nnx.List[DecoderLayer]
    final_norm: RMSNorm | LayerNorm
    lm_head: Projection
    logits_bias: nnx.Param[jax.Array]

    def __init__(self, config: DecoderConfig, *, dtype: DTypeLike = jnp.bfloat16, rngs: nnx.Rngs | None):
        self.config = config

        def declared(part: DecoderConfig | Layer) -> Parameters:
            return Parameters(part.parameters, {**config.axes, **part.axes}, dtype=dtype, rngs=rngs)

        parameters = declared(config)
        self.embed = Embedding(parameters["embed"])
        for block in config.blocks:
            setattr(self, block.name, BLOCKS[type(block)](block, parameters[block.name]))
        self.layers = nnx.List([DecoderLayer(layer, declared(layer)) for layer in config.layers])
        self.final_norm = norm_of(parameters["final_norm"], config.norm)
        if not config.tied:
            self.lm_head = Projection(parameters["lm_head"])
        if config.logits_bias:
            self.logits_bias = parameters.declare("logits_bias", nnx.initializers.zeros_init())

    def __repr__(self) -> str:
        return card.as_text(self, self.config)

    def __str__(self) -> str:
        return card.as_text(self, self.config)

    def _repr_html_(self) -> str:
        return card.as_html(self, self.config)

    @property
    def num_embed(self) -> int:
        """The rows of the embedding, by the name that Tunix reads."""
        return self.config.vocab_size

    def init_cache(self, batch_size: int, cache_size: int, dtype: DTypeLike) -> KVCache:
        """An empty cache, as `lazyload/models/kv_cache.py` describes it.

        Args:
            batch_size: The number of sequences.
            cache_size: The tokens that each of them may have.
            dtype: The dtype of keys and values.
        """
        return kv_cache.init_cache(self.config, batch_size, cache_size, dtype)

    def get_model_input(self) -> dict[str, Any]:
        """Arguments for a trial call, by the name that qwix reads."""
        tokens = jnp.ones((2, 1), jnp.int32)
        return {"tokens": tokens, "positions": tokens, "cache": None, "attention_mask": jnp.ones((2, 1, 1), bool)}

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        attention_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Predicts the next token after each of the tokens.

        Args:
            tokens: int32 `[batch, length]`.
            positions: int32 `[batch, length]`, for the rotary embedding; None counts up from the cache's end.
            cache: What earlier calls left, or `init_cache(...)`; None for a whole sequence at once.
            attention_mask: bool, True where a key may be attended to, keys being the cache's slots or, without a
                cache, the tokens. `[batch, keys]`, as tokenizers make it, says which keys are no padding; `[batch,
                length, keys]` or `[batch, 1, length, keys]` says it for each token. None is causal. Sliding windows
                narrow either, counted in slots, and chunks, counted from the first key that a token may attend to.

        Returns:
            Logits, float32 `[batch, length, vocab]` (the projection itself is computed in the activations' dtype, or
            in its own where that is wider), and the cache with these tokens, None where none was given. Inside
            `jax.jit`, where it cannot be known beforehand that tokens do not fit into the cache, they are no numbers
            then (NaN).

        Raises:
            InputError: The tokens do not fit into the cache, or the mask has another shape.
        """
        batch, length = tokens.shape
        size = length if cache is None else kv_cache.slots(self.config, cache)
        if cache is not None and size is not None:
            kv_cache.require_room(cache, size, length)
        attention_mask = checked_mask(attention_mask, batch, length, length if size is None else size)
        with mesh_of(self.embed.embedding[...]):
            if not has_explicit_axes():
                return self._forward(tokens, positions, cache, attention_mask)
            result: tuple[jax.Array, KVCache | None] = run_with_automatic_axes(
                Decoder._forward,
                self,
                tokens,
                positions,
                cache,
                attention_mask,
                out_specs=(self._logits_spec(tokens), jax.tree.map(explicit_spec, cache)),
            )
            return result

    def _forward(
        self, tokens: jax.Array, positions: jax.Array | None, cache: KVCache | None, attention_mask: jax.Array | None
    ) -> tuple[jax.Array, KVCache | None]:
        start: jax.Array | int = 0 if cache is None else cache["layer_0"]["end_index"][0]
        if positions is None:
            positions = jnp.broadcast_to(start + jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        context = Context(positions, start, attention_mask)
        x = self.embed(tokens)
        x = x * jnp.asarray(self.config.embed_scale, x.dtype)
        inputs = None if self.config.per_layer_embedding is None else self.per_layer_embedding(tokens, x)
        if self.config.streams is not None:
            x = self.streams.spread(x)
        kept: KVCache = {} if cache is None else dict(cache)
        for number, layer in enumerate(self.layers):
            source = f"layer_{self.config.kv_layer(number)}"
            own_input = None if inputs is None else inputs[:, :, number]
            x, seen = layer(x, context, kept.get(source), own_input)
            if seen is not None and (cache is not None or number in self.config.shared_kv_layers):
                kept[source] = seen
        if self.config.streams is not None:
            x = self.streams.gathered(x)
        logits = self._logits(self.final_norm(x))
        if cache is None:
            return logits, None
        size = kv_cache.slots(self.config, cache)
        if size is not None:
            logits = jnp.where(start + tokens.shape[1] > size, jnp.nan, logits)
        return logits, kept

    def _logits(self, x: jax.Array) -> jax.Array:
        if self.config.tied:
            logits = self.embed.attend(x)
        else:
            # Not rounded to the activations' dtype where the projection has a wider one.
            logits = self.lm_head(x.astype(jnp.promote_types(x.dtype, self.lm_head.kernel.dtype)))
        logits = logits.astype(jnp.float32)
        if self.config.logits_bias:
            logits = logits + self.logits_bias[...].astype(jnp.float32)
        logits = logits * self.config.logits_scale
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


def _normed(norm: RMSNorm | LayerNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)
