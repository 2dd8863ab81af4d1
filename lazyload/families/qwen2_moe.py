"""Qwen 1.5 and 2 with experts: beside them a shared one, of which each token decides how much it takes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, sliding, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.families.qwen import sparse_layers
from lazyload.families.qwen3_next import GATED_SHARED_EXPERT, gated_experts
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout


def qwen2_moe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 2 with experts."""
    fields = Fields(
        values, num_key_value_heads=16, max_position_embeddings=32_768, shared_expert_intermediate_size=5632
    )
    mixer = attention(fields, qkv_bias=fields.get("qkv_bias", True))
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    dense, experts = mlp(fields), gated_experts(fields, normalize=fields.get("norm_topk_prob", False))
    layers = [
        Layer(mixer=replace(mixer, window=width), feed_forward=experts if sparse else dense, norm=norm(fields))
        for width, sparse in zip(_windows(fields), sparse_layers(fields), strict=True)
    ]
    return decoder(fields, layers)


def _windows(fields: Fields) -> list[int | None]:
    """For each layer the width of its window: unlike in Qwen 2, every other one *up to* some layer has it."""
    used = fields.get("use_sliding_window", False)
    width = window(fields, default=4096, used=used)
    first_full = fields.get("max_window_layers", 28)
    default = [used and number % 2 == 0 and number < first_full for number in range(fields.size("num_hidden_layers"))]
    slides = sliding(fields, default)
    if any(slides) and not used:
        raise ConfigError(f"{fields.where}: layer_types has sliding_attention, but use_sliding_window is off")
    return [width if slid else None for slid in slides]


def qwen2_moe_huggingface(config: DecoderConfig) -> Layout:
    """Some layers may have a plain MLP."""
    return huggingface.decoder(config, huggingface.LAYER | huggingface.EXPERTS | GATED_SHARED_EXPERT)


QWEN2_MOE = Family(
    "qwen2_moe",
    ("qwen2_moe",),
    qwen2_moe_config,
    qwen2_moe_huggingface,
    title="Qwen 1.5 and 2 with experts",
    covered="gated shared expert, dense layers among the sparse ones",
    since="0.2",
)
