"""DeepSeek V2 and V3 (also R1): latent attention, and experts after the first layers."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, LatentAttention, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, decoder, mlp, norm, num_experts
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.LATENT_ATTENTION,
    **huggingface.NORMS,
    **huggingface.MLP,
    **huggingface.EXPERTS,
    **huggingface.SHARED_EXPERTS,
}

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
    return _decoder(
        fields,
        interleaved=True,
        mlp_bias=fields.get("mlp_bias", False),
        normalize=False,
        scale=fields.get("routed_scaling_factor", 1.0),
        **_groups(fields) if limited else {},
    )


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
    return _decoder(
        fields,
        interleaved=fields.optional("rope_interleave", bool, True) or False,
        scores="sigmoid",
        normalize=fields.optional("norm_topk_prob", bool, True) or False,
        scale=fields.get("routed_scaling_factor", 2.5),
        selection_bias=True,
        group_score="top2",
        **_groups(fields),
    )


def deepseek_v2_huggingface(config: DecoderConfig) -> Layout:
    """The layers before the experts have a plain MLP."""
    return huggingface.decoder(config, _LAYER)


def deepseek_v3_huggingface(config: DecoderConfig) -> Layout:
    """As in DeepSeek V2, but behind the last layer there may be ones that predict further tokens.

    Those have a projection that no other layer has (https://arxiv.org/abs/2412.19437, section 2.2).
    """
    behind = [f"model.layers.{config.num_layers + number}" for number in range(_MOST_PREDICTION_LAYERS)]
    return huggingface.decoder(config, _LAYER, skipped=[f"{layer}.* if {layer}.eh_proj.weight" for layer in behind])


def _decoder(fields: Fields, *, interleaved: bool, mlp_bias: bool = False, **routing: Any) -> DecoderConfig:
    """What the versions share; `routing` are arguments of `Experts`."""
    mixer = _latent_attention(fields, interleaved=interleaved)
    width, shared = fields.size("moe_intermediate_size"), fields.get("n_shared_experts", 0)
    experts = Experts(
        num_experts=_num_experts(fields),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=width,
        activation=activation(fields),
        shared_mlp_dim=width * shared,
        shared_bias=mlp_bias and shared > 0,
        **routing,
    )
    dense = mlp(fields, bias=mlp_bias)
    first = fields.get("first_k_dense_replace", 0)
    fields.refuse("moe_layer_freq", 1)
    layers = [
        Layer(mixer=mixer, feed_forward=dense if number < first else experts, norm=norm(fields))
        for number in range(fields.size("num_hidden_layers"))
    ]
    return decoder(fields, layers)


def _latent_attention(fields: Fields, *, interleaved: bool) -> LatentAttention:
    # Both follow from the parts, whatever the file says; the keys' heads are those of the queries.
    fields.ignore("head_dim", "qk_head_dim", "num_key_value_heads")
    nope_dim, rope_dim = fields.size("qk_nope_head_dim"), fields.size("qk_rope_head_dim")
    bias = fields.get("attention_bias", False)
    return LatentAttention(
        num_heads=fields.size("num_attention_heads"),
        q_rank=fields.optional("q_lora_rank", int),
        kv_rank=fields.size("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=fields.size("v_head_dim"),
        rope=rope.read(fields, rope_dim, interleaved=interleaved),
        query_scale=_query_scale(fields, nope_dim + rope_dim),
        a_bias=bias,
        o_bias=bias,
    )


def _query_scale(fields: Fields, head_dim: int) -> float:
    """YaRN's magnitude enters the attention logits twice, once for the query and once for the key."""
    scale: float = head_dim**-0.5
    parameters = rope.parameters_of(fields)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    scale_all = parameters.get("mscale_all_dim")
    if kind == "default" or not scale_all:
        return scale
    magnitude: float = rope.yarn_magnitude(parameters.get("factor") or 1.0, scale_all)
    return scale * magnitude * magnitude


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


DEEPSEEK_V2 = Family("deepseek_v2", ("deepseek_v2",), deepseek_v2_config, deepseek_v2_huggingface)
DEEPSEEK_V3 = Family("deepseek_v3", ("deepseek_v3",), deepseek_v3_config, deepseek_v3_huggingface)
