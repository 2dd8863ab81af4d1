"""The names that almost all decoders on the hub share: `model.layers.0.self_attn.q_proj.weight` and so on.

Linear maps are stored outputs first, with their heads merged. A table says how a role lies *if* a model has it: rows of
roles that a model does not have (biases, norms, a tied output projection) hold for nothing, so that one table serves
all models of a form.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from lazyload.architecture import DecoderConfig
from lazyload.layouts.layout import Layout, Table

Rows = Mapping[str, str]
"""Paths below `model.layers.N.`, or of a whole checkpoint, with their roles and axes."""

ATTENTION = {
    "self_attn.q_proj.weight": "attn.q : (head head_dim) embed",
    "self_attn.k_proj.weight": "attn.k : (kv_head head_dim) embed",
    "self_attn.v_proj.weight": "attn.v : (kv_head head_dim) embed",
    "self_attn.o_proj.weight": "attn.o : embed (head head_dim)",
    "self_attn.q_proj.bias": "attn.q.bias : (head head_dim)",
    "self_attn.k_proj.bias": "attn.k.bias : (kv_head head_dim)",
    "self_attn.v_proj.bias": "attn.v.bias : (kv_head head_dim)",
    "self_attn.o_proj.bias": "attn.o.bias : embed",
    "self_attn.q_norm.weight": "attn.q_norm : head_dim",
    "self_attn.k_norm.weight": "attn.k_norm : head_dim",
    "self_attn.sinks": "attn.sinks : head",
}

FULL_QK_NORMS = {
    "self_attn.q_norm.weight": "attn.q_norm : (head head_dim)",
    "self_attn.k_norm.weight": "attn.k_norm : (kv_head head_dim)",
}
"""In place of `ATTENTION`'s, where queries and keys have norms over all heads together."""

LATENT_ATTENTION = {
    "self_attn.q_proj.weight": "attn.q : (head qk_dim) embed",
    "self_attn.q_a_proj.weight": "attn.q_a : q_rank embed",
    "self_attn.q_a_proj.bias": "attn.q_a.bias : q_rank",
    "self_attn.q_a_layernorm.weight": "attn.q_a_norm : q_rank",
    "self_attn.q_b_proj.weight": "attn.q_b : (head qk_dim) q_rank",
    "self_attn.kv_a_proj_with_mqa.weight": "attn.kv_a : kv_rank_rope embed",
    "self_attn.kv_a_proj_with_mqa.bias": "attn.kv_a.bias : kv_rank_rope",
    "self_attn.kv_a_layernorm.weight": "attn.kv_a_norm : kv_rank",
    "self_attn.kv_b_proj.weight": "attn.kv_b : (head nope_v_dim) kv_rank",
    "self_attn.o_proj.weight": "attn.o : embed (head v_dim)",
    "self_attn.o_proj.bias": "attn.o.bias : embed",
}

MLP = {
    "mlp.{gate_up:gate,up}_proj.weight": "mlp.in : mlp embed",
    "mlp.{gate_up:gate,up}_proj.bias": "mlp.in.bias : mlp",
    "mlp.down_proj.weight": "mlp.out : embed mlp",
    "mlp.down_proj.bias": "mlp.out.bias : embed",
}

UNGATED_MLP = {
    "mlp.up_proj.weight": "mlp.up : mlp embed",
    "mlp.up_proj.bias": "mlp.up.bias : mlp",
    "mlp.down_proj.weight": "mlp.out : embed mlp",
    "mlp.down_proj.bias": "mlp.out.bias : embed",
}

EXPERTS = {
    "mlp.gate.weight": "router : expert embed",
    "mlp.gate.e_score_correction_bias": "router.selection_bias : expert",
    "mlp.experts.{expert}.{gate_up:gate,up}_proj.weight": "experts.in : expert_mlp embed",
    "mlp.experts.{expert}.down_proj.weight": "experts.out : embed expert_mlp",
}

STACKED_EXPERTS = {
    "mlp.experts.gate_up_proj": "experts.in : expert (gate_up expert_mlp) embed",
    "mlp.experts.down_proj": "experts.out : expert embed expert_mlp",
}

SHARED_EXPERTS = {
    "mlp.shared_experts.{gate_up:gate,up}_proj.weight": "shared.in : shared_mlp embed",
    "mlp.shared_experts.{gate_up:gate,up}_proj.bias": "shared.in.bias : shared_mlp",
    "mlp.shared_experts.down_proj.weight": "shared.out : embed shared_mlp",
    "mlp.shared_experts.down_proj.bias": "shared.out.bias : embed",
}

NORMS = {
    "input_layernorm.weight": "attn_norm : embed",
    "post_attention_layernorm.weight": "mlp_norm : embed",
}

SANDWICH_NORMS = {
    "input_layernorm.weight": "attn_norm : embed",
    "post_attention_layernorm.weight": "post_attn_norm : embed",
    "pre_feedforward_layernorm.weight": "mlp_norm : embed",
    "post_feedforward_layernorm.weight": "post_mlp_norm : embed",
}
"""With norms after the blocks, the name of the one before the MLP changes its meaning."""

PER_LAYER_INPUT = {
    "per_layer_input_gate.weight": "ple.gate : ple_dim embed",
    "per_layer_projection.weight": "ple.out : embed ple_dim",
    "post_per_layer_input_norm.weight": "ple.norm : embed",
}

PER_LAYER_EMBEDDING = {
    "model.embed_tokens_per_layer.weight": "ple.embed : ple_vocab ple_embed",
    "model.per_layer_model_projection.weight": "ple.proj : ple_embed embed",
    "model.per_layer_projection_norm.weight": "ple.proj_norm : ple_dim",
}
"""What makes the inputs that layers have of their own, as whole paths."""

_SCORE_HEADS = {
    "score.weight": "score : label embed",
    "v_head.summary.weight": "v_head : label embed",
    "v_head.summary.bias": "v_head.bias : label",
}

TEXT_MODEL = (
    ("model.", "language_model.model."),
    ("model.", "model.language_model."),
    ("lm_head.", "language_model.lm_head."),
)
"""The prefixes of a multimodal checkpoint's text model, as `aliases`; which one there is depends on who saved it."""

_MOST_PREDICTION_LAYERS = 8
"""More layers for predicting further tokens than any release has behind those of the model itself."""

LAYER = ATTENTION | MLP | NORMS
"""A layer of a Llama, and of most others."""


def below(prefix: str, rows: Rows) -> Rows:
    """The same tensors by their paths from further up."""
    return {f"{prefix}.{path}": entry for path, entry in rows.items()}


def mamba2(module: str) -> Rows:
    """A Mamba 2 below `module`: gates, inputs, what writes and reads the states, and time steps are one tensor."""
    heads, groups = "ssm_head ssm_dim", "ssm_group ssm_state"
    projected = f"({heads} | {heads} | {groups} | {groups} | ssm_head)"
    rows = {
        "in_proj.weight": f"mamba.z | mamba.x | mamba.b | mamba.c | mamba.dt : {projected} embed",
        "in_proj.bias": f"mamba.z.bias | mamba.x.bias | mamba.b.bias | mamba.c.bias | mamba.dt.bias : {projected}",
        "conv1d.weight": f"mamba.conv_x | mamba.conv_b | mamba.conv_c : ({heads} | {groups} | {groups}) 1 conv_width",
        "conv1d.bias": f"mamba.conv_x.bias | mamba.conv_b.bias | mamba.conv_c.bias : ({heads} | {groups} | {groups})",
        "A_log": "mamba.a_log : ssm_head",
        "dt_bias": "mamba.dt_bias : ssm_head",
        "D": "mamba.d : ssm_head",
        "norm.weight": f"mamba.norm : ({heads})",
        "out_proj.weight": f"mamba.o : embed ({heads})",
        "out_proj.bias": "mamba.o.bias : embed",
    }
    return below(module, rows)


def unused_keys_and_values(config: DecoderConfig) -> list[str]:
    """Patterns of projections that are stored for layers that attend to others' keys and values, all the same."""
    sharing = [number for number in range(config.num_layers) if config.kv_layer(number) != number]
    return [f"*layers.{number}.self_attn.{name}.*" for number in sharing for name in ("k_proj", "v_proj", "k_norm")]


def prediction_layers(config: DecoderConfig) -> list[str]:
    """Patterns of what follows the last layer to predict further tokens (DeepSeek V3, GLM 4 with experts).

    Those layers have a projection that no other layer has (https://arxiv.org/abs/2412.19437, section 2.2).
    """
    behind = [f"model.layers.{config.num_layers + number}" for number in range(_MOST_PREDICTION_LAYERS)]
    return [f"{layer}.* if {layer}.eh_proj.weight" for layer in behind]


def decoder(
    config: DecoderConfig,
    layer: Rows = LAYER,
    *,
    base: str = "model",
    embed: str = "embed_tokens",
    norm: str = "norm",
    others: Rows = MappingProxyType({}),
    further: Rows = MappingProxyType({}),
    skipped: Sequence[str] = (),
    aliases: Sequence[tuple[str, str]] = (),
    alternatives: Sequence[Rows] = (),
) -> Layout:
    """The whole checkpoint.

    Args:
        config: The model.
        layer: The tensors of one layer, below `model.layers.N.`.
        base: What stands there in place of `model`.
        embed: The embedding, below `base`.
        norm: The norm before the output projection, below `base`.
        others: Tensors of a layer by names that stand in `layer`, too, for layers that have these roles instead.
        further: Tensors that belong to no layer, beside embedding, last norm and output projection; whole paths.
        skipped: Patterns of further tensors that are knowingly not used.
        aliases: Other prefixes, see `Layout`.
        alternatives: Other forms of some of a layer's tensors, see `Layout`.
    """
    rows = {
        f"{base}.{embed}.weight": "embed : vocab embed",
        f"{base}.{norm}.weight": "final_norm : embed",
        f"{base}.{norm}.bias": "final_norm.bias : embed",
        **further,
        **_in_layers(base, layer),
        "lm_head.weight": "lm_head : vocab embed",
        "lm_head.bias": "logits_bias : vocab",
    }
    if config.head is not None:
        rows = {path: row for path, row in rows.items() if not path.startswith("lm_head.")} | _SCORE_HEADS
    # Old checkpoints store the rotary frequencies, and some tied ones their embedding twice, or by its other name only.
    predicting = ["lm_head.weight", "*.lm_head.weight"]
    twice = predicting if config.tied else [*predicting, "lm_head.bias"] if config.head else []
    heads = ["lm_head.weight", *(other + "weight" for prefix, other in aliases if prefix == "lm_head.")]
    other_names = [(f"{base}.{embed}.weight", head) for head in heads] if config.tied else []
    # Models that make embeddings of texts are stored without what would predict a token, and without the prefix.
    return Layout(
        [Table(rows), Table(_in_layers(base, others))] if others else rows,
        name="huggingface",
        skipped=["*rotary_emb.inv_freq", *skipped, *twice],
        aliases=[*aliases, (f"{base}.", ""), *other_names],
        general=True,
        alternatives=[Table(_in_layers(base, rows)) for rows in alternatives],
    )


def _in_layers(base: str, layer: Rows) -> Rows:
    return below(f"{base}.layers.{{layer}}", layer)
