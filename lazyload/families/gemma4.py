"""Gemma 4, dense and with experts, and the text models of its multimodal repositories (`gemma4`, `gemma4_unified`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lazyload.architecture import Attention, DecoderConfig, Experts, Layer, PerLayerEmbedding, PerLayerInput
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.shape import activation, attention, decoder, layer_types, mlp, norm, num_experts, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.MLP,
    **huggingface.SANDWICH_NORMS,
    "post_feedforward_layernorm_1.weight": "post_dense_norm : embed",
    "pre_feedforward_layernorm_2.weight": "moe_norm : embed",
    "post_feedforward_layernorm_2.weight": "post_moe_norm : embed",
    "router.proj.weight": "router : expert embed",
    "router.scale": "router.norm : embed",
    "router.per_expert_scale": "router.expert_scale : expert",
    "experts.gate_up_proj": "experts.in : expert (gate_up expert_mlp) embed",
    "experts.down_proj": "experts.out : expert embed expert_mlp",
    "per_layer_input_gate.weight": "ple.gate : ple_dim embed",
    "per_layer_projection.weight": "ple.out : embed ple_dim",
    "post_per_layer_input_norm.weight": "ple.norm : embed",
    "layer_scalar": "layer_scalar : 1",
}
_PER_LAYER_EMBEDDING = {
    "model.embed_tokens_per_layer.weight": "ple.embed : ple_vocab ple_embed",
    "model.per_layer_model_projection.weight": "ple.proj : ple_embed embed",
    "model.per_layer_projection_norm.weight": "ple.proj_norm : ple_dim",
}
# How images and sounds become embeddings.
_TOWERS = (
    "audio_config",
    "vision_soft_tokens_per_image",
    "vision_soft_tokens_per_video_frame",
    "audio_soft_tokens_per_image",
    "audio_ms_per_token",
)
_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


def gemma4_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma 4: of a text model, or the text model's part of a multimodal one."""
    fields = _fields(values)
    kinds, shared = _kinds(fields), fields.get("num_kv_shared_layers", 0)
    own = kinds[: len(kinds) - shared]
    if shared < 0 or set(own) != set(kinds):
        raise ConfigError(
            f"{fields.where}: num_kv_shared_layers = {shared}, but of {', '.join(sorted(set(kinds)))}, each must be "
            f"among the first of the {len(kinds)} layers, whose keys and values the others share"
        )
    mixers = _mixers(fields, kinds)
    sources = {kind: number for number, kind in enumerate(own)}
    dense = mlp(fields, "hidden_activation", "gelu_pytorch_tanh")
    wide = replace(dense, mlp_dim=2 * dense.mlp_dim) if fields.get("use_double_wide_mlp", False) else dense
    embedding, per_layer_input = _per_layer_inputs(fields, len(kinds))
    plain = Layer(
        mixer=mixers[kinds[0]],
        feed_forward=dense,
        norm=norm(fields),
        post_norms=True,
        experts=_experts(fields),
        per_layer_input=per_layer_input,
        scalar=True,
    )
    layers = [replace(plain, mixer=mixers[kind]) for kind in own]
    layers += [
        replace(plain, mixer=replace(mixers[kind], kv_layer=sources[kind]), feed_forward=wide)
        for kind in kinds[len(own) :]
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
    """The text model lies behind a prefix where there are towers.

    Layers that share keys and values are stored with projections of their own all the same.
    """
    sharing = [number for number in range(config.num_layers) if config.kv_layer(number) != number]
    unused = [f"*layers.{number}.self_attn.{name}.*" for number in sharing for name in ("k_proj", "v_proj", "k_norm")]
    towers = ("vision_tower", "audio_tower", "vision_embedder", "embed_vision", "embed_audio")
    return huggingface.decoder(
        config,
        _LAYER,
        further=_PER_LAYER_EMBEDDING,
        skipped=[*(f"*{tower}.*" for tower in towers), *unused],
        aliases=huggingface.TEXT_MODEL,
    )


def _fields(values: Mapping[str, Any]) -> Fields:
    """The text model's fields. A unified model has neither experts nor inputs of the layers' own."""
    kind = str(values.get("model_type"))
    unified = kind.startswith("gemma4_unified")
    defaults: dict[str, Any] = {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 262_144 if unified else 131_072,
        "sliding_window": 1024 if unified else 512,
        "hidden_size_per_layer_input": 0 if unified else 256,
    }
    if kind.endswith("_text"):
        fields = Fields(values, **defaults)
    else:
        fields = text_fields({"tie_word_embeddings": True, **values}, towers=_TOWERS, **defaults)
    # Images' tokens see each other both ways, those of a text do not.
    fields.refuse("use_bidirectional_attention", "vision")
    if unified:
        fields.refuse("hidden_size_per_layer_input")
        fields.refuse("enable_moe_block")
    return fields


def _kinds(fields: Fields) -> list[str]:
    """The kind of each layer; the last one sees everything, whatever the file says."""
    count = fields.size("num_hidden_layers")
    default = ["full_attention" if (number + 1) % 6 == 0 else "sliding_attention" for number in range(count)]
    return [*layer_types(fields, default)[:-1], "full_attention"]


def _mixers(fields: Fields, kinds: Sequence[str]) -> dict[str, Attention]:
    """The attention of each kind of layer that there is; its logits are not divided."""
    bias, v_from_k = fields.get("attention_bias", False), fields.get("attention_k_eq_v", False)
    plain = attention(
        fields, query_scale=1.0, qk_norm="head", v_norm=True, norm=norm(fields), qkv_bias=bias, o_bias=bias
    )
    sizes, width = _sizes(fields, kinds, v_from_k), window(fields)
    dims = {kind: head_dim for kind, (head_dim, _) in sizes.items()}
    ropes = rope.read_nested(fields, rope.parameters_of(fields) or _ROPE, dims)
    return {
        kind: replace(
            plain,
            head_dim=head_dim,
            num_kv_heads=num_kv_heads,
            rope=ropes[kind],
            window=width if kind == "sliding_attention" else None,
            v_from_k=v_from_k and kind == "full_attention",
        )
        for kind, (head_dim, num_kv_heads) in sizes.items()
    }


def _sizes(fields: Fields, kinds: Sequence[str], v_from_k: bool) -> dict[str, tuple[int, int]]:
    """For each kind of layer that there is, the width of its heads, and the number of those of keys and values.

    The hub's files say how layers that see everything differ; those that transformers 5.24 saves, how each layer does.
    """
    usual = {"head_dim": fields.size("head_dim"), "num_key_value_heads": fields.size("num_key_value_heads")}
    full = {"head_dim": fields.size("global_head_dim", 512)}
    heads = fields.optional("num_global_key_value_heads", int)
    if v_from_k and heads is not None:
        full["num_key_value_heads"] = heads
    default = {str(number): full for number, kind in enumerate(kinds) if kind == "full_attention"}
    by_number = fields.optional("per_layer_config", dict, default) or {}
    layers = Fields(
        {number.lstrip("0") or "0": differing for number, differing in by_number.items()},
        where=f"{fields.where}: per_layer_config",
    )
    sizes: dict[str, tuple[int, int]] = {}
    for number, kind in enumerate(kinds):
        layer = Fields(layers.optional(str(number), dict) or {}, where=f"{layers.where}: {number}", **usual)
        own = (layer.size("head_dim"), layer.size("num_key_value_heads"))
        layer.finish()
        if sizes.setdefault(kind, own) != own:
            raise ConfigError(
                f"{layer.where}: head_dim, num_key_value_heads = {own} is not implemented: they are {sizes[kind]} in "
                f"earlier layers with {kind}"
            )
    layers.finish()
    return sizes


def _experts(fields: Fields) -> Experts | None:
    if not fields.get("enable_moe_block", False):
        fields.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
        return None
    return Experts(
        num_experts=num_experts(fields, "num_experts", selected="top_k_experts"),
        num_selected=fields.size("top_k_experts"),
        mlp_dim=fields.size("moe_intermediate_size"),
        activation=activation(fields, "hidden_activation", "gelu_pytorch_tanh"),
        router_norm=norm(fields),
        expert_scale=True,
    )


def _per_layer_inputs(fields: Fields, num_layers: int) -> tuple[PerLayerEmbedding | None, PerLayerInput | None]:
    """Where the layers' own inputs come from, and what each makes of its one."""
    dim = fields.get("hidden_size_per_layer_input", 0)
    if not dim:
        fields.ignore("vocab_size_per_layer_input")
        return None, None
    rows = fields.size("vocab_size_per_layer_input", 262_144)
    gate = activation(fields, "hidden_activation", "gelu_pytorch_tanh")
    return (
        PerLayerEmbedding(vocab_size=rows, num_layers=num_layers, dim=dim, norm=norm(fields)),
        PerLayerInput(dim=dim, activation=gate, norm=norm(fields)),
    )


GEMMA4 = Family(
    "gemma4", ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), gemma4_config, gemma4_huggingface
)
