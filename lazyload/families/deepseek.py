"""DeepSeek V2 and V3 (also R1): latent attention, and experts after the first layers."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Experts, LatentAttention, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, num_experts
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

# More layers for predicting further tokens than any release has behind those of the model itself.
_MOST_PREDICTION_LAYERS = 8


def deepseek_v2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a DeepSeek V2."""
    fields = Fields(values, max_position_embeddings=2048, q_lora_rank=1536, n_shared_experts=2)
    fields.refuse("topk_method", "greedy", "group_limited_greedy")
    fields.refuse("scoring_func", "softmax")
    # transformers reads it and never divides.
    fields.ignore("norm_topk_prob")
    limited = fields.get("topk_method", "greedy") == "group_limited_greedy"
    fields.ignore("n_group", "topk_group")
    config = _config(
        fields,
        interleaved=True,
        mlp_bias=fields.get("mlp_bias", False),
        normalize=False,
        scale=fields.get("routed_scaling_factor", 1.0),
        **_groups(fields) if limited else {},
    )
    fields.finish()
    return config


def deepseek_v3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a DeepSeek V3."""
    fields = Fields(
        values,
        max_position_embeddings=4096,
        q_lora_rank=1536,
        first_k_dense_replace=3,
        n_shared_experts=1,
        n_group=8,
        topk_group=4,
    )
    fields.refuse("scoring_func", "sigmoid")
    fields.refuse("topk_method", "noaux_tc")
    # Layers that predict further tokens are not part of the model.
    fields.ignore("num_nextn_predict_layers", "num_mtp_layers")
    config = _config(
        fields,
        interleaved=fields.optional("rope_interleave", bool, True) or False,
        scores="sigmoid",
        normalize=fields.optional("norm_topk_prob", bool, True) or False,
        scale=fields.get("routed_scaling_factor", 2.5),
        selection_bias=True,
        group_score="top2",
        **_groups(fields),
    )
    fields.finish()
    return config


def deepseek_v2_huggingface(config: DecoderConfig) -> Layout:
    """The layers before the experts have a plain MLP."""
    return huggingface.decoder(config, _layer(config))


def deepseek_v3_huggingface(config: DecoderConfig) -> Layout:
    """As in DeepSeek V2, but behind the last layer there may be ones that predict further tokens.

    Those have a projection that no other layer has (https://arxiv.org/abs/2412.19437, section 2.2).
    """
    behind = [f"model.layers.{config.num_layers + number}" for number in range(_MOST_PREDICTION_LAYERS)]
    skipped = [f"{layer}.* if {layer}.eh_proj.weight" for layer in behind]
    return huggingface.decoder(config, _layer(config), skipped=skipped)


def _layer(config: DecoderConfig) -> dict[str, str]:
    layer = {**_latent_attention(config), **huggingface.norms(config)}
    if config.dense_layers:
        layer |= huggingface.mlp(config)
    if config.sparse_layers and config.experts:
        layer |= huggingface.EXPERTS
        if config.experts.selection_bias:
            layer["mlp.gate.e_score_correction_bias"] = "router.selection_bias : expert"
        if config.experts.shared_mlp_dim:
            layer["mlp.shared_experts.{gate_up:gate,up}_proj.weight"] = "shared.in : shared_mlp embed"
            layer["mlp.shared_experts.down_proj.weight"] = "shared.out : embed shared_mlp"
        if config.experts.shared_bias:
            layer["mlp.shared_experts.{gate_up:gate,up}_proj.bias"] = "shared.in.bias : shared_mlp"
            layer["mlp.shared_experts.down_proj.bias"] = "shared.out.bias : embed"
    return layer


def _config(fields: Fields, *, interleaved: bool, mlp_bias: bool = False, **routing: Any) -> DecoderConfig:
    """What the versions share; `routing` are arguments of `Experts`."""
    num_heads = fields.size("num_attention_heads")
    latent = LatentAttention(
        q_rank=fields.optional("q_lora_rank", int),
        kv_rank=fields.size("kv_lora_rank"),
        nope_dim=fields.size("qk_nope_head_dim"),
        rope_dim=fields.size("qk_rope_head_dim"),
        v_dim=fields.size("v_head_dim"),
    )
    # Both follow from the parts, whatever the file says; the keys' heads are those of the queries.
    fields.ignore("head_dim", "qk_head_dim", "num_key_value_heads")
    rotary = rope.read(fields, latent.rope_dim, interleaved=interleaved)
    first = fields.get("first_k_dense_replace", 0)
    count = fields.size("num_hidden_layers")
    fields.refuse("moe_layer_freq", 1)
    bias = fields.get("attention_bias", False)
    expert_mlp_dim, shared = fields.size("moe_intermediate_size"), fields.get("n_shared_experts", 0)
    return DecoderConfig(
        vocab_size=fields.size("vocab_size"),
        embed_dim=fields.size("hidden_size"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=latent.nope_dim + latent.rope_dim,
        mlp_dim=fields.size("intermediate_size"),
        layers=tuple(Layer(rope=rotary, sparse=number >= first) for number in range(count)),
        norm_eps=fields.get("rms_norm_eps", 1e-6),
        query_scale=_query_scale(fields, latent),
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", False),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=mlp_bias,
        latent=latent,
        experts=Experts(
            num_experts=_num_experts(fields),
            num_selected=fields.size("num_experts_per_tok"),
            mlp_dim=expert_mlp_dim,
            shared_mlp_dim=expert_mlp_dim * shared,
            shared_bias=mlp_bias and shared > 0,
            **routing,
        ),
    )


def _query_scale(fields: Fields, latent: LatentAttention) -> float:
    """YaRN's magnitude enters the attention logits twice, once for the query and once for the key."""
    scale = (latent.nope_dim + latent.rope_dim) ** -0.5
    parameters = rope.parameters_of(fields)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    scale_all = parameters.get("mscale_all_dim")
    if kind == "default" or not scale_all:
        return scale
    return scale * rope.yarn_magnitude(parameters.get("factor") or 1.0, scale_all) ** 2


def _num_experts(fields: Fields) -> int:
    return num_experts(fields, "n_routed_experts", "num_experts", "num_local_experts")


def _groups(fields: Fields) -> dict[str, Any]:
    """The groups of experts and how many of them a token may use, as arguments of `Experts`."""
    num_groups, num_selected = fields.size("n_group", 1), fields.size("topk_group", 1)
    count, chosen = _num_experts(fields), fields.size("num_experts_per_tok")
    if count % num_groups or num_selected > num_groups:
        raise ConfigError(
            f"{fields.where}: n_group = {num_groups} does not fit n_routed_experts = {count} "
            f"and topk_group = {num_selected}"
        )
    available = num_selected * count // num_groups
    if chosen > available:
        raise ConfigError(
            f"{fields.where}: num_experts_per_tok = {chosen}, but only {available} experts are in "
            f"topk_group = {num_selected} of n_group = {num_groups} groups"
        )
    return {"num_groups": num_groups, "num_selected_groups": num_selected}


def _latent_attention(config: DecoderConfig) -> dict[str, str]:
    assert config.latent is not None
    entries = {
        "self_attn.kv_a_proj_with_mqa.weight": "attn.kv_a : kv_rank_rope embed",
        "self_attn.kv_a_layernorm.weight": "attn.kv_a_norm : kv_rank",
        "self_attn.kv_b_proj.weight": "attn.kv_b : (head nope_v_dim) kv_rank",
        "self_attn.o_proj.weight": "attn.o : embed (head v_dim)",
    }
    if config.latent.q_rank is None:
        entries["self_attn.q_proj.weight"] = "attn.q : (head qk_dim) embed"
    else:
        entries |= {
            "self_attn.q_a_proj.weight": "attn.q_a : q_rank embed",
            "self_attn.q_a_layernorm.weight": "attn.q_a_norm : q_rank",
            "self_attn.q_b_proj.weight": "attn.q_b : (head qk_dim) q_rank",
        }
    if config.qkv_bias:
        entries["self_attn.kv_a_proj_with_mqa.bias"] = "attn.kv_a.bias : kv_rank_rope"
        if config.latent.q_rank is not None:
            entries["self_attn.q_a_proj.bias"] = "attn.q_a.bias : q_rank"
    if config.o_bias:
        entries["self_attn.o_proj.bias"] = "attn.o.bias : embed"
    return entries


DEEPSEEK_V2 = Family("deepseek_v2", ("deepseek_v2",), deepseek_v2_config, deepseek_v2_huggingface)
DEEPSEEK_V3 = Family("deepseek_v3", ("deepseek_v3",), deepseek_v3_config, deepseek_v3_huggingface)
