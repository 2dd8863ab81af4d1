"""OLMo 2 and 3: norms after attention and MLP, and of all heads' queries and keys together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import Attention, DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, sliding, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.MLP,
    **huggingface.SANDWICH_NORMS,
    **huggingface.FULL_QK_NORMS,
}


def olmo2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an OLMo 2."""
    fields = Fields(values, max_position_embeddings=2048, rms_norm_eps=1e-5)
    mixer = _attention(fields)
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    return decoder(fields, (_layer(fields, mixer),) * fields.size("num_hidden_layers"))


def olmo3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an OLMo 3: of four layers, three see a sliding window."""
    fields = Fields(values, max_position_embeddings=2048, rms_norm_eps=1e-5)
    mixer = _attention(fields)
    theta = fields.get("rope_theta", 500_000.0)
    ropes = rope.read_by_layer_type(fields, mixer.head_dim, theta=theta, local_theta=theta)
    local = replace(mixer, rope=ropes["sliding_attention"], window=window(fields, default=4096))
    full = replace(mixer, rope=ropes["full_attention"])
    slides = sliding(fields, [(number + 1) % 4 != 0 for number in range(fields.size("num_hidden_layers"))])
    return decoder(fields, [_layer(fields, local if slid else full) for slid in slides])


def olmo_huggingface(config: DecoderConfig) -> Layout:
    """Llama's names, with norms after the blocks."""
    return huggingface.decoder(config, _LAYER)


def _attention(fields: Fields) -> Attention:
    bias = fields.get("attention_bias", False)
    return attention(fields, qkv_bias=bias, o_bias=bias, qk_norm="full", norm=norm(fields))


def _layer(fields: Fields, mixer: Attention) -> Layer:
    return Layer(mixer=mixer, feed_forward=mlp(fields), norm=norm(fields), pre_norms=False, post_norms=True)


OLMO2 = Family(
    "olmo2",
    ("olmo2",),
    olmo2_config,
    olmo_huggingface,
    title="OLMo 2",
    covered="norms after the blocks",
    since="0.1",
)
OLMO3 = Family(
    "olmo3",
    ("olmo3",),
    olmo3_config,
    olmo_huggingface,
    title="OLMo 3",
    covered="norms after the blocks, sliding layers",
    since="0.1",
)
