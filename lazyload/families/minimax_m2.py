"""MiniMax M2: experts chosen by a sigmoid, norms of all heads' queries and keys together, partial rotary."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, attention, decoder, norm, num_experts
from lazyload.families.family import Family
from lazyload.families.mixtral import NUMBERED_EXPERTS
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_NORMS = {"self_attn.q_norm.weight": "attn.q_norm : (head head_dim)"}
_NORMS |= {"self_attn.k_norm.weight": "attn.k_norm : (kv_head head_dim)"}
_BIAS = {"block_sparse_moe.e_score_correction_bias": "router.selection_bias : expert"}
_LAYER = huggingface.ATTENTION | huggingface.NORMS | _NORMS | NUMBERED_EXPERTS | _BIAS

# What the files say of this and of earlier models, and transformers takes for granted.
_FIXED = {"use_qk_norm": True, "qk_norm_type": "per_layer", "scoring_func": "sigmoid", "use_routing_bias": True}
_FIXED |= {"shared_intermediate_size": 0, "layernorm_mlp_beta": 1.0}
_FIXED |= {"layernorm_full_attention_beta": 1.0, "layernorm_linear_attention_beta": 1.0}


def minimax_m2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a MiniMax M2; what older files call `rotary_dim` is a share of the head."""
    heads = Fields(values)
    head_dim = heads.size("head_dim", 128)
    share = heads.size("rotary_dim", head_dim) / head_dim
    defaults = {"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 196_608}
    fields = Fields(values, **defaults, partial_rotary_factor=share)
    count = fields.size("num_hidden_layers")
    for name, value in {**_FIXED, "attn_type_list": [1] * count}.items():
        fields.refuse(name, value)
    # Layers that predict further tokens are not part of the model; sizes of MLPs and shared experts that it has not.
    fields.ignore("rotary_dim", "num_mtp_modules", "mtp_transformer_layers", "mlp_intermediate_size", "shared_moe_mode")
    experts = Experts(
        num_experts=num_experts(fields, "num_local_experts", "num_experts"),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=fields.size("intermediate_size"),
        activation=activation(fields),
        scores="sigmoid",
        selection_bias=True,
    )
    mixer = attention(fields, qk_norm="full", norm=norm(fields))
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, theta=5e6, partial=True))
    return decoder(fields, (Layer(mixer=mixer, feed_forward=experts, norm=norm(fields)),) * count)


def minimax_m2_huggingface(config: DecoderConfig) -> Layout:
    """Mixtral's names, the norms over all heads, and the router's bias."""
    return huggingface.decoder(config, _LAYER)


MINIMAX_M2 = Family(
    "minimax_m2",
    ("minimax_m2",),
    minimax_m2_config,
    minimax_m2_huggingface,
    title="MiniMax M2",
    covered="sigmoid router, q/k norms over all heads, partial rotary",
    since="0.2",
)
