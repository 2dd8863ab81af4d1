"""gpt-oss: sinks in the attention, and experts with biases and a clamped gate."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, norm, num_experts, sliding, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

# Experts are stacked, inputs first; the columns of gate and up projection take turns.
_EXPERTS = {
    "mlp.router.weight": "router : expert embed",
    "mlp.router.bias": "router.bias : expert",
    "mlp.experts.gate_up_proj": "experts.in : expert embed (expert_mlp gate_up)",
    "mlp.experts.gate_up_proj_bias": "experts.in.bias : expert (expert_mlp gate_up)",
    "mlp.experts.down_proj": "experts.out : expert expert_mlp embed",
    "mlp.experts.down_proj_bias": "experts.out.bias : expert embed",
}

_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def gpt_oss_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a gpt-oss."""
    if not values.get("rope_scaling") and values.get("rope_parameters") is None:
        values = {**values, "rope_parameters": _ROPE}
    fields = Fields(values, num_key_value_heads=8, head_dim=64, max_position_embeddings=131_072, rms_norm_eps=1e-5)
    bias = fields.get("attention_bias", True)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, sinks=True)
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, theta=150_000.0))
    width = window(fields, default=128)
    slides = sliding(fields, [number % 2 == 0 for number in range(fields.size("num_hidden_layers"))])
    fields.refuse("hidden_act", "silu")
    # The same number by another name, in the files of the first release.
    fields.ignore("initial_context_length", "experts_per_token")
    experts = Experts(
        num_experts=num_experts(fields, "num_local_experts", "num_experts"),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=fields.size("intermediate_size"),
        scores="topk_softmax",
        router_bias=True,
        bias=True,
        clamped_swiglu=(fields.get("swiglu_alpha", 1.702), fields.get("swiglu_limit", 7.0)),
    )
    layers = [
        Layer(mixer=replace(mixer, window=width if slid else None), feed_forward=experts, norm=norm(fields))
        for slid in slides
    ]
    return decoder(fields, layers)


def gpt_oss_huggingface(config: DecoderConfig) -> Layout:
    """Plain attention with sinks, and the experts under their own names."""
    return huggingface.decoder(config, huggingface.ATTENTION | huggingface.NORMS | _EXPERTS)


GPT_OSS = Family(
    "gpt_oss",
    ("gpt_oss",),
    gpt_oss_config,
    gpt_oss_huggingface,
    title="gpt-oss",
    covered="attention sinks, clamped experts",
    since="0.1",
)
