"""Seed-OSS: a Llama with biases on queries, keys and values."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm
from lazyload.families.family import Family
from lazyload.formats import huggingface


def seed_oss_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Seed-OSS; the bias of the attention's output has a switch of its own."""
    fields = Fields(values, num_key_value_heads=8, head_dim=128, max_position_embeddings=524_288)
    qkv_bias, o_bias = fields.get("attention_bias", True), fields.get("attention_out_bias", False)
    mixer = attention(fields, qkv_bias=qkv_bias, o_bias=o_bias)
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    layer = Layer(mixer=mixer, feed_forward=mlp(fields, bias=fields.get("mlp_bias", False)), norm=norm(fields))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


SEED_OSS = Family(
    "seed_oss",
    ("seed_oss",),
    seed_oss_config,
    huggingface.decoder,
    title="Seed-OSS",
    covered="biases by three switches",
    since="0.2",
)
