"""DeepSeek V4: several residual streams, keys of windows of tokens, and experts that some layers choose by token."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, HyperStreams, Layer
from lazyload.config_json import compressed
from lazyload.config_json.experts import routed_experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import decoder, norm
from lazyload.families.family import Family
from lazyload.formats.huggingface import Rows, below
from lazyload.layouts.layout import Layout, Table

_DEFAULTS: Mapping[str, Any] = {
    "head_dim": 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "sliding_window": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "n_shared_experts": 1,
    "max_position_embeddings": 1_048_576,
}

_ATTENTION = {
    "wq_a.weight": "attn.q_a : q_rank embed",
    "q_norm.weight": "attn.q_a_norm : q_rank",
    "wq_b.weight": "attn.q_b : (head head_dim) q_rank",
    "wkv.weight": "attn.kv : head_dim embed",
    "kv_norm.weight": "attn.kv_norm : head_dim",
    "wo_a.weight": "attn.o_a : (group_head o_rank) (member head_dim)",
    "wo_b.weight": "attn.o_b : embed (group_head o_rank)",
    "attn_sink": "attn.sinks : head",
    "indexer.wq_b.weight": "indexer.q : (index_head index_dim) q_rank",
    "indexer.weights_proj.weight": "indexer.weights : index_head embed",
}
_EXPERTS = {
    "gate.weight": "router : expert embed",
    "gate.bias": "router.selection_bias : expert",
    "gate.tid2eid": "router.token_experts : vocab selected",
    "experts.{expert}.{gate_up:w1,w3}.weight": "experts.in : expert_mlp embed",
    "experts.{expert}.w2.weight": "experts.out : embed expert_mlp",
    "shared_experts.{gate_up:w1,w3}.weight": "shared.in : shared_mlp embed",
    "shared_experts.{gate_up:w1,w3}.bias": "shared.in.bias : shared_mlp",
    "shared_experts.w2.weight": "shared.out : embed shared_mlp",
    "shared_experts.w2.bias": "shared.out.bias : embed",
}
_MODEL = {
    "embed.weight": "embed : vocab embed",
    "norm.weight": "final_norm : embed",
    "head.weight": "lm_head : vocab embed",
    "hc_head_fn": "hyper_head.pre : pre_stream (stream embed)",
    "hc_head_base": "hyper_head.pre.bias : pre_stream",
    "hc_head_scale": "hyper_head.pre.scale : one",
}
_AS_SAVED = (
    ("layers.", "model.layers."),
    ("norm.", "model.norm."),
    ("embed.", "model.embed_tokens."),
    ("hc_head_", "model.hc_head.hc_"),
)
"""What the names begin with in files that transformers 5.24 has saved, which calls `attn.kv_norm` `attn.norm`, too."""


def deepseek_v4_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a DeepSeek V4."""
    fields = Fields(values, **_DEFAULTS)
    # Layers that predict further tokens are not part of the model; how experts are packed, the source reads.
    fields.ignore("num_nextn_predict_layers", "expert_dtype")
    fields.refuse("attention_bias")
    connection = compressed.hyper_connection(fields)
    experts = _experts(fields)
    feed_forwards = {True: replace(experts, by_token=True, selection_bias=False), False: experts}
    layers = [
        Layer(mixer=mixer, feed_forward=feed_forwards[hashed], norm=norm(fields), hyper_connection=connection)
        for mixer, hashed in zip(compressed.mixers(fields), compressed.are_hashed(fields), strict=True)
    ]
    streams = HyperStreams(num_streams=connection.num_streams, eps=connection.eps, norm=connection.norm)
    return decoder(fields, layers, streams=streams)


def deepseek_v4_huggingface(config: DecoderConfig) -> Layout:
    """DeepSeek's own names, or what transformers makes of them; there may be layers that predict further tokens."""
    layer = {
        "attn_norm.weight": "attn_norm : embed",
        "ffn_norm.weight": "mlp_norm : embed",
        **below("attn", {**_ATTENTION, **_compressor("compressor", ""), **_compressor("indexer", "index_")}),
        **below("ffn", _EXPERTS),
        **_connection("hc_attn", "attn_hc"),
        **_connection("hc_ffn", "mlp_hc"),
    }
    return Layout(
        {**_MODEL, **below("layers.{layer}", layer)},
        name="huggingface",
        skipped=["mtp.*", *["head.weight"] * config.tied],
        aliases=_AS_SAVED,
        alternatives=[Table({"layers.{layer}.attn.norm.weight": "attn.kv_norm : head_dim"})],
        general=True,
    )


def _experts(fields: Fields) -> Experts:
    """Experts whose weights are always normalized, whatever `norm_topk_prob` says, with one that sees all tokens."""
    fields.ignore("norm_topk_prob")
    fields.refuse("intermediate_size", fields.size("moe_intermediate_size"))
    fields.refuse("n_shared_experts", 1)
    fields.refuse("topk_method", "noaux_tc")
    fields.refuse("scoring_func", "sqrtsoftplus", "sigmoid")
    return routed_experts(
        fields,
        bias=fields.get("mlp_bias", False),
        grouped=False,
        scores=fields.get("scoring_func", "sqrtsoftplus"),
        scale=fields.get("routed_scaling_factor", 1.5),
        selection_bias=True,
        limit=fields.positive("swiglu_limit", 10.0),
    )


def _compressor(role: str, prefix: str) -> Rows:
    rows = {
        "wkv.weight": f"{role}.kv : {prefix}window_dim embed",
        "wgate.weight": f"{role}.gate : {prefix}window_dim embed",
        "ape": f"{role}.position_bias : window {prefix}window_dim",
        "norm.weight": f"{role}.norm : {prefix}key_dim",
    }
    return below("indexer.compressor" if prefix else "compressor", rows)


def _connection(name: str, role: str) -> Rows:
    outputs = "(pre_stream | post_stream | from_stream to_stream)"
    return {
        f"{name}_fn": f"{role}.pre | {role}.post | {role}.comb : {outputs} (stream embed)",
        f"{name}_base": f"{role}.pre.bias | {role}.post.bias | {role}.comb.bias : {outputs}",
        f"{name}_scale": f"{role}.pre.scale | {role}.post.scale | {role}.comb.scale : (one | one | one)",
    }


DEEPSEEK_V4 = Family(
    "deepseek_v4",
    ("deepseek_v4",),
    deepseek_v4_config,
    deepseek_v4_huggingface,
    title="DeepSeek V4",
    covered="hyper-connections, compressed and sparse attention, experts by token; without the layers that predict "
    "further tokens",
    since="0.2",
)
