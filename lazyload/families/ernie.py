"""ERNIE 4.5, dense and with experts: neighbours are rotated, and one switch puts biases on everything."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, attention, decoder, mlp, norm, num_experts
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_EXPERTS = {name: entry for name, entry in huggingface.EXPERTS.items() if not name.endswith("_bias")}
_BIAS = {"mlp.moe_statics.e_score_correction_bias": "router.selection_bias : 1 expert"}
_LAYER = huggingface.LAYER | _EXPERTS | huggingface.SHARED_EXPERTS | _BIAS


def ernie4_5_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an ERNIE 4.5."""
    fields = Fields(values, num_key_value_heads=2, head_dim=128, max_position_embeddings=131_072, rms_norm_eps=1e-5)
    layer = _layer(fields, fields.get("use_bias", False))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"), tied=True)


def ernie4_5_moe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an ERNIE 4.5 with experts, in every so many-th layer of a range."""
    fields = Fields(values, num_key_value_heads=4, max_position_embeddings=131_072, rms_norm_eps=1e-5)
    # Layers that predict further tokens are not part of the model; no expert is ever full.
    fields.ignore("num_nextn_predict_layers", "moe_capacity")
    fields.refuse("moe_gate", "topk")
    fields.refuse("moe_use_aux_free", True)
    bias, count = fields.get("use_bias", False), fields.size("num_hidden_layers")
    dense, interval = _layer(fields, bias), fields.size("moe_layer_interval", 1)
    first, last = fields.get("moe_layer_start_index", 1), fields.get("moe_layer_end_index", -1)
    sparse = range(first, count if last == -1 else last + 1)
    experts = replace(dense, feed_forward=_experts(fields, bias))
    layers = [experts if n in sparse and (n + 1) % interval == 0 else dense for n in range(count)]
    # Unlike the dense models, these have a bias on the logits, too.
    return decoder(fields, layers, tied=True, logits_bias=bias)


def _layer(fields: Fields, bias: bool) -> Layer:
    mixer = attention(fields, qkv_bias=bias, o_bias=bias)
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, theta=500_000.0, interleaved=True))
    return Layer(mixer=mixer, feed_forward=mlp(fields, bias=bias), norm=norm(fields))


def _experts(fields: Fields, bias: bool) -> Experts:
    width, shared = fields.size("moe_intermediate_size"), fields.get("moe_num_shared_experts", 2)
    names = ("moe_k", "num_experts_per_tok")
    selected = next((name for name in names if name in fields), "moe_k")
    fields.ignore(*names)
    return Experts(
        num_experts=num_experts(fields, "moe_num_experts", "num_experts", selected=selected),
        num_selected=fields.size(selected),
        mlp_dim=width,
        activation=activation(fields),
        shared_mlp_dim=width * shared,
        shared_bias=bias and shared > 0,
        selection_bias=True,
        least_sum=fields.get("moe_norm_min", 1e-12),
    )


def ernie4_5_moe_huggingface(config: DecoderConfig) -> Layout:
    """The router's bias stands apart; beside the model lie the layers that predict further tokens."""
    return huggingface.decoder(config, _LAYER, skipped=["model.mtp_*"])


ERNIE4_5 = Family(
    "ernie4_5",
    ("ernie4_5",),
    ernie4_5_config,
    huggingface.decoder,
    title="ERNIE 4.5",
    covered="interleaved RoPE, biases by one switch",
    since="0.2",
)
ERNIE4_5_MOE = Family(
    "ernie4_5_moe",
    ("ernie4_5_moe",),
    ernie4_5_moe_config,
    ernie4_5_moe_huggingface,
    title="ERNIE 4.5 with experts",
    covered="shared experts, experts in a range of layers; without the layers that predict further tokens",
    since="0.2",
)
