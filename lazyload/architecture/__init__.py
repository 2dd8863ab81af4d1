"""What a decoder is, as frozen values without JAX.

A layer has two blocks: a *mixer*, through which tokens see each other (`Attention`, `LatentAttention`, ...), and a
*feed-forward* (`MLP`, `Experts`); some layers have experts beside their MLP, too, and an input of their own. A block is
one value in one file: its sizes, the axes that they give, and the table of its parameters, from which follow the Flax
module that has them, the layout `"nnx"` and the roles that every other format speaks of. A wrong value is refused where
it is written, with a `ConfigError`.
"""

from lazyload.architecture.altup import AltUp, AltUpStreams
from lazyload.architecture.attention import Attention, AttentionKernel, Temperature
from lazyload.architecture.compressed_attention import CompressedAttention
from lazyload.architecture.compressor import CompressedIndexer, Compressor
from lazyload.architecture.decoder import DecoderConfig, Layer
from lazyload.architecture.experts import Experts
from lazyload.architecture.gated_delta_net import GatedDeltaNet
from lazyload.architecture.head import ScoreHead
from lazyload.architecture.hyper_connection import HyperConnection, HyperStreams
from lazyload.architecture.indexer import Indexer
from lazyload.architecture.latent_attention import LatentAttention
from lazyload.architecture.laurel import Laurel
from lazyload.architecture.mamba2 import Mamba2
from lazyload.architecture.mlp import MLP, Activation
from lazyload.architecture.norm import LayerNorm, Norm
from lazyload.architecture.per_layer_input import PerLayerEmbedding, PerLayerInput
from lazyload.architecture.rope import Rope

__all__ = [
    "MLP",
    "Activation",
    "AltUp",
    "AltUpStreams",
    "Attention",
    "AttentionKernel",
    "CompressedAttention",
    "CompressedIndexer",
    "Compressor",
    "DecoderConfig",
    "Experts",
    "GatedDeltaNet",
    "HyperConnection",
    "HyperStreams",
    "Indexer",
    "LatentAttention",
    "Laurel",
    "Layer",
    "LayerNorm",
    "Mamba2",
    "Norm",
    "PerLayerEmbedding",
    "PerLayerInput",
    "Rope",
    "ScoreHead",
    "Temperature",
]
