"""The decoder's own parameters as a layout: where every role lies, and its axes."""

from lazyload.architecture.decoder import DecoderConfig
from lazyload.layouts.layout import Layout


def layout(config: DecoderConfig) -> Layout:
    """The house layout: the dotted paths of `Decoder`'s parameters.

    Kernels are stored inputs first; experts have their axis before those. Norms keep the weights as the checkpoint has
    them (`norm_offset` is the model's to add). The router's selection bias stays in float32, in which the routing of a
    token is decided.
    """
    entries = {
        "embed.embedding": "embed : vocab embed",
        "final_norm.scale": "final_norm : embed",
        **_norms(config),
        **(_latent_attention(config) if config.latent else _attention(config)),
    }
    if config.dense_layers:
        entries |= _mlp(config)
    if config.sparse_layers:
        entries |= _experts(config)
    if not config.tied:
        entries["lm_head.kernel"] = "lm_head : embed vocab"
    return Layout(entries, name="nnx")


def _norms(config: DecoderConfig) -> dict[str, str]:
    names = ("attn_norm", "mlp_norm") * config.pre_norms + ("post_attn_norm", "post_mlp_norm") * config.post_norms
    return {f"layers.{{layer}}.{name}.scale": f"{name} : embed" for name in names}


def _attention(config: DecoderConfig) -> dict[str, str]:
    prefix = "layers.{layer}.attn"
    heads = {"q": "head", "k": "kv_head", "v": "kv_head"}
    entries = {f"{prefix}.{name}.kernel": f"attn.{name} : embed {head} head_dim" for name, head in heads.items()}
    entries[f"{prefix}.o.kernel"] = "attn.o : head head_dim embed"
    if config.qkv_bias:
        entries |= {f"{prefix}.{name}.bias": f"attn.{name}.bias : {head} head_dim" for name, head in heads.items()}
    if config.o_bias:
        entries[f"{prefix}.o.bias"] = "attn.o.bias : embed"
    if config.qk_norm:
        q_axes, k_axes = ("head head_dim", "kv_head head_dim") if config.qk_norm == "full" else ("head_dim", "head_dim")
        entries[f"{prefix}.q_norm.scale"] = f"attn.q_norm : {q_axes}"
        entries[f"{prefix}.k_norm.scale"] = f"attn.k_norm : {k_axes}"
    if config.sinks:
        entries[f"{prefix}.sinks"] = "attn.sinks : head"
    return entries


def _latent_attention(config: DecoderConfig) -> dict[str, str]:
    prefix = "layers.{layer}.attn"
    compressed_query = config.latent is not None and config.latent.q_rank is not None
    entries = {
        f"{prefix}.kv_a.kernel": "attn.kv_a : embed kv_rank_rope",
        f"{prefix}.kv_a_norm.scale": "attn.kv_a_norm : kv_rank",
        f"{prefix}.kv_b.kernel": "attn.kv_b : kv_rank head nope_v_dim",
        f"{prefix}.o.kernel": "attn.o : head v_dim embed",
    }
    if compressed_query:
        entries |= {
            f"{prefix}.q_a.kernel": "attn.q_a : embed q_rank",
            f"{prefix}.q_a_norm.scale": "attn.q_a_norm : q_rank",
            f"{prefix}.q_b.kernel": "attn.q_b : q_rank head qk_dim",
        }
    else:
        entries[f"{prefix}.q.kernel"] = "attn.q : embed head qk_dim"
    if config.qkv_bias:
        entries[f"{prefix}.kv_a.bias"] = "attn.kv_a.bias : kv_rank_rope"
        if compressed_query:
            entries[f"{prefix}.q_a.bias"] = "attn.q_a.bias : q_rank"
    if config.o_bias:
        entries[f"{prefix}.o.bias"] = "attn.o.bias : embed"
    return entries


def _mlp(config: DecoderConfig) -> dict[str, str]:
    prefix = "layers.{layer}.mlp"
    entries = {
        f"{prefix}.{{gate_up:gate,up}}.kernel": "mlp.in : embed mlp",
        f"{prefix}.down.kernel": "mlp.out : mlp embed",
    }
    if config.mlp_bias:
        entries[f"{prefix}.{{gate_up:gate,up}}.bias"] = "mlp.in.bias : mlp"
        entries[f"{prefix}.down.bias"] = "mlp.out.bias : embed"
    return entries


def _experts(config: DecoderConfig) -> dict[str, str]:
    prefix, experts = "layers.{layer}.moe", config.experts
    assert experts is not None
    entries = {
        f"{prefix}.router.kernel": "router : embed expert",
        f"{prefix}.{{gate_up:gate,up}}.kernel": "experts.in : expert embed expert_mlp",
        f"{prefix}.down.kernel": "experts.out : expert expert_mlp embed",
    }
    if experts.router_bias:
        entries[f"{prefix}.router.bias"] = "router.bias : expert"
    if experts.selection_bias:
        entries[f"{prefix}.selection_bias"] = "router.selection_bias : expert; as float32"
    if experts.bias:
        entries[f"{prefix}.{{gate_up:gate,up}}.bias"] = "experts.in.bias : expert expert_mlp"
        entries[f"{prefix}.down.bias"] = "experts.out.bias : expert embed"
    if experts.shared_mlp_dim:
        entries[f"{prefix}.shared.{{gate_up:gate,up}}.kernel"] = "shared.in : embed shared_mlp"
        entries[f"{prefix}.shared.down.kernel"] = "shared.out : shared_mlp embed"
    if experts.shared_bias:
        entries[f"{prefix}.shared.{{gate_up:gate,up}}.bias"] = "shared.in.bias : shared_mlp"
        entries[f"{prefix}.shared.down.bias"] = "shared.out.bias : embed"
    return entries
