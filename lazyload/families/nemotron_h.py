"""Nemotron H, Nano 2 and 3: layers that are a Mamba 2, attention, an MLP or experts alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Experts, Layer, Mamba2, Norm
from lazyload.config_json.experts import groups
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, attention, decoder, layer_types, mlp, num_experts
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
_KINDS = {kind: kind for kind in _LETTERS.values()} | {"mamba": "linear_attention", "attention": "full_attention"}
"""Kinds of layers by the letters of `hybrid_override_pattern`, and by their names, former ones included."""

_OTHER_NAMES = {
    "mamba_n_groups": "n_groups",
    "mamba_d_conv": "conv_kernel",
    "mamba_dt_min": "time_step_min",
    "mamba_conv_bias": "use_conv_bias",
    "layer_types": "layers_block_type",
    "num_local_experts": "n_routed_experts",
}
"""Of fields; where a file has both, transformers takes these."""

_LAYER = {
    "norm.weight": "attn_norm : embed",
    **{name.replace("self_attn.", "mixer."): entry for name, entry in huggingface.ATTENTION.items()},
    **{name.replace("mlp.", "mixer."): entry for name, entry in huggingface.UNGATED_MLP.items()},
    **huggingface.mamba2("mixer"),
    "mixer.gate.weight": "router : expert embed",
    "mixer.gate.e_score_correction_bias": "router.selection_bias : expert",
    "mixer.shared_experts.up_proj.weight": "shared.up : shared_mlp embed",
    "mixer.shared_experts.up_proj.bias": "shared.up.bias : shared_mlp",
    "mixer.shared_experts.down_proj.weight": "shared.out : embed shared_mlp",
    "mixer.shared_experts.down_proj.bias": "shared.out.bias : embed",
    "mixer.fc1_latent_proj.weight": "experts.latent_in : expert_latent embed",
    "mixer.fc1_latent_proj.bias": "experts.latent_in.bias : expert_latent",
    "mixer.fc2_latent_proj.weight": "experts.latent_out : embed expert_latent",
    "mixer.fc2_latent_proj.bias": "experts.latent_out.bias : embed",
}


def nemotron_h_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Nemotron H."""
    renamed = {name: values[other] for other, name in _OTHER_NAMES.items() if other in values}
    fields = Fields({**values, **renamed}, num_key_value_heads=8, head_dim=128)
    _ignore_unused(fields)
    mixer = attention(fields)
    fields.refuse("attention_head_dim", mixer.head_dim)
    norm = Norm(eps=fields.positive("layer_norm_epsilon", 1e-5))
    bias = fields.get("mlp_bias", False)
    kinds = [_KINDS[kind] for kind in _block_types(fields)]
    plain = Layer(mixer=mixer, feed_forward=None, norm=norm)
    layers = {"full_attention": plain, "linear_attention": replace(plain, mixer=_mamba(fields, norm))}
    if "mlp" in kinds:
        feed_forward = mlp(fields, "mlp_hidden_act", "relu2", gated=False, bias=bias)
        layers["mlp"] = replace(plain, mixer=None, feed_forward=feed_forward)
    if "moe" in kinds:
        layers["moe"] = replace(plain, mixer=None, feed_forward=_experts(fields, bias))
    return decoder(fields, [layers[kind] for kind in kinds])


def nemotron_h_huggingface(config: DecoderConfig) -> Layout:
    """Whatever a layer is, it is called `mixer`; beside the model lie the layers that predict further tokens."""
    experts = config.first(Experts)
    width = "embed" if experts is None or experts.latent_dim is None else "expert_latent"
    rows = {
        **_LAYER,
        "mixer.experts.{expert}.up_proj.weight": f"experts.up : expert_mlp {width}",
        "mixer.experts.{expert}.down_proj.weight": f"experts.out : {width} expert_mlp",
    }
    return huggingface.decoder(
        config,
        rows,
        base="backbone",
        embed="embeddings",
        norm="norm_f",
        others={"norm.weight": "mlp_norm : embed"},
        skipped=["mtp.*"],
        aliases=[("backbone.", "model.")],
    )


def _ignore_unused(fields: Fields) -> None:
    """What the output does not depend on, and what it does only where there are layers of a kind."""
    fields.ignore(*_OTHER_NAMES)
    # How the weights were made, and how they are computed with.
    fields.ignore("rescale_prenorm_residual", "time_step_max", "time_step_floor", "mamba_dt_max", "mamba_dt_init_floor")
    fields.ignore("chunk_size", "mamba_chunk_size", "use_mamba_kernels", "mamba_ssm_cache_dtype", "num_logits_to_keep")
    fields.ignore("moe_shared_expert_overlap")
    # Layers that predict further tokens.
    fields.ignore("num_nextn_predict_layers", "mtp_layers_block_type", "mtp_hybrid_override_pattern")
    # Attention has neither a rotary embedding nor biases, whatever a file says of them.
    fields.get("attention_bias", False)
    fields.optional("rope_theta", float)
    fields.optional("rope_scaling", dict)
    fields.ignore("rope_parameters", "partial_rotary_factor")
    # transformers makes no use of them: sizes stand elsewhere, a time step has no upper limit, and there is one shared
    # expert, always.
    fields.ignore("expand", "mamba_expand", "mamba_num_groups", "mamba_state_dim", "norm_eps", "n_shared_experts")
    fields.ignore("time_step_limit", "mamba_dt_limit", "mamba_proj_bias", "residual_in_fp32", "sliding_window")
    # Of MLPs and experts.
    fields.ignore("mlp_hidden_act", "intermediate_size", "n_routed_experts", "num_experts_per_tok", "norm_topk_prob")
    fields.ignore("moe_intermediate_size", "moe_shared_expert_intermediate_size", "moe_latent_size", "n_group")
    fields.ignore("topk_group", "routed_scaling_factor")


def _block_types(fields: Fields) -> list[str]:
    """What each layer is; `num_hidden_layers` only repeats how many there are."""
    pattern = fields.get("hybrid_override_pattern", "ME*-")
    if not pattern or not set(pattern) <= set(_LETTERS):
        raise ConfigError(
            f"{fields.where}: hybrid_override_pattern = {pattern!r:.200} must say of each layer what it is, one of "
            f"{' '.join(_LETTERS)}"
        )
    default = [_LETTERS[letter] for letter in pattern]
    given = fields.optional("layers_block_type", list)
    kinds = layer_types(fields, given or default, *_KINDS, name="layers_block_type")
    fields.size("num_hidden_layers", len(kinds))
    return kinds


def _mamba(fields: Fields, norm: Norm) -> Mamba2:
    num_heads, num_groups = fields.size("mamba_num_heads", 128), fields.size("n_groups", 8)
    if num_heads % num_groups:
        raise ConfigError(f"{fields.where}: mamba_num_heads = {num_heads} is no multiple of n_groups = {num_groups}")
    return Mamba2(
        num_heads=num_heads,
        head_dim=fields.size("mamba_head_dim", 64),
        num_groups=num_groups,
        state_dim=fields.size("ssm_state_size", 128),
        conv_width=fields.size("conv_kernel", 4),
        activation=activation(fields, "mamba_hidden_act"),
        conv_bias=fields.get("use_conv_bias", True),
        proj_bias=fields.get("use_bias", False),
        least_step=fields.get("time_step_min", 0.001),
        norm=norm,
    )


def _experts(fields: Fields, bias: bool) -> Experts:
    latent_dim = fields.optional("moe_latent_size", int)
    return Experts(
        num_experts=num_experts(fields, "n_routed_experts"),
        num_selected=fields.size("num_experts_per_tok"),
        mlp_dim=fields.size("moe_intermediate_size"),
        activation=activation(fields, "mlp_hidden_act", "relu2"),
        gated=False,
        latent_dim=latent_dim,
        latent_bias=bias and latent_dim is not None,
        shared_mlp_dim=fields.size("moe_shared_expert_intermediate_size", 7688),
        shared_bias=bias,
        scores="sigmoid",
        normalize=fields.get("norm_topk_prob", True),
        scale=fields.get("routed_scaling_factor", 1.0),
        group_score="top2",
        selection_bias=True,
        **groups(fields),
    )


NEMOTRON_H = Family(
    "nemotron_h",
    ("nemotron_h",),
    nemotron_h_config,
    nemotron_h_huggingface,
    title="Nemotron H, Nemotron Nano 2, Nemotron 3",
    covered="layers that are a Mamba 2, attention, an MLP or experts alone; experts in a latent space; without the "
    "layers that predict further tokens",
    since="0.2",
)
