"""MaxText's Llama 3, Mistral and Mixtral."""

import math

import ml_dtypes

from lazyload.architecture import DecoderConfig
from lazyload.formats.maxtext import blocks
from lazyload.formats.maxtext.tree import layout, refuse, stack, under
from lazyload.layouts.layout import Layout


def llama(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Llama 3: rotated pairs are neighbours, and the scale of the attention logits is in the query kernel."""
    refuse("Llama has no biases", config, "attn.q.bias", "attn.o.bias", "mlp.in.bias")
    rotated = {
        "query.kernel": f"attn.q : embed head (pair half) ; scale {blocks.query_scale(config)}",
        "key.kernel": "attn.k : embed kv_head (pair half)",
    }
    layer = blocks.NORMS | under("self_attention", blocks.attention() | rotated) | under("mlp", blocks.MLP)
    return layout(config, stack(config, scan_layers, layer), scan_layers, vocab_size)


def mistral(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Mistral: the scale of the attention logits is in the query kernel.

    It comes from `standalone_scripts/llama_or_mistral_ckpt.py`, which rounds the divisor to bfloat16 first. For every
    number in bfloat16 the product with its reciprocal rounds to the same as the quotient.
    """
    scale = 1 / float(ml_dtypes.bfloat16(math.sqrt(config.head_dim)))
    query = {"query.kernel": f"attn.q : embed head head_dim ; scale {scale!r}"}
    layer = blocks.NORMS | under("self_attention", blocks.attention() | query) | under("mlp", blocks.MLP)
    return layout(config, stack(config, scan_layers, layer), scan_layers, vocab_size)


def mixtral(config: DecoderConfig, scan_layers: bool, vocab_size: int | None) -> Layout:
    """Mixtral: the scale of the attention logits is in the query kernel."""
    query = {"query.kernel": f"attn.q : embed head head_dim ; scale {blocks.query_scale(config)}"}
    layer = blocks.NORMS | under("self_attention", blocks.attention() | query) | under("MoeBlock_0", blocks.EXPERTS)
    return layout(config, stack(config, scan_layers, layer), scan_layers, vocab_size)
