"""Qwen 3 Next: three of four layers are gated delta nets, the fourth has gated attention; experts with a shared one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, GatedDeltaNet, Layer
from lazyload.architecture.block import Block, Mixer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, attention, decoder, layer_types, mlp, norm, num_experts
from lazyload.families.family import Family
from lazyload.families.qwen import MROPE, sparse_layers
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

GATED_SHARED_EXPERT = {
    "mlp.shared_expert.{gate_up:gate,up}_proj.weight": "shared.in : shared_mlp embed",
    "mlp.shared_expert.down_proj.weight": "shared.out : embed shared_mlp",
    "mlp.shared_expert_gate.weight": "shared.gate : 1 embed",
}

LAYER = {
    **huggingface.LAYER,
    "self_attn.q_proj.weight": "attn.q : (head query_gate head_dim) embed",
    "self_attn.q_proj.bias": "attn.q.bias : (head query_gate head_dim)",
    "linear_attn.conv1d.weight": "delta.conv_q | delta.conv_k | delta.conv_v : "
    "(key_head key_dim | key_head key_dim | key_head group value_dim) 1 conv_width",
    "linear_attn.A_log": "delta.a_log : (key_head group)",
    "linear_attn.dt_bias": "delta.dt_bias : (key_head group)",
    "linear_attn.norm.weight": "delta.norm : value_dim",
    "linear_attn.out_proj.weight": "delta.o : embed (key_head group value_dim)",
    **GATED_SHARED_EXPERT,
}
"""A layer of a Qwen 3 Next or 3.5, without the delta net's projections and the routed experts."""

_LAYER = {
    **LAYER,
    **huggingface.EXPERTS,
    "linear_attn.in_proj_qkvz.weight": "delta.qkvz : (key_head qkvz) embed",
    "linear_attn.in_proj_ba.weight": "delta.ba : (key_head beta_alpha) embed",
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
    dense, experts = mlp(fields), gated_experts(fields, normalize=fields.get("norm_topk_prob", False))
    return hybrid(fields, [experts if sparse else dense for sparse in sparse_layers(fields)], fused=True)


def hybrid(fields: Fields, feed_forwards: Sequence[Block], *, fused: bool) -> DecoderConfig:
    """Layers with gated delta nets and with gated attention by turns.

    Args:
        fields: The model's fields, wherever they stand.
        feed_forwards: What each layer has beside them.
        fused: How the delta nets' projections are cut, see `GatedDeltaNet`.
    """
    plus_one = norm(fields, offset=1.0)
    bias = fields.get("attention_bias", False)
    full = attention(fields, gated=True, qk_norm="head", norm=plus_one, qkv_bias=bias, o_bias=bias)
    rotary = rope.read(fields, full.head_dim, partial=True, ignored=MROPE)
    mixers: dict[str, Mixer] = {
        "full_attention": replace(full, rope=rotary),
        "linear_attention": _delta_net(fields, fused=fused),
    }
    interval, count = fields.size("full_attention_interval", 4), len(feed_forwards)
    default = ["linear_attention" if (number + 1) % interval else "full_attention" for number in range(count)]
    kinds = layer_types(fields, default, *mixers)
    layers = [
        Layer(mixer=mixers[kind], feed_forward=feed_forward, norm=plus_one)
        for kind, feed_forward in zip(kinds, feed_forwards, strict=True)
    ]
    return decoder(fields, layers)


def gated_experts(fields: Fields, *, normalize: bool) -> Experts:
    """Experts beside a shared one, of which each token decides how much it takes."""
    return Experts(
        num_experts=num_experts(fields, "num_experts", "num_local_experts"),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=fields.size("moe_intermediate_size"),
        activation=activation(fields),
        shared_mlp_dim=fields.size("shared_expert_intermediate_size", 512),
        shared_gate=True,
        normalize=normalize,
    )


def _delta_net(fields: Fields, *, fused: bool) -> GatedDeltaNet:
    return GatedDeltaNet(
        num_key_heads=fields.size("linear_num_key_heads", 16),
        num_value_heads=fields.size("linear_num_value_heads", 32),
        key_dim=fields.size("linear_key_head_dim", 128),
        value_dim=fields.size("linear_value_head_dim", 128),
        conv_width=fields.size("linear_conv_kernel_dim", 4),
        activation=activation(fields),
        fused=fused,
        norm=norm(fields),
    )


def qwen3_next_huggingface(config: DecoderConfig) -> Layout:
    """Beside the model lie the layers that predict further tokens."""
    return huggingface.decoder(config, _LAYER, skipped=["mtp.*"])


QWEN3_NEXT = Family(
    "qwen3_next",
    ("qwen3_next",),
    qwen3_next_config,
    qwen3_next_huggingface,
    title="Qwen 3 Next",
    covered="gated delta nets with a short convolution, gated attention, partial rotary, gated shared expert; "
    "without the layers that predict further tokens",
    since="0.2",
)
