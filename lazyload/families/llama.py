"""Llama (also Llama 2, 3, 3.1, 3.2, 3.3, and the many models in its form) and Mistral."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, layer_types, shape, window
from lazyload.families.family import Family
from lazyload.formats import huggingface


def llama_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Llama."""
    fields = Fields(values, max_position_embeddings=2048)
    # SmolLM's files carry what they were trained with; pairs that take turns are refused below as any unknown field.
    fields.ignore("is_llama_config")
    sizes = shape(fields)
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
    )
    fields.finish()
    return config


def mistral_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Mistral: all layers slide, or none."""
    fields = Fields(values, num_key_value_heads=8, max_position_embeddings=131_072)
    sizes = shape(fields)
    width = window(fields, default=4096)
    count = fields.size("num_hidden_layers")
    layer = Layer(rope=rope.read(fields, sizes["head_dim"]), window=width)
    fields.refuse("attention_bias")
    if not all(slides == (width is not None) for slides in layer_types(fields, [width is not None] * count)):
        fields.refuse("layer_types")
    config = DecoderConfig(
        **sizes,
        layers=(layer,) * count,
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", False),
    )
    fields.finish()
    return config


LLAMA = Family("llama", ("llama",), llama_config, huggingface.decoder)
MISTRAL = Family("mistral", ("mistral",), mistral_config, huggingface.decoder)
