"""Gemma 4, dense and with experts: text models, and those of multimodal repositories (`gemma4`, `gemma4_unified`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lazyload.architecture import Activation, Attention, DecoderConfig, Experts, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.per_layer import kv_layers, per_layer_inputs, sizes_by_kind
from lazyload.config_json.shape import attention, decoder, layer_types, mlp, norm, num_experts, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.MLP,
    **huggingface.SANDWICH_NORMS,
    **huggingface.PER_LAYER_INPUT,
    "post_feedforward_layernorm_1.weight": "post_dense_norm : embed",
    "pre_feedforward_layernorm_2.weight": "moe_norm : embed",
    "post_feedforward_layernorm_2.weight": "post_moe_norm : embed",
    "router.proj.weight": "router : expert embed",
    "router.scale": "router.norm : embed",
    "router.per_expert_scale": "router.expert_scale : expert",
    "experts.gate_up_proj": "experts.in : expert (gate_up expert_mlp) embed",
    "experts.down_proj": "experts.out : expert embed expert_mlp",
    "layer_scalar": "layer_scalar : 1",
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_ROPE = {
    _SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262_144,
}
_UNIFIED_DEFAULTS: Mapping[str, Any] = {
    **_DEFAULTS,
    "max_position_embeddings": 262_144,
    "sliding_window": 1024,
    "hidden_size_per_layer_input": 0,
}
# How images and sounds become embeddings.
_TOWERS = (
    "audio_config",
    "audio_ms_per_token",
    "audio_soft_tokens_per_image",
    "vision_soft_tokens_per_image",
    "vision_soft_tokens_per_video_frame",
)


def gemma4_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma 4: of a text model, or the text model's part of a multimodal one."""
    fields = _fields(values)
    count = fields.size("num_hidden_layers")
    kinds = layer_types(fields, [_SLIDING if (number + 1) % 6 else _FULL for number in range(count)])
    # transformers makes the last layer see everything, whatever the file says.
    kinds[-1] = _FULL
    mixers = _mixers(fields, kinds)
    dense = mlp(fields, "hidden_activation", "gelu_pytorch_tanh")
    wide = replace(dense, mlp_dim=2 * dense.mlp_dim) if fields.get("use_double_wide_mlp", False) else dense
    embedding, per_layer_input = per_layer_inputs(fields, count, dense.activation)
    experts = _experts(fields, dense.activation)
    layers = [
        Layer(
            mixer=replace(mixers[kind], kv_layer=kv_layer),
            feed_forward=dense if kv_layer is None else wide,
            norm=norm(fields),
            post_norms=True,
            experts=experts,
            per_layer_input=per_layer_input,
            scalar=True,
        )
        for kind, kv_layer in zip(kinds, kv_layers(fields, kinds), strict=True)
    ]
    return decoder(
        fields,
        layers,
        tied=True,
        embed_scale=math.sqrt(fields.size("hidden_size")),
        final_softcap=fields.optional("final_logit_softcapping", float),
        per_layer_embedding=embedding,
    )


def gemma4_huggingface(config: DecoderConfig) -> Layout:
    """The text model lies behind a prefix where there are towers."""
    towers = ("vision_tower", "audio_tower", "vision_embedder", "embed_vision", "embed_audio")
    return huggingface.decoder(
        config,
        _LAYER,
        further=huggingface.PER_LAYER_EMBEDDING,
        skipped=[*(f"*{tower}.*" for tower in towers), *huggingface.unused_keys_and_values(config)],
        aliases=huggingface.TEXT_MODEL,
    )


def _fields(values: Mapping[str, Any]) -> Fields:
    """The text model's fields, wherever they stand."""
    kind = str(values.get("model_type"))
    unified = kind.startswith("gemma4_unified")
    defaults = _UNIFIED_DEFAULTS if unified else _DEFAULTS
    if kind.endswith("_text"):
        fields = Fields(values, **defaults)
    else:
        fields = text_fields({"tie_word_embeddings": True, **values}, towers=_TOWERS, **defaults)
    # The tokens of an image see each other both ways, those of a text do not.
    fields.refuse("use_bidirectional_attention", "vision")
    if unified:
        fields.refuse("hidden_size_per_layer_input")
        fields.refuse("enable_moe_block")
    return fields


def _mixers(fields: Fields, kinds: Sequence[str]) -> dict[str, Attention]:
    """The attention of each kind of layer that there is; its logits are not divided."""
    bias, v_from_k = fields.get("attention_bias", False), fields.get("attention_k_eq_v", False)
    plain = attention(
        fields, query_scale=1.0, qk_norm="head", v_norm=True, norm=norm(fields), qkv_bias=bias, o_bias=bias
    )
    full = {"head_dim": fields.size("global_head_dim", 512)}
    heads = fields.optional("num_global_key_value_heads", int)
    if v_from_k and heads is not None:
        full["num_key_value_heads"] = heads
    sizes = sizes_by_kind(fields, kinds, ("head_dim", "num_key_value_heads"), {_FULL: full})
    ropes = rope.read_nested(fields, rope.parameters_of(fields) or _ROPE, {kind: sizes[kind][0] for kind in sizes})
    width = window(fields)
    return {
        kind: replace(
            plain,
            head_dim=head_dim,
            num_kv_heads=num_kv_heads,
            rope=ropes[kind],
            window=width if kind == _SLIDING else None,
            v_from_k=v_from_k and kind == _FULL,
        )
        for kind, (head_dim, num_kv_heads) in sizes.items()
    }


def _experts(fields: Fields, activation: Activation) -> Experts | None:
    """The experts beside the MLP of every layer, if they are switched on."""
    if not fields.get("enable_moe_block", False):
        fields.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
        return None
    return Experts(
        num_experts=num_experts(fields, "num_experts", selected="top_k_experts"),
        num_selected=fields.size("top_k_experts"),
        mlp_dim=fields.size("moe_intermediate_size"),
        activation=activation,
        router_norm=norm(fields),
        expert_scale=True,
    )


GEMMA4 = Family(
    "gemma4",
    ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
    gemma4_config,
    gemma4_huggingface,
    title="Gemma 4",
    covered="head sizes by kind of layer, K = V, shared keys and values, per-layer embeddings, experts beside the MLP; "
    "the text model of multimodal repositories",
    since="0.2",
)
