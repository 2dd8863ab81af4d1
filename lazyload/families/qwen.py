"""Qwen 2 and 2.5, Qwen 3, and Qwen 3 with experts."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Experts, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, num_experts, shape, window, windowed
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout


def qwen2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 2 or 2.5."""
    fields = Fields(values, num_key_value_heads=32, max_position_embeddings=32_768)
    sizes = shape(fields)
    fields.refuse("use_mrope")
    # Their own engine cuts sequences beyond the original length into chunks; transformers does not.
    fields.ignore("dual_chunk_attention_config")
    config = DecoderConfig(
        **sizes,
        layers=windowed(fields, rope.read(fields, sizes["head_dim"]), fields.size("num_hidden_layers")),
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", False),
        qkv_bias=True,
    )
    fields.finish()
    return config


def qwen3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 3."""
    fields = Fields(values, num_key_value_heads=32, head_dim=128, max_position_embeddings=32_768)
    sizes = shape(fields)
    bias = fields.get("attention_bias", False)
    config = DecoderConfig(
        **sizes,
        layers=windowed(fields, rope.read(fields, sizes["head_dim"]), fields.size("num_hidden_layers")),
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
    )
    fields.finish()
    return config


def qwen3_moe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 3 with experts."""
    fields = Fields(values, num_key_value_heads=4, max_position_embeddings=32_768)
    sizes = shape(fields)
    # The norms of queries and keys cannot be switched off.
    fields.refuse("use_qk_norm", True)
    fields.ignore("dual_chunk_attention_config")
    bias = fields.get("attention_bias", False)
    rotary = rope.read(fields, sizes["head_dim"])
    width = window(fields, default=4096)
    if not fields.get("use_sliding_window", False):
        width = None
    # Unlike in Qwen 3, the window is the same in all layers.
    fields.ignore("max_window_layers", "layer_types")
    dense, step = fields.optional("mlp_only_layers", list) or [], fields.size("decoder_sparse_step", 1)
    count = fields.size("num_hidden_layers")
    sparse = [number not in dense and (number + 1) % step == 0 for number in range(count)]
    config = DecoderConfig(
        **sizes,
        layers=tuple(Layer(rope=rotary, window=width, sparse=has_experts) for has_experts in sparse),
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        experts=Experts(
            num_experts=num_experts(fields, "num_experts", "num_local_experts"),
            num_selected=fields.size("num_experts_per_tok"),
            mlp_dim=fields.size("moe_intermediate_size"),
            normalize=fields.get("norm_topk_prob", False),
        ),
    )
    fields.finish()
    return config


def qwen3_moe_huggingface(config: DecoderConfig) -> Layout:
    """Some layers may have a plain MLP."""
    layer = {**huggingface.attention(config), **huggingface.norms(config)}
    if config.dense_layers:
        layer |= huggingface.MLP
    if config.sparse_layers:
        layer |= huggingface.EXPERTS
    return huggingface.decoder(config, layer)


QWEN2 = Family("qwen2", ("qwen2",), qwen2_config, huggingface.decoder)
QWEN3 = Family("qwen3", ("qwen3",), qwen3_config, huggingface.decoder)
QWEN3_MOE = Family("qwen3_moe", ("qwen3_moe",), qwen3_moe_config, qwen3_moe_huggingface)
