"""The text models of Qwen 3 VL, dense and with experts: a Qwen 3 whose positions in text are plain ones."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture import DecoderConfig
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.shape import norm
from lazyload.families.family import Family
from lazyload.families.qwen import dense, with_experts
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_EXPERTS = {
    "mlp.gate.weight": "router : expert embed",
    "mlp.experts.gate_up_proj": "experts.in : expert embed (gate_up expert_mlp)",
    "mlp.experts.down_proj": "experts.out : expert expert_mlp embed",
}


def qwen3_vl_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the text model's part of the `config.json` of a Qwen 3 VL, or that of its text model alone."""
    fields = _fields(values, num_key_value_heads=32, head_dim=128)
    bias = fields.get("attention_bias", False)
    return dense(fields, theta=500_000.0, qkv_bias=bias, o_bias=bias, qk_norm="head", norm=norm(fields))


def qwen3_vl_moe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """The same of a Qwen 3 VL with experts, whose weights are always made to add up to one."""
    fields = _fields(values, num_key_value_heads=16)
    fields.ignore("norm_topk_prob")
    return with_experts(fields, normalize=True, theta=500_000.0)


def qwen3_vl_huggingface(config: DecoderConfig) -> Layout:
    """The text model lies behind a prefix, beside the vision tower.

    Experts are stacked, inputs first; outputs first in what transformers 5 saves. The shapes tell: only one of the two
    tensors can be square.
    """
    return huggingface.decoder(
        config,
        huggingface.LAYER | _EXPERTS,
        skipped=["model.visual.*", "visual.*"],
        aliases=huggingface.TEXT_MODEL,
        alternatives=[huggingface.STACKED_EXPERTS],
    )


def _fields(values: Mapping[str, Any], **defaults: Any) -> Fields:
    defaults["max_position_embeddings"] = 128_000
    untied = {"tie_word_embeddings": False}
    fields = text_fields({**untied, **values}, **defaults) if "text_config" in values else Fields(values, **defaults)
    # Every layer sees everything, and what the file says of windows is for switching them off.
    fields.refuse("use_sliding_window")
    return fields


QWEN3_VL = Family(
    "qwen3_vl",
    ("qwen3_vl", "qwen3_vl_text"),
    qwen3_vl_config,
    qwen3_vl_huggingface,
    title="Qwen 3 VL",
    covered="the text model",
    since="0.2",
)
QWEN3_VL_MOE = Family(
    "qwen3_vl_moe",
    ("qwen3_vl_moe", "qwen3_vl_moe_text"),
    qwen3_vl_moe_config,
    qwen3_vl_huggingface,
    title="Qwen 3 VL with experts",
    covered="the text model",
    since="0.2",
)
