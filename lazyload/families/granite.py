"""Granite: a Llama with multipliers on embeddings, attention, residual stream and logits."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm
from lazyload.families.family import Family
from lazyload.formats import huggingface


def granite_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Granite; `attention_multiplier` is all that scales the attention logits."""
    fields = Fields(values, max_position_embeddings=2048)
    bias = fields.get("attention_bias", False)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, query_scale=fields.get("attention_multiplier", 1.0))
    layer = Layer(
        mixer=replace(mixer, rope=rope.read(fields, mixer.head_dim)),
        feed_forward=mlp(fields, bias=fields.get("mlp_bias", False)),
        norm=norm(fields),
        residual_scale=fields.get("residual_multiplier", 1.0),
    )
    return decoder(
        fields,
        (layer,) * fields.size("num_hidden_layers"),
        embed_scale=fields.get("embedding_multiplier", 1.0),
        logits_scale=1 / fields.positive("logits_scaling", 1.0),
    )


GRANITE = Family(
    "granite",
    ("granite",),
    granite_config,
    huggingface.decoder,
    title="Granite",
    covered="its four multipliers",
    since="0.1",
)
