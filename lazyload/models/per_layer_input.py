"""Per-layer inputs: what the decoder makes of the tokens for each layer, and what a layer makes of its part."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.models.mlp import ACTIVATIONS
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Embedding, Projection


class PerLayerEmbedding(nnx.Module):
    """The inputs of all layers, from the tokens and from their embeddings."""

    embed: Embedding
    projection: Projection
    norm: RMSNorm

    def __init__(self, block: architecture.PerLayerEmbedding, parameters: Parameters):
        self.block = block
        self.embed = Embedding(parameters["embed"])
        self.projection = Projection(parameters["projection"])
        self.norm = RMSNorm(parameters["norm"], block.norm)

    def __call__(self, tokens: jax.Array, x: jax.Array) -> jax.Array:
        """The inputs, `[batch, length, layer, dim]`.

        Args:
            tokens: int32 `[batch, length]`.
            x: Their embeddings as the first layer gets them, `[batch, length, embed]`.
        """
        shape = (*tokens.shape, self.block.num_layers, self.block.dim)
        # Tokens that stand for images and sounds have no rows; transformers takes the first one for them.
        rows = jnp.where(tokens < self.block.vocab_size, tokens, 0)
        own = self.embed(rows).reshape(shape) * jnp.asarray(math.sqrt(self.block.dim), x.dtype)
        projected = self.norm((self.projection(x) * x.shape[-1] ** -0.5).reshape(shape))
        return ((projected + own) * 2**-0.5).astype(x.dtype)


class PerLayerInput(nnx.Module):
    """What a layer makes of its input: `norm(projection(activation(gate(x)) * input))`."""

    gate: Projection
    projection: Projection
    norm: RMSNorm

    def __init__(self, block: architecture.PerLayerInput, parameters: Parameters):
        self.activation = block.activation
        self.gate = Projection(parameters["gate"])
        self.projection = Projection(parameters["projection"])
        self.norm = RMSNorm(parameters["norm"], block.norm)

    def __call__(self, x: jax.Array, own: jax.Array) -> jax.Array:
        """`[batch, length, embed]` and the layer's input, `[batch, length, dim]`, to `[batch, length, embed]`."""
        return self.norm(self.projection(ACTIVATIONS[self.activation](self.gate(x)) * own))
