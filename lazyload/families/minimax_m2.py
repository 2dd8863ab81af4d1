"""MiniMax M2: experts chosen by a sigmoid, norms of all heads' queries and keys together, partial rotary."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.experts import experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, norm
from lazyload.families.family import Family
from lazyload.families.mixtral import NUMBERED_EXPERTS
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.NORMS,
    **NUMBERED_EXPERTS,
    **huggingface.FULL_QK_NORMS,
    "block_sparse_moe.e_score_correction_bias": "router.selection_bias : expert",
}
# What the files say of this and of earlier models, and transformers takes for granted.
_FIXED = {"use_qk_norm": True, "qk_norm_type": "per_layer", "scoring_func": "sigmoid", "use_routing_bias": True}
_FIXED |= {"shared_intermediate_size": 0, "layernorm_mlp_beta": 1.0}
_FIXED |= {"layernorm_full_attention_beta": 1.0, "layernorm_linear_attention_beta": 1.0}


def minimax_m2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a MiniMax M2."""
    fields = Fields(values, num_key_value_heads=8, head_dim=128, max_position_embeddings=196_608)
    count = fields.size("num_hidden_layers")
    for name, value in {**_FIXED, "attn_type_list": [1] * count}.items():
        fields.refuse(name, value)
    # Layers that predict further tokens are not part of the model; sizes of MLPs and shared experts that it has not.
    fields.ignore("num_mtp_modules", "mtp_transformer_layers", "mlp_intermediate_size", "shared_moe_mode")
    mixer = attention(fields, qk_norm="full", norm=norm(fields))
    feed_forward = experts(fields, "num_local_experts", "num_experts", scores="sigmoid", selection_bias=True)
    rotary = rope.read(fields, mixer.head_dim, theta=5e6, partial=True, rotated="rotary_dim")
    layer = Layer(mixer=replace(mixer, rope=rotary), feed_forward=feed_forward, norm=norm(fields))
    return decoder(fields, (layer,) * count)


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
