"""OLMoE: experts in all layers, norms of all heads' queries and keys together, and a bound on what attention sees."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.experts import experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, norm
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.EXPERTS,
    **huggingface.NORMS,
    **huggingface.FULL_QK_NORMS,
}


def olmoe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an OLMoE."""
    fields = Fields(values, max_position_embeddings=4096, rms_norm_eps=1e-5)
    bias = fields.get("attention_bias", False)
    clip = fields.positive("clip_qkv", 1.0) if "clip_qkv" in fields else None
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, qk_norm="full", norm=norm(fields), qkv_clip=clip)
    feed_forward = experts(fields, "num_experts", "num_local_experts", normalize=fields.get("norm_topk_prob", False))
    layer = Layer(
        mixer=replace(mixer, rope=rope.read(fields, mixer.head_dim)), feed_forward=feed_forward, norm=norm(fields)
    )
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def olmoe_huggingface(config: DecoderConfig) -> Layout:
    """Llama's names, and experts one by one."""
    return huggingface.decoder(config, _LAYER)


OLMOE = Family(
    "olmoe",
    ("olmoe",),
    olmoe_config,
    olmoe_huggingface,
    title="OLMoE",
    covered="experts, q/k norms over all heads, `clip_qkv`",
    since="0.2",
)
