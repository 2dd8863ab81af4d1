"""A layer of the decoder: its blocks, and what adds them to the residual stream."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from lazyload import architecture
from lazyload.architecture import Layer
from lazyload.models import (
    attention,
    compressed_attention,
    gated_delta_net,
    kv_cache,
    latent_attention,
    mamba2,
    moe,
    per_layer_input,
)
from lazyload.models.activations import value_of
from lazyload.models.altup import AltUp, AltUpStreams
from lazyload.models.context import Context
from lazyload.models.hyper_connection import HyperConnection, HyperStreams
from lazyload.models.kv_cache import LayerCache
from lazyload.models.laurel import Laurel
from lazyload.models.mlp import MLP
from lazyload.models.norm import LayerNorm, RMSNorm, norm_of
from lazyload.models.parameters import Parameters

BLOCKS: Mapping[type[Any], Callable[..., nnx.Module]] = {
    architecture.Attention: attention.Attention,
    architecture.LatentAttention: latent_attention.LatentAttention,
    architecture.CompressedAttention: compressed_attention.CompressedAttention,
    architecture.GatedDeltaNet: gated_delta_net.GatedDeltaNet,
    architecture.Mamba2: mamba2.Mamba2,
    architecture.MLP: MLP,
    architecture.Experts: moe.MixtureOfExperts,
    architecture.PerLayerInput: per_layer_input.PerLayerInput,
    architecture.PerLayerEmbedding: per_layer_input.PerLayerEmbedding,
    architecture.Laurel: Laurel,
    architecture.AltUp: AltUp,
    architecture.AltUpStreams: AltUpStreams,
    architecture.HyperStreams: HyperStreams,
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
    by_token: bool
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
    attn_hc: HyperConnection | None
    mlp_hc: HyperConnection | None
    laurel: Laurel | None
    altup: AltUp | None

    def __init__(self, layer: Layer, parameters: Parameters):
        self.mixer = None if layer.mixer is None else layer.mixer.name
        self.feed_forward = None if layer.feed_forward is None else layer.feed_forward.name
        self.experts = None if layer.experts is None else layer.experts.name
        self.per_layer = None if layer.per_layer_input is None else layer.per_layer_input.name
        self.by_token = isinstance(layer.feed_forward, architecture.Experts) and layer.feed_forward.by_token
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
        hc = layer.hyper_connection
        self.attn_hc = None if hc is None else HyperConnection(hc, parameters["attn_hc"])
        self.mlp_hc = None if hc is None else HyperConnection(hc, parameters["mlp_hc"])
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
        return x if self.layer_scalar is None else x * value_of(self.layer_scalar).astype(x.dtype), kept

    def _run_blocks(
        self, x: jax.Array, context: Context, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """The residual stream after the mixer and the feed-forward, and what the mixer returns."""
        read, added = self._connected(self.attn_hc, x)
        normed = _normed(self.attn_norm, read)
        if self.mixer is None:
            kept = None if cache is None else kv_cache.passed(cache, x.shape[1])
        else:
            branch, kept = getattr(self, self.mixer)(normed, context, cache)
            x = added(_normed(self.post_attn_norm, branch))
        if self.laurel is not None:
            x = (x + self.laurel(normed)) * 2**-0.5
        if self.feed_forward is not None:
            read, added = self._connected(self.mlp_hc, x)
            given = {"tokens": context.tokens} if self.by_token else {}
            branch = getattr(self, self.feed_forward)(
                normed if self.parallel else _normed(self.mlp_norm, read), **given
            )
            if self.experts is not None:
                experts = getattr(self, self.experts)(_normed(self.moe_norm, read), routed_by=read)
                branch = _normed(self.post_dense_norm, branch) + _normed(self.post_moe_norm, experts)
            x = added(_normed(self.post_mlp_norm, branch))
        return x, kept

    def _connected(
        self, connection: HyperConnection | None, x: jax.Array
    ) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """What a block reads of the residual stream, and what adds its output to it."""
        if connection is None:
            return x, lambda branch: x + branch * self.residual_scale
        return connection(x)


def _normed(norm: RMSNorm | LayerNorm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)
