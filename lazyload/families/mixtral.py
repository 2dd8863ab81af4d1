"""Mixtral: a Mistral with experts in all layers."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Experts, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, num_experts, shape, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_EXPERTS = {
    "block_sparse_moe.gate.weight": "router : expert embed",
    "block_sparse_moe.experts.{expert}.{gate_up:w1,w3}.weight": "experts.in : expert_mlp embed",
    "block_sparse_moe.experts.{expert}.w2.weight": "experts.out : embed expert_mlp",
}


def mixtral_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Mixtral."""
    fields = Fields(values, num_key_value_heads=8, max_position_embeddings=131_072, rms_norm_eps=1e-5)
    sizes = shape(fields)
    layer = Layer(rope=rope.read(fields, sizes["head_dim"], theta=1e6), window=window(fields), sparse=True)
    config = DecoderConfig(
        **sizes,
        layers=(layer,) * fields.size("num_hidden_layers"),
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", False),
        experts=Experts(
            num_experts=num_experts(fields, "num_local_experts", "num_experts"),
            num_selected=fields.size("num_experts_per_tok"),
            mlp_dim=sizes["mlp_dim"],
        ),
    )
    fields.finish()
    return config


def mixtral_huggingface(config: DecoderConfig) -> Layout:
    """Experts are called by the numbers of their matrices, as in Mistral's own code."""
    return huggingface.decoder(config, {**huggingface.attention(config), **huggingface.norms(config), **_EXPERTS})


MIXTRAL = Family("mixtral", ("mixtral",), mixtral_config, mixtral_huggingface)
