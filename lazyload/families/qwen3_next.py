"""Qwen 3 Next: three of four layers are gated delta nets, the fourth has gated attention; experts with a shared one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, GatedDeltaNet, Layer
from lazyload.architecture.block import Mixer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, attention, decoder, layer_types, mlp, norm, num_experts
from lazyload.families.family import Family
from lazyload.families.qwen import sparse_layers
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_DELTA_NET = {
    "linear_attn.in_proj_qkvz.weight": "delta.qkvz : (key_head qkvz) embed",
    "linear_attn.in_proj_ba.weight": "delta.ba : (key_head beta_alpha) embed",
    "linear_attn.conv1d.weight": "delta.conv_q | delta.conv_k | delta.conv_v : "
    "(key_head key_dim | key_head key_dim | key_head group value_dim) 1 conv_width",
    "linear_attn.A_log": "delta.a_log : (key_head group)",
    "linear_attn.dt_bias": "delta.dt_bias : (key_head group)",
    "linear_attn.norm.weight": "delta.norm : value_dim",
    "linear_attn.out_proj.weight": "delta.o : embed (key_head group value_dim)",
}
_SHARED_EXPERT = {
    "mlp.shared_expert.{gate_up:gate,up}_proj.weight": "shared.in : shared_mlp embed",
    "mlp.shared_expert.down_proj.weight": "shared.out : embed shared_mlp",
    "mlp.shared_expert_gate.weight": "shared.gate : 1 embed",
}
_LAYER = {
    **huggingface.LAYER,
    **huggingface.EXPERTS,
    **_SHARED_EXPERT,
    **_DELTA_NET,
    "self_attn.q_proj.weight": "attn.q : (head query_gate head_dim) embed",
    "self_attn.q_proj.bias": "attn.q.bias : (head query_gate head_dim)",
}


def qwen3_next_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Qwen 3 Next."""
    fields = Fields(
        values,
        num_key_value_heads=2,
        head_dim=256,
        partial_rotary_factor=0.25,
        max_position_embeddings=32_768,
        norm_topk_prob=True,
    )
    plus_one = norm(fields, offset=1.0)
    bias = fields.get("attention_bias", False)
    full = attention(fields, gated=True, qk_norm="head", norm=plus_one, qkv_bias=bias, o_bias=bias)
    full = replace(full, rope=rope.read(fields, full.head_dim, partial=True))
    mixers: dict[str, Mixer] = {"full_attention": full, "linear_attention": _delta_net(fields)}
    dense = mlp(fields)
    experts = Experts(
        num_experts=num_experts(fields, "num_experts", "num_local_experts"),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=fields.size("moe_intermediate_size"),
        activation=activation(fields),
        shared_mlp_dim=fields.size("shared_expert_intermediate_size", 512),
        shared_gate=True,
        normalize=fields.get("norm_topk_prob", False),
    )
    interval, count = fields.size("full_attention_interval", 4), fields.size("num_hidden_layers")
    default = ["linear_attention" if (number + 1) % interval else "full_attention" for number in range(count)]
    kinds = layer_types(fields, default, *mixers)
    layers = [
        Layer(mixer=mixers[kind], feed_forward=experts if sparse else dense, norm=plus_one)
        for kind, sparse in zip(kinds, sparse_layers(fields), strict=True)
    ]
    return decoder(fields, layers)


def _delta_net(fields: Fields) -> GatedDeltaNet:
    return GatedDeltaNet(
        num_key_heads=fields.size("linear_num_key_heads", 16),
        num_value_heads=fields.size("linear_num_value_heads", 32),
        key_dim=fields.size("linear_key_head_dim", 128),
        value_dim=fields.size("linear_value_head_dim", 128),
        conv_width=fields.size("linear_conv_kernel_dim", 4),
        activation=activation(fields),
        norm=norm(fields),
    )


def qwen3_next_huggingface(config: DecoderConfig) -> Layout:
    """Beside the model lie the layers that predict further tokens."""
    return huggingface.decoder(config, _LAYER, skipped=["mtp.*"])


QWEN3_NEXT = Family("qwen3_next", ("qwen3_next",), qwen3_next_config, qwen3_next_huggingface)
