"""Mixtral: a Mistral with experts in all layers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.experts import experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, norm, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

# Experts are called by the numbers of their matrices, as in Mistral's own code.
NUMBERED_EXPERTS = {
    "block_sparse_moe.gate.weight": "router : expert embed",
    "block_sparse_moe.experts.{expert}.{gate_up:w1,w3}.weight": "experts.in : expert_mlp embed",
    "block_sparse_moe.experts.{expert}.w2.weight": "experts.out : embed expert_mlp",
}


def mixtral_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Mixtral."""
    fields = Fields(values, num_key_value_heads=8, max_position_embeddings=131_072, rms_norm_eps=1e-5)
    mixer = attention(fields, window=window(fields))
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, theta=1e6))
    feed_forward = experts(fields, "num_local_experts", "num_experts")
    layer = Layer(mixer=mixer, feed_forward=feed_forward, norm=norm(fields))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def mixtral_huggingface(config: DecoderConfig) -> Layout:
    """Plain attention, and the experts under their own names."""
    return huggingface.decoder(config, huggingface.ATTENTION | huggingface.NORMS | NUMBERED_EXPERTS)


MIXTRAL = Family(
    "mixtral",
    ("mixtral",),
    mixtral_config,
    mixtral_huggingface,
    title="Mixtral",
    covered="experts, sliding window",
    since="0.1",
)
