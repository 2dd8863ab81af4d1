"""Qwen 2 and 2.5, Qwen 3, and Qwen 3 with experts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, attention, decoder, mlp, norm, num_experts, window, windows
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

MROPE = ("mrope_section", "mrope_interleaved")
"""How the rotary embedding tells the directions of an image apart; the positions of text are alike in all of them."""


def qwen2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 2 or 2.5."""
    fields = Fields(values, num_key_value_heads=32, max_position_embeddings=32_768)
    fields.refuse("use_mrope")
    # Their own engine cuts sequences beyond the original length into chunks; transformers does not.
    fields.ignore("dual_chunk_attention_config")
    return dense(fields, qkv_bias=True)


def qwen3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 3."""
    fields = Fields(values, num_key_value_heads=32, head_dim=128, max_position_embeddings=32_768)
    bias = fields.get("attention_bias", False)
    return dense(fields, qkv_bias=bias, o_bias=bias, qk_norm="head", norm=norm(fields))


def dense(fields: Fields, *, theta: float = 10_000.0, **options: Any) -> DecoderConfig:
    """What Qwen 2 and 3 share; `options` are arguments of `Attention`."""
    mixer = attention(fields, **options)
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, theta=theta, ignored=MROPE))
    widths = windows(fields)
    of_width = {
        width: Layer(mixer=replace(mixer, window=width), feed_forward=mlp(fields), norm=norm(fields))
        for width in dict.fromkeys(widths)
    }
    return decoder(fields, [of_width[width] for width in widths])


def qwen3_moe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 3 with experts."""
    fields = Fields(values, num_key_value_heads=4, max_position_embeddings=32_768)
    # The norms of queries and keys cannot be switched off.
    fields.refuse("use_qk_norm", True)
    fields.ignore("dual_chunk_attention_config")
    return with_experts(fields, normalize=fields.get("norm_topk_prob", False))


def with_experts(fields: Fields, *, normalize: bool, theta: float = 10_000.0) -> DecoderConfig:
    """What Qwen 3 with experts and its vision models share."""
    bias = fields.get("attention_bias", False)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, qk_norm="head", norm=norm(fields))
    used = fields.get("use_sliding_window", False)
    width = window(fields, default=4096, used=used)
    if not used:
        width = None
    rotary = rope.read(fields, mixer.head_dim, theta=theta, ignored=MROPE)
    mixer = replace(mixer, rope=rotary, window=width)
    # Unlike in Qwen 3, the window is the same in all layers.
    fields.ignore("max_window_layers", "layer_types")
    dense = mlp(fields)
    experts = Experts(
        num_experts=num_experts(fields, "num_experts", "num_local_experts"),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=fields.size("moe_intermediate_size"),
        activation=activation(fields),
        normalize=normalize,
    )
    layers = [
        Layer(mixer=mixer, feed_forward=experts if sparse else dense, norm=norm(fields))
        for sparse in sparse_layers(fields)
    ]
    return decoder(fields, layers)


def sparse_layers(fields: Fields) -> list[bool]:
    """For each layer, whether it has experts: every `decoder_sparse_step`-th that `mlp_only_layers` does not name.

    Raises:
        ConfigError: A field is malformed.
    """
    dense, step = fields.optional("mlp_only_layers", list) or [], fields.size("decoder_sparse_step", 1)
    count = fields.size("num_hidden_layers")
    return [number not in dense and (number + 1) % step == 0 for number in range(count)]


def qwen3_moe_huggingface(config: DecoderConfig) -> Layout:
    """Some layers may have a plain MLP."""
    return huggingface.decoder(config, huggingface.LAYER | huggingface.EXPERTS)


QWEN2 = Family(
    "qwen2",
    ("qwen2",),
    qwen2_config,
    huggingface.decoder,
    title="Qwen 2, 2.5",
    covered="biases, sliding window from a layer on",
    since="0.1",
)
QWEN3 = Family(
    "qwen3",
    ("qwen3",),
    qwen3_config,
    huggingface.decoder,
    title="Qwen 3",
    covered="q/k norms, sliding window from a layer on",
    since="0.1",
)
QWEN3_MOE = Family(
    "qwen3_moe",
    ("qwen3_moe",),
    qwen3_moe_config,
    qwen3_moe_huggingface,
    title="Qwen 3 with experts",
    covered="dense layers among the sparse ones, `norm_topk_prob`",
    since="0.1",
)
