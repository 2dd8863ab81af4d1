"""Llama (also Llama 2, 3, 3.1, 3.2, 3.3, and the many models in its form) and Mistral."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, sliding, window
from lazyload.families.family import Family
from lazyload.formats import huggingface


def llama_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Llama."""
    fields = Fields(values, max_position_embeddings=2048)
    # SmolLM's files carry what they were trained with; pairs that take turns are refused below as any unknown field.
    fields.ignore("is_llama_config")
    bias = fields.get("attention_bias", False)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias)
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    layer = Layer(mixer=mixer, feed_forward=mlp(fields, bias=fields.get("mlp_bias", False)), norm=norm(fields))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def mistral_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Mistral: all layers slide, or none."""
    return mistral(Fields(values, num_key_value_heads=8, max_position_embeddings=131_072))


def mistral(fields: Fields) -> DecoderConfig:
    """Reads the fields of a Mistral, wherever they stand."""
    width, count = window(fields, default=4096), fields.size("num_hidden_layers")
    mixer = attention(fields, window=width)
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    fields.refuse("attention_bias")
    if not all(slides == (width is not None) for slides in sliding(fields, [width is not None] * count)):
        fields.refuse("layer_types")
    layer = Layer(mixer=mixer, feed_forward=mlp(fields), norm=norm(fields))
    return decoder(fields, (layer,) * count)


LLAMA = Family(
    "llama",
    ("llama",),
    llama_config,
    huggingface.decoder,
    title="Llama 2, 3, 3.1, 3.2, 3.3, and what has its form (SmolLM 2, TinyLlama, ...)",
    covered="biases, tied or not, all RoPE scalings",
    since="0.1",
)
MISTRAL = Family(
    "mistral",
    ("mistral",),
    mistral_config,
    huggingface.decoder,
    title="Mistral",
    covered="sliding window",
    since="0.1",
)
