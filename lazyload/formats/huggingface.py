"""The names that almost all decoders on the hub share, as tables: `model.layers.0.self_attn.q_proj.weight` and so on.

Linear maps are stored outputs first, with their heads merged.
"""

from collections.abc import Mapping, Sequence

from lazyload.architecture.decoder import DecoderConfig
from lazyload.layouts.layout import Layout

Entries = Mapping[str, str]

MLP = {
    "mlp.{gate_up:gate,up}_proj.weight": "mlp.in : mlp embed",
    "mlp.down_proj.weight": "mlp.out : embed mlp",
}

EXPERTS = {
    "mlp.gate.weight": "router : expert embed",
    "mlp.experts.{expert}.{gate_up:gate,up}_proj.weight": "experts.in : expert_mlp embed",
    "mlp.experts.{expert}.down_proj.weight": "experts.out : embed expert_mlp",
}


def decoder(
    config: DecoderConfig,
    layer: Entries | None = None,
    *,
    skipped: Sequence[str] = (),
    aliases: Sequence[tuple[str, str]] = (),
) -> Layout:
    """The whole checkpoint.

    Args:
        config: The model.
        layer: The tensors of one layer, below `model.layers.N.`; None for plain attention, MLP and norms.
        skipped: Patterns of further tensors that are knowingly not used.
        aliases: Other prefixes, see `Layout`.
    """
    layer = {**attention(config), **mlp(config), **norms(config)} if layer is None else layer
    entries = {
        "model.embed_tokens.weight": "embed : vocab embed",
        "model.norm.weight": "final_norm : embed",
        **{f"model.layers.{{layer}}.{name}": entry for name, entry in layer.items()},
    }
    # Old checkpoints store the rotary frequencies, and some tied ones their embedding twice.
    skipped = ["*rotary_emb.inv_freq", *skipped]
    if config.tied:
        skipped += ["lm_head.weight", "*.lm_head.weight"]
    else:
        entries["lm_head.weight"] = "lm_head : vocab embed"
    # Models that make embeddings of texts are stored without what would predict a token, and without the prefix.
    return Layout(entries, name="huggingface", skipped=skipped, aliases=[*aliases, ("model.", "")])


def attention(config: DecoderConfig) -> dict[str, str]:
    """Plain attention: its projections, their biases, the norms of queries and keys."""
    heads = {"q": "head", "k": "kv_head", "v": "kv_head"}
    entries = {
        f"self_attn.{name}_proj.weight": f"attn.{name} : ({head} head_dim) embed" for name, head in heads.items()
    }
    entries["self_attn.o_proj.weight"] = "attn.o : embed (head head_dim)"
    if config.qkv_bias:
        entries |= {
            f"self_attn.{name}_proj.bias": f"attn.{name}.bias : ({head} head_dim)" for name, head in heads.items()
        }
    if config.o_bias:
        entries["self_attn.o_proj.bias"] = "attn.o.bias : embed"
    if config.qk_norm:
        for name in ("q", "k"):
            axes = f"({heads[name]} head_dim)" if config.qk_norm == "full" else "head_dim"
            entries[f"self_attn.{name}_norm.weight"] = f"attn.{name}_norm : {axes}"
    return entries


def mlp(config: DecoderConfig) -> dict[str, str]:
    """The gated MLP."""
    if not config.mlp_bias:
        return dict(MLP)
    return MLP | {
        "mlp.{gate_up:gate,up}_proj.bias": "mlp.in.bias : mlp",
        "mlp.down_proj.bias": "mlp.out.bias : embed",
    }


def norms(config: DecoderConfig) -> dict[str, str]:
    """The norms of a layer; with norms after the blocks, the name of the one before the MLP changes its meaning."""
    names = {}
    if config.pre_norms:
        names["input_layernorm"] = "attn_norm"
        names["pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"] = "mlp_norm"
    if config.post_norms:
        names |= {"post_attention_layernorm": "post_attn_norm", "post_feedforward_layernorm": "post_mlp_norm"}
    return {f"{name}.weight": f"{role} : embed" for name, role in names.items()}
