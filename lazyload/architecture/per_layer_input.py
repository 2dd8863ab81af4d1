"""Per-layer inputs: embeddings of the tokens that each layer has of its own, beside the one that all layers share.

The decoder makes the inputs of all layers at once, from the tokens and from their embeddings (`PerLayerEmbedding`); at
its end each layer adds what comes of its own (`PerLayerInput`). Gemma 3n and Gemma 4 have them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.checks import require_one_of, require_positive
from lazyload.architecture.mlp import ACTIVATIONS, Activation
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class PerLayerInput:
    """What a layer makes of its input, `norm(projection(activation(gate(x)) * input))`, added to the residual stream.

    Attributes:
        dim: Width of the input.
        activation: Of the gate.
        norm: The norm of what is added.
    """

    name: ClassVar[str] = "per_layer_input"

    dim: int
    activation: Activation = "gelu_tanh"
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "dim")
        require_one_of(self, "activation", ACTIVATIONS)

    @property
    def axes(self) -> Mapping[str, int]:
        """The input's width."""
        return {"ple_dim": self.dim}

    @property
    def parameters(self) -> Mapping[str, str]:
        """Gate, projection, norm."""
        return {
            "gate.kernel": "ple.gate : embed ple_dim",
            "projection.kernel": "ple.out : ple_dim embed",
            "norm.scale": "ple.norm : embed",
        }


@dataclass(frozen=True, kw_only=True)
class PerLayerEmbedding:
    """The inputs of all layers, `(norm(projection(x) / sqrt(embed)) + embedding(token) * sqrt(dim)) / sqrt(2)`.

    Attributes:
        vocab_size: Rows of the embedding.
        num_layers: Layers, whose inputs lie side by side.
        dim: Width of one layer's input.
        norm: The norm of each layer's projection.
    """

    name: ClassVar[str] = "per_layer_embedding"

    vocab_size: int
    num_layers: int
    dim: int
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "vocab_size", "num_layers", "dim")

    @property
    def axes(self) -> Mapping[str, int]:
        """The rows; the width of all layers' inputs, and of one."""
        return {"ple_vocab": self.vocab_size, "ple_embed": self.num_layers * self.dim, "ple_dim": self.dim}

    @property
    def parameters(self) -> Mapping[str, str]:
        """Embedding, projection, norm."""
        return {
            "embed.embedding": "ple.embed : ple_vocab ple_embed",
            "projection.kernel": "ple.proj : embed ple_embed",
            "norm.scale": "ple.proj_norm : ple_dim",
        }
