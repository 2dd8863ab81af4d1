"""DeepSeek V2 and V3 (also R1), and Kimi K2: latent attention, and experts after the first layers."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture import MLP, DecoderConfig, Experts, LatentAttention, Layer
from lazyload.config_json import rope
from lazyload.config_json.experts import routed_experts, sigmoid_experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.shape import decoder, mlp, norm
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

LAYER = {
    **huggingface.LATENT_ATTENTION,
    **huggingface.NORMS,
    **huggingface.MLP,
    **huggingface.EXPERTS,
    **huggingface.SHARED_EXPERTS,
}
"""A layer, with a plain MLP or with experts."""

_V3_DEFAULTS: Mapping[str, Any] = {
    "max_position_embeddings": 4096,
    "q_lora_rank": 1536,
    "first_k_dense_replace": 3,
    "n_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
}


def deepseek_v2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a DeepSeek V2."""
    fields = Fields(values, max_position_embeddings=2048, q_lora_rank=1536, n_shared_experts=2)
    fields.refuse("topk_method", "greedy", "group_limited_greedy")
    fields.refuse("scoring_func", "softmax")
    # transformers reads it and never divides.
    fields.ignore("norm_topk_prob")
    limited = fields.get("topk_method", "greedy") == "group_limited_greedy"
    fields.ignore("n_group", "topk_group")
    bias = fields.get("mlp_bias", False)
    scale = fields.get("routed_scaling_factor", 1.0)
    experts = routed_experts(fields, bias=bias, grouped=limited, normalize=False, scale=scale)
    return _decoder(fields, mlp(fields, bias=bias), experts, interleaved=True)


def deepseek_v3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a DeepSeek V3."""
    return _v3(Fields(values, **_V3_DEFAULTS))


def kimi_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Kimi K2, or the text model's part of a Kimi K2.5: a DeepSeek V3 of other sizes."""
    if values.get("model_type") == "kimi_k2":
        return deepseek_v3_config(values)
    towers = ("projection_hidden_size", "projection_layer_norm_eps")
    return _v3(text_fields({"tie_word_embeddings": True, **values}, towers=towers, **_V3_DEFAULTS))


def deepseek_v2_huggingface(config: DecoderConfig) -> Layout:
    """The layers before the experts have a plain MLP."""
    return huggingface.decoder(config, LAYER)


def deepseek_v3_huggingface(config: DecoderConfig) -> Layout:
    """As in DeepSeek V2, but behind the last layer there may be ones that predict further tokens."""
    return huggingface.decoder(config, LAYER, skipped=huggingface.prediction_layers(config))


def kimi_huggingface(config: DecoderConfig) -> Layout:
    """As in DeepSeek V3; in Kimi K2.5 behind a prefix, beside what turns images into embeddings."""
    return huggingface.decoder(
        config,
        LAYER,
        skipped=[*huggingface.prediction_layers(config), "vision_tower.*", "mm_projector.*"],
        aliases=huggingface.TEXT_MODEL,
    )


def _v3(fields: Fields) -> DecoderConfig:
    # Layers that predict further tokens are not part of the model.
    fields.ignore("num_nextn_predict_layers", "num_mtp_layers")
    interleaved = fields.optional("rope_interleave", bool, True) or False
    return _decoder(fields, mlp(fields), sigmoid_experts(fields, scale=2.5), interleaved=interleaved)


def _decoder(fields: Fields, dense: MLP, experts: Experts, *, interleaved: bool) -> DecoderConfig:
    """What the versions share: a few layers with a plain MLP, the rest with experts."""
    mixer = latent_attention(fields, interleaved=interleaved)
    first = fields.get("first_k_dense_replace", 0)
    fields.refuse("moe_layer_freq", 1)
    layers = [
        Layer(mixer=mixer, feed_forward=dense if number < first else experts, norm=norm(fields))
        for number in range(fields.size("num_hidden_layers"))
    ]
    return decoder(fields, layers)


def latent_attention(fields: Fields, *, interleaved: bool) -> LatentAttention:
    """Latent attention; `interleaved` says whether a rotated pair is two neighbours."""
    # Both follow from the parts, whatever the file says; the keys' heads are those of the queries.
    fields.ignore("head_dim", "qk_head_dim", "num_key_value_heads")
    nope_dim, rope_dim = fields.size("qk_nope_head_dim"), fields.size("qk_rope_head_dim")
    bias = fields.get("attention_bias", False)
    return LatentAttention(
        num_heads=fields.size("num_attention_heads"),
        q_rank=fields.optional("q_lora_rank", int),
        kv_rank=fields.size("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=fields.size("v_head_dim"),
        rope=rope.read(fields, rope_dim, interleaved=interleaved),
        query_scale=_query_scale(fields, nope_dim + rope_dim),
        a_bias=bias,
        o_bias=bias,
    )


def _query_scale(fields: Fields, head_dim: int) -> float:
    """YaRN's magnitude enters the attention logits twice, once for the query and once for the key."""
    scale: float = head_dim**-0.5
    parameters = rope.parameters_of(fields)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    scale_all = parameters.get("mscale_all_dim")
    if kind == "default" or not scale_all:
        return scale
    magnitude: float = rope.yarn_magnitude(parameters.get("factor") or 1.0, scale_all)
    return scale * magnitude * magnitude


DEEPSEEK_V2 = Family(
    "deepseek_v2",
    ("deepseek_v2",),
    deepseek_v2_config,
    deepseek_v2_huggingface,
    title="DeepSeek V2",
    covered="latent attention, shared experts, routing in groups",
    since="0.1",
)
DEEPSEEK_V3 = Family(
    "deepseek_v3",
    ("deepseek_v3",),
    deepseek_v3_config,
    deepseek_v3_huggingface,
    title="DeepSeek V3, R1",
    covered="latent attention, shared experts, routing in groups by a sigmoid; without the layers that "
    "predict further tokens",
    since="0.1",
)
KIMI = Family(
    "kimi_k2",
    ("kimi_k2", "kimi_k25"),
    kimi_config,
    kimi_huggingface,
    title="Kimi K2, K2.5",
    covered="DeepSeek V3's form; the text model of K2.5",
    since="0.2",
)
