"""Qwen 3.5, dense and with experts: Qwen 3 Next's blocks, its projections cut in other places; text models."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture import DecoderConfig
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.shape import mlp
from lazyload.families.family import Family
from lazyload.families.qwen3_next import LAYER, gated_experts, hybrid
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **LAYER,
    "linear_attn.in_proj_qkv.weight": "delta.q | delta.k | delta.v : "
    "(key_head key_dim | key_head key_dim | key_head group value_dim) embed",
    "linear_attn.in_proj_z.weight": "delta.z : (key_head group value_dim) embed",
    "linear_attn.in_proj_b.weight": "delta.b : (key_head group) embed",
    "linear_attn.in_proj_a.weight": "delta.a : (key_head group) embed",
    "mlp.gate.weight": "router : expert embed",
    **huggingface.STACKED_EXPERTS,
}


def qwen3_5_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 3.5: of a text model, or the text model's part of a multimodal one."""
    fields = _fields(values, values.get("model_type") == "qwen3_5", num_key_value_heads=4)
    return hybrid(fields, [mlp(fields)] * fields.size("num_hidden_layers"), fused=False)


def qwen3_5_moe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 3.5 with experts, in all layers; their weights always add up to one."""
    fields = _fields(values, values.get("model_type") == "qwen3_5_moe", num_key_value_heads=2)
    fields.ignore("norm_topk_prob")
    return hybrid(fields, [gated_experts(fields, normalize=True)] * fields.size("num_hidden_layers"), fused=False)


def qwen3_5_huggingface(config: DecoderConfig) -> Layout:
    """The text model lies behind a prefix, beside the vision tower and the layers that predict further tokens.

    Its experts are stacked; one by one in files in FP8, and in what transformers 5 saves.
    """
    return huggingface.decoder(
        config,
        _LAYER,
        skipped=["mtp.*", "model.visual.*", "visual.*"],
        aliases=huggingface.TEXT_MODEL,
        alternatives=[huggingface.EXPERTS],
    )


def _fields(values: Mapping[str, Any], multimodal: bool, **defaults: Any) -> Fields:
    defaults |= {"head_dim": 256, "partial_rotary_factor": 0.25, "max_position_embeddings": 32_768}
    untied = {"tie_word_embeddings": False}
    fields = text_fields({**untied, **values}, **defaults) if multimodal else Fields(values, **defaults)
    # Layers that predict further tokens are not part of the model.
    fields.ignore("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings")
    fields.refuse("mamba_ssm_dtype", "float32")
    fields.refuse("attn_output_gate", True)
    return fields


QWEN3_5 = Family(
    "qwen3_5",
    ("qwen3_5", "qwen3_5_text"),
    qwen3_5_config,
    qwen3_5_huggingface,
    title="Qwen 3.5",
    covered="as Qwen 3 Next, dense; the text model of multimodal repositories",
    since="0.2",
)
QWEN3_5_MOE = Family(
    "qwen3_5_moe",
    ("qwen3_5_moe", "qwen3_5_moe_text"),
    qwen3_5_moe_config,
    qwen3_5_huggingface,
    title="Qwen 3.5 with experts",
    covered="the same with experts",
    since="0.2",
)
