"""Granite: a Llama with multipliers on embeddings, attention, residual stream and logits."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, shape
from lazyload.families.family import Family
from lazyload.formats import huggingface


def granite_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Granite; `attention_multiplier` is all that scales the attention logits."""
    fields = Fields(values, max_position_embeddings=2048)
    sizes = shape(fields) | {"query_scale": fields.get("attention_multiplier", 1.0)}
    layer = Layer(rope=rope.read(fields, sizes["head_dim"]))
    bias = fields.get("attention_bias", False)
    config = DecoderConfig(
        **sizes,
        layers=(layer,) * fields.size("num_hidden_layers"),
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.get("mlp_bias", False),
        embed_scale=fields.get("embedding_multiplier", 1.0),
        residual_scale=fields.get("residual_multiplier", 1.0),
        logits_scale=1 / fields.get("logits_scaling", 1.0),
    )
    fields.finish()
    return config


GRANITE = Family("granite", ("granite",), granite_config, huggingface.decoder)
