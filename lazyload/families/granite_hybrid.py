"""Granite 4: a Granite with Mamba 2 layers, and experts beside a shared one."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import MLP, DecoderConfig, Experts, Layer, Mamba2
from lazyload.architecture.block import Block, Mixer
from lazyload.config_json import rope
from lazyload.config_json.experts import experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, attention, decoder, layer_types, norm
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_KINDS = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"}


def granite_hybrid_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Granite 4."""
    fields = Fields(values, max_position_embeddings=2048, num_experts_per_tok=2)
    fields.refuse("normalization_function", "rmsnorm")
    fields.refuse("position_embedding_type", "rope", "nope")
    # How the weights were made, and how long the chunks of transformers' computation are.
    fields.ignore("init_method", "mamba_chunk_size")
    bias = fields.get("attention_bias", False)
    full = attention(fields, qkv_bias=bias, o_bias=bias, query_scale=fields.get("attention_multiplier", 1.0))
    rotary = rope.read(fields, full.head_dim)
    rotated = fields.get("position_embedding_type", "nope") == "rope"
    mixers: dict[str, Mixer] = {"attention": replace(full, rope=rotary if rotated else None), "mamba": _mamba(fields)}
    name = "layers_block_type" if "layers_block_type" in fields else "layer_types"
    kinds = layer_types(fields, ["mamba"] * fields.size("num_hidden_layers"), *_KINDS, name=name)
    layer = Layer(
        mixer=full,
        feed_forward=_feed_forward(fields),
        norm=norm(fields),
        residual_scale=fields.get("residual_multiplier", 1.0),
    )
    return decoder(
        fields,
        [replace(layer, mixer=mixers[_KINDS[kind]]) for kind in kinds],
        embed_scale=fields.get("embedding_multiplier", 1.0),
        logits_scale=1 / fields.positive("logits_scaling", 1.0),
    )


def granite_hybrid_huggingface(config: DecoderConfig) -> Layout:
    """The projections of a Mamba layer lie in one tensor; the shared expert is the MLP where there are no others."""
    shared, width = ("shared", "shared_mlp") if config.first(Experts) else ("mlp", "mlp")
    rows = {
        **huggingface.ATTENTION,
        **huggingface.NORMS,
        **huggingface.mamba2("mamba"),
        "block_sparse_moe.router.layer.weight": "router : expert embed",
        "block_sparse_moe.input_linear.weight": "experts.in : expert (gate_up expert_mlp) embed",
        "block_sparse_moe.output_linear.weight": "experts.out : expert embed expert_mlp",
        "shared_mlp.input_linear.weight": f"{shared}.in : (gate_up {width}) embed",
        "shared_mlp.output_linear.weight": f"{shared}.out : embed {width}",
    }
    return huggingface.decoder(config, rows)


def _feed_forward(fields: Fields) -> Block:
    width = fields.size("shared_intermediate_size", 1024)
    if fields.get("num_local_experts", 8) == 0:
        fields.ignore("num_experts_per_tok", "intermediate_size")
        return MLP(mlp_dim=width, activation=activation(fields))
    return experts(fields, "num_local_experts", shared_mlp_dim=width, scores="topk_softmax")


def _mamba(fields: Fields) -> Mamba2:
    num_heads, num_groups = fields.size("mamba_n_heads", 128), fields.size("mamba_n_groups", 1)
    inner = fields.size("mamba_expand", 2) * fields.size("hidden_size")
    automatic = fields.optional("mamba_d_head", object, "auto") == "auto"
    head_dim = inner // num_heads if automatic else fields.size("mamba_d_head")
    if num_heads * head_dim != inner or num_heads % num_groups:
        raise ConfigError(
            f"{fields.where}: mamba_n_heads = {num_heads} with mamba_d_head = {head_dim} in mamba_n_groups = "
            f"{num_groups} do not fit mamba_expand * hidden_size = {inner}"
        )
    least, longest = _limits(fields)
    return Mamba2(
        num_heads=num_heads,
        head_dim=head_dim,
        num_groups=num_groups,
        state_dim=fields.size("mamba_d_state", 256),
        conv_width=fields.size("mamba_d_conv", 4),
        activation=activation(fields),
        conv_bias=fields.optional("mamba_conv_bias", bool, True) or False,
        proj_bias=fields.get("mamba_proj_bias", False),
        least_step=least,
        longest_step=longest,
        norm=norm(fields),
    )


def _limits(fields: Fields) -> list[float]:
    """`time_step_limit`; transformers writes an infinite one as an object with a name, JSON having no number for it."""
    given: Any = fields.optional("time_step_limit", object)
    limits = []
    for limit in given if isinstance(given, list | tuple) else [0.0, math.inf] if given is None else []:
        infinite = limit == {"__float__": "Infinity"}
        limits.append(math.inf if infinite else limit)
    if len(limits) != 2 or not all(isinstance(limit, int | float) for limit in limits):
        raise ConfigError(f"{fields.where}: time_step_limit = {given!r:.200} must be two numbers")
    return [float(limit) for limit in limits]


GRANITE_HYBRID = Family(
    "granitemoehybrid",
    ("granitemoehybrid",),
    granite_hybrid_config,
    granite_hybrid_huggingface,
    title="Granite 4",
    covered="Mamba 2 layers, with and without experts, with and without RoPE",
    since="0.2",
)
