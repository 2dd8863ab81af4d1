"""Gemma, Gemma 2, and the text model of Gemma 3."""

import math
from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, layer_types, shape, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

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
    sizes = shape(fields)
    # The first releases say "gelu" and mean its approximation; `hidden_activation` came later and counts for nothing.
    act = activation(fields, default="gelu_pytorch_tanh")
    fields.ignore("hidden_activation")
    layer = Layer(rope=rope.read(fields, sizes["head_dim"]))
    config = DecoderConfig(
        **sizes,
        **_common(fields, sizes["embed_dim"]),
        layers=(layer,) * fields.size("num_hidden_layers"),
        activation="gelu_tanh" if act == "gelu" else act,
    )
    fields.finish()
    return config


def gemma2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma 2."""
    fields = Fields(values, num_key_value_heads=4, head_dim=256, max_position_embeddings=8192)
    sizes = shape(fields)
    rotary = rope.read(fields, sizes["head_dim"])
    width = window(fields, default=4096)
    count = fields.size("num_hidden_layers")
    sliding = layer_types(fields, [number % 2 == 0 for number in range(count)])
    # Copies of other fields in the files of the first release.
    fields.ignore("hidden_act", "sliding_window_size")
    config = DecoderConfig(
        **sizes | {"query_scale": fields.get("query_pre_attn_scalar", 256.0) ** -0.5},
        **_common(fields, sizes["embed_dim"]),
        layers=tuple(Layer(rope=rotary, window=width if slides else None) for slides in sliding),
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        post_norms=True,
        attn_softcap=fields.optional("attn_logit_softcapping", float, 50.0),
        final_softcap=fields.optional("final_logit_softcapping", float, 30.0),
    )
    fields.finish()
    return config


def gemma3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma 3: of a text model, or the text model's part of a multimodal one."""
    multimodal = values.get("model_type") == "gemma3"
    fields = _text_part(values) if multimodal else Fields(values, **_GEMMA3_DEFAULTS)
    # transformers has the fields, and makes no use of the first, nor of the second beside a vision tower.
    fields.ignore("attn_logit_softcapping")
    softcap = fields.optional("final_logit_softcapping", float)
    sizes = shape(fields)
    ropes = rope.read_by_layer_type(
        fields,
        sizes["head_dim"],
        theta=fields.get("rope_theta", 1e6),
        local_theta=fields.get("rope_local_base_freq", 1e4),
    )
    width = window(fields, default=4096)
    count = fields.size("num_hidden_layers")
    pattern = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
    sliding = layer_types(fields, [(number + 1) % pattern != 0 for number in range(count)])
    config = DecoderConfig(
        **sizes | {"query_scale": fields.get("query_pre_attn_scalar", 256.0) ** -0.5},
        **_common(fields, sizes["embed_dim"]),
        layers=tuple(
            Layer(rope=ropes["sliding_attention"], window=width) if slides else Layer(rope=ropes["full_attention"])
            for slides in sliding
        ),
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        post_norms=True,
        qk_norm="head",
        final_softcap=None if multimodal else softcap,
    )
    fields.finish()
    return config


def gemma3_huggingface(config: DecoderConfig) -> Layout:
    """The text model lies behind a prefix where there is a vision tower; which one depends on who saved it."""
    return huggingface.decoder(
        config,
        skipped=["*vision_tower.*", "*multi_modal_projector.*"],
        aliases=[
            ("model.", "language_model.model."),
            ("model.", "model.language_model."),
            ("lm_head.", "language_model.lm_head."),
        ],
    )


def _text_part(values: Mapping[str, Any]) -> Fields:
    """The text model's fields in the file of a multimodal Gemma 3."""
    whole = Fields(values)
    text = whole.need("text_config", dict)
    # Images enter as embeddings; a text model's weights and output do not depend on how.
    whole.ignore("vision_config", "mm_tokens_per_image")
    tied = whole.optional("tie_word_embeddings", bool)
    whole.finish()
    outer = {} if tied is None else {"tie_word_embeddings": tied}
    return Fields({**text, **outer}, where="config.json: text_config", **_GEMMA3_PART_DEFAULTS)


def _common(fields: Fields, embed_dim: int) -> dict[str, Any]:
    """What all Gemmas share."""
    fields.refuse("use_bidirectional_attention")
    bias = fields.get("attention_bias", False)
    return {
        "tied": fields.get("tie_word_embeddings", True),
        "norm_offset": 1.0,
        "embed_scale": math.sqrt(embed_dim),
        "qkv_bias": bias,
        "o_bias": bias,
    }


GEMMA = Family("gemma", ("gemma",), gemma_config, huggingface.decoder)
GEMMA2 = Family("gemma2", ("gemma2",), gemma2_config, huggingface.decoder)
GEMMA3 = Family("gemma3", ("gemma3", "gemma3_text"), gemma3_config, gemma3_huggingface)
