"""Gemma, Gemma 2, and the text model of Gemma 3."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer, Norm
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, sliding, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = huggingface.ATTENTION | huggingface.MLP | huggingface.SANDWICH_NORMS

_GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
}

# A part of a file leaves out whatever is as in transformers' class, be it the model's size.
_GEMMA3_PART_DEFAULTS = {**_GEMMA3_DEFAULTS, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}


def gemma_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma."""
    fields = Fields(values, num_key_value_heads=16, head_dim=256, max_position_embeddings=8192)
    mixer = attention(fields, **_biases(fields))
    # The first releases say "gelu" and mean its approximation; `hidden_activation` came later and counts for nothing.
    feed_forward = mlp(fields, default="gelu_pytorch_tanh")
    fields.ignore("hidden_activation")
    if feed_forward.activation == "gelu":
        feed_forward = replace(feed_forward, activation="gelu_tanh")
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    layer = Layer(mixer=mixer, feed_forward=feed_forward, norm=_norm(fields))
    return _decoder(fields, [layer] * fields.size("num_hidden_layers"))


def gemma2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma 2."""
    fields = Fields(values, num_key_value_heads=4, head_dim=256, max_position_embeddings=8192)
    mixer = attention(
        fields,
        **_biases(fields),
        query_scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        softcap=fields.optional("attn_logit_softcapping", float, 50.0),
    )
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    width = window(fields, default=4096)
    slides = sliding(fields, [number % 2 == 0 for number in range(fields.size("num_hidden_layers"))])
    # Copies of other fields in the files of the first release.
    fields.ignore("hidden_act", "sliding_window_size")
    feed_forward = mlp(fields, "hidden_activation", "gelu_pytorch_tanh")
    layers = [
        Layer(
            mixer=replace(mixer, window=width if slid else None),
            feed_forward=feed_forward,
            norm=_norm(fields),
            post_norms=True,
        )
        for slid in slides
    ]
    return _decoder(fields, layers, final_softcap=fields.optional("final_logit_softcapping", float, 30.0))


def gemma3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma 3: of a text model, or the text model's part of a multimodal one."""
    multimodal = values.get("model_type") == "gemma3"
    # Images enter as embeddings.
    towers = ("mm_tokens_per_image",)
    tied = {"tie_word_embeddings": True}
    part = text_fields({**tied, **values}, towers=towers, **_GEMMA3_PART_DEFAULTS) if multimodal else None
    fields = part or Fields(values, **_GEMMA3_DEFAULTS)
    # transformers has the fields, and makes no use of the first, nor of the second beside a vision tower.
    fields.ignore("attn_logit_softcapping")
    softcap = fields.optional("final_logit_softcapping", float)
    mixer = attention(
        fields,
        **_biases(fields),
        query_scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        qk_norm="head",
        norm=_norm(fields),
    )
    ropes = rope.read_by_layer_type(
        fields,
        mixer.head_dim,
        theta=fields.get("rope_theta", 1e6),
        local_theta=fields.get("rope_local_base_freq", 1e4),
    )
    local = replace(mixer, rope=ropes["sliding_attention"], window=window(fields, default=4096))
    full = replace(mixer, rope=ropes["full_attention"])
    pattern = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    slides = sliding(fields, [(n + 1) % pattern != 0 for n in range(fields.size("num_hidden_layers"))])
    feed_forward = mlp(fields, "hidden_activation", "gelu_pytorch_tanh")
    layers = [
        Layer(mixer=local if slid else full, feed_forward=feed_forward, norm=_norm(fields), post_norms=True)
        for slid in slides
    ]
    return _decoder(fields, layers, final_softcap=None if multimodal else softcap)


def gemma2_huggingface(config: DecoderConfig) -> Layout:
    """Llama's names, with norms before and after the blocks."""
    return huggingface.decoder(config, _LAYER)


def gemma3_huggingface(config: DecoderConfig) -> Layout:
    """The text model lies behind a prefix where there is a vision tower; which one depends on who saved it."""
    return huggingface.decoder(
        config,
        _LAYER,
        skipped=["*vision_tower.*", "*multi_modal_projector.*"],
        aliases=huggingface.TEXT_MODEL,
    )


def _biases(fields: Fields) -> dict[str, bool]:
    """The biases of attention, as arguments of `Attention`."""
    bias = fields.get("attention_bias", False)
    return {"qkv_bias": bias, "o_bias": bias}


def _norm(fields: Fields) -> Norm:
    return norm(fields, offset=1.0)


def _decoder(fields: Fields, layers: list[Layer], *, final_softcap: float | None = None) -> DecoderConfig:
    """What all Gemmas share."""
    fields.refuse("use_bidirectional_attention")
    embed_scale = math.sqrt(fields.size("hidden_size"))
    return decoder(fields, layers, tied=True, embed_scale=embed_scale, final_softcap=final_softcap)


GEMMA = Family(
    "gemma",
    ("gemma",),
    gemma_config,
    huggingface.decoder,
    title="Gemma",
    since="0.1",
)
GEMMA2 = Family(
    "gemma2",
    ("gemma2",),
    gemma2_config,
    gemma2_huggingface,
    title="Gemma 2",
    covered="soft caps, local and global layers",
    since="0.1",
)
GEMMA3 = Family(
    "gemma3",
    ("gemma3", "gemma3_text"),
    gemma3_config,
    gemma3_huggingface,
    title="Gemma 3",
    covered="two RoPE bases; the text model of multimodal repositories, in old and new names",
    since="0.1",
)
