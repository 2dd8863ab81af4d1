"""What changes the mathematics and is not implemented, what is unknown, and what is missing: refused by name."""

import contextlib
import itertools
import json
from typing import Any

import pytest
from support import checkpoints

from lazyload import families
from lazyload.architecture import Attention, DecoderConfig, Mamba2
from lazyload.errors import ConfigError, UnknownArchitectureError

Values = dict[str, Any]

KINDS = (
    "llama3",
    "llama4",
    "llama4_text",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5",
    "qwen3_vl",
    "glm4_moe",
    "ministral3",
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3",
    "gemma3n_text",
    "gemma4_text_31b",
    "gemma4_e2b",
    "gemma4_unified",
    "phi3",
    "olmo2",
    "olmo3",
    "smollm3",
    "granite",
    "granitemoehybrid",
    "nemotron_h",
    "glm4",
    "gpt_oss",
    "deepseek_v2",
    "deepseek_v3",
    "cohere2",
    "exaone4",
    "seed_oss",
    "hunyuan_v1_dense",
    "arcee",
    "apertus",
    "olmoe",
    "qwen2_moe",
    "minimax_m2",
    "ernie4_5",
    "ernie4_5_moe",
    "phimoe",
    "deepseek_v32",
    "glm_moe_dsa",
    "deepseek_v4",
)
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
# Files on the hub do without.
LEFT_OUT = {"gemma3": SIZES, "gemma3_text": ("vocab_size", "num_attention_heads")}
# Only another name of what there is, and what each layer is tells how many there are.
NOT_NEEDED = {"deepseek_v4": ("intermediate_size",), "nemotron_h": ("num_hidden_layers",)}
EXPERTS = {
    "olmoe": ("num_experts", "num_experts_per_tok"),
    "qwen2_moe": ("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
    "minimax_m2": ("num_local_experts", "num_experts_per_tok"),
    "ernie4_5_moe": ("moe_num_experts", "moe_k", "moe_intermediate_size"),
    "phimoe": ("num_local_experts", "num_experts_per_tok"),
    "qwen3_moe": ("num_experts", "num_experts_per_tok", "moe_intermediate_size"),
    "mixtral": ("num_local_experts", "num_experts_per_tok"),
    "llama4_text": ("num_local_experts", "num_experts_per_tok"),
    "gemma4_a4b": ("num_experts", "top_k_experts", "moe_intermediate_size"),
    "gpt_oss": ("num_local_experts", "num_experts_per_tok"),
    "deepseek_v2": ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank", "v_head_dim"),
    "deepseek_v3": ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank", "v_head_dim"),
    "deepseek_v32": ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank", "v_head_dim"),
    "glm_moe_dsa": ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank", "v_head_dim"),
    "deepseek_v4": ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size"),
}


def values_of(kind: str, **changes: Any) -> Values:
    """A golden `config.json` with some fields of its text model changed, or left out where the change is `...`."""
    values = json.loads((checkpoints.GOLDEN / "specs" / f"{kind}.json").read_text())["config"]
    text = values.get("text_config", values)
    text |= changes
    for name in [name for name, value in changes.items() if value is ...]:
        del text[name]
    return values


def refuse(values: Values, message: str) -> str:
    with pytest.raises(ConfigError, match=message) as caught:
        families.find(values).config(values)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_field_is_named_with_its_value(kind: str) -> None:
    message = refuse(values_of(kind, swiglu_limit_of_the_future=7), "swiglu_limit_of_the_future = 7")
    assert "config.json" in message


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("off", [None, False, 0, [], {}, ""])
def test_an_unknown_field_that_is_switched_off_does_not_matter(kind: str, off: Any) -> None:
    values = values_of(kind, swiglu_limit_of_the_future=off)
    assert families.find(values).config(values) == families.find(values).config(values_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_scalings_and_activations_that_are_not_implemented_are_named(kind: str) -> None:
    scaling: Values = {"rope_type": "spiral", "factor": 2.0}
    if kind.startswith("gemma4"):
        scaling = {kind: {"rope_theta": 1e4, **scaling} for kind in ("full_attention", "sliding_attention")}
    if kind != "nemotron_h":
        refuse(values_of(kind, rope_parameters=None, rope_scaling=scaling), "'spiral' is not implemented")
    name = "hidden_activation" if kind.startswith(("gemma2", "gemma3", "gemma4")) else "hidden_act"
    name = "mlp_hidden_act" if kind == "nemotron_h" else name
    refuse(values_of(kind, **{name: "swish_of_the_future"}), f"{name} = 'swish_of_the_future' is not implemented")


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("llama3", "rope_interleaved", True),
        ("llama3", "partial_rotary_factor", 0.5),
        ("llama3", "is_encoder_decoder", True),
        ("llama3", "sliding_window", 128),
        ("llama4", "sliding_window", 128),
        ("llama4", "mlp_bias", True),
        ("llama4", "no_rope_layers", [1, 1, 1, 0]),
        ("llama4", "no_rope_layer_interval", 0),
        ("llama4", "interleave_moe_layer_step", 0),
        ("llama4", "moe_layers", 3),
        ("llama4", "attention_chunk_size", 0),
        ("llama4", "floor_scale", 0),
        ("llama4_text", "layer_types", ["sliding_attention"] * 5),
        ("llama4_text", "layer_types", ["chunked_attention"] * 4),
        ("llama4_text", "use_qk_norm", "yes"),
        ("llama4_text", "num_experts_per_tok", 9),
        ("mistral", "attention_bias", True),
        ("mistral", "layer_types", ["sliding_attention", "full_attention"] * 2),
        ("qwen2", "use_mrope", True),
        ("qwen2", "layer_types", ["linear_attention"] * 4),
        ("qwen3", "layer_types", ["full_attention"] * 3),
        ("qwen3", "partial_rotary_factor", 0.25),
        ("qwen3_moe", "shared_expert_intermediate_size", 64),
        ("qwen3_moe", "qkv_bias", True),
        ("mixtral", "attention_bias", True),
        ("gemma", "use_bidirectional_attention", True),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma2", "layer_types", ["chunked_attention"] * 4),
        ("gemma3", "use_bidirectional_attention", True),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("gemma3n_text", "use_bidirectional_attention", True),
        ("gemma3n_text", "intermediate_size", [96] * 9),
        ("gemma3n_text", "intermediate_size", [96] * 9 + [0]),
        ("gemma3n_text", "intermediate_size", [96] * 9 + ["96"]),
        ("gemma3n_text", "activation_sparsity_pattern", [0.95] * 9),
        ("gemma3n_text", "activation_sparsity_pattern", [0.95] * 9 + [1.0]),
        ("gemma3n_text", "activation_sparsity_pattern", [-0.5] * 10),
        ("gemma3n_text", "activation_sparsity_pattern", 0.95),
        ("gemma3n_text", "altup_num_inputs", 1),
        ("gemma3n_text", "altup_active_idx", 4),
        ("gemma3n_text", "altup_active_idx", -1),
        ("gemma3n_text", "laurel_rank", 0),
        ("gemma3n_text", "num_kv_shared_layers", 10),
        ("gemma3n_text", "layer_types", ["linear_attention"] * 10),
        ("gemma3n_text", "partial_rotary_factor", 0.5),
        ("gemma4_e2b", "use_bidirectional_attention", "all"),
        ("gemma4_text_31b", "use_bidirectional_attention", True),
        ("gemma4_text_31b", "layer_types", ["full_attention"] * 7),
        ("gemma4_text_31b", "layer_types", ["linear_attention"] * 6),
        ("gemma4_text_31b", "partial_rotary_factor", 0.5),
        ("gemma4_text_31b", "rope_theta", 1e6),
        ("gemma4_text_31b", "query_pre_attn_scalar", 256),
        ("gemma4_e2b", "num_kv_shared_layers", 8),
        ("gemma4_e2b", "num_kv_shared_layers", 10),
        ("gemma4_e2b", "num_kv_shared_layers", -1),
        ("gemma4_e2b", "hidden_size_per_layer_input", -8),
        ("gemma4_e2b", "vocab_size_per_layer_input", 0),
        ("gemma4_e2b", "per_layer_config", {"0": {"intermediate_size": 8}}),
        ("gemma4_e2b", "per_layer_config", {"1": {"head_dim": 8}}),
        ("gemma4_e2b", "per_layer_config", {"3": {"head_dim": 32, "skip": ["mlp"]}}),
        ("gemma4_e2b", "per_layer_config", {"10": {"head_dim": 32}}),
        ("gemma4_e2b", "per_layer_config", {"last": {"head_dim": 32}}),
        ("gemma4_e2b", "per_layer_config", {"3": 32}),
        ("gemma4_a4b", "top_k_experts", 9),
        ("gemma4_unified", "enable_moe_block", True),
        ("gemma4_unified", "hidden_size_per_layer_input", 8),
        ("phi3", "attention_bias", True),
        ("phi3", "mlp_bias", True),
        ("phi3", "lm_head_bias", True),
        ("phi3", "full_attn_mod", 2),
        ("phi3", "partial_rotary_factor", 0.2),
        ("olmo2", "clip_qkv", 8.0),
        ("olmo3", "layer_types", ["sliding_attention"]),
        ("smollm3", "no_rope_layers", [1, 1, 0]),
        ("granite", "num_local_experts", 8),
        ("granitemoehybrid", "layer_types", ["mamba"] * 4),
        ("granitemoehybrid", "layer_types", ["mamba", "mamba", "moe", "mamba", "mamba"]),
        ("granitemoehybrid", "position_embedding_type", "alibi"),
        ("granitemoehybrid", "normalization_function", "layernorm"),
        ("granitemoehybrid", "mamba_n_heads", 7),
        ("granitemoehybrid", "mamba_n_groups", 3),
        ("granitemoehybrid", "mamba_d_head", 12),
        ("granitemoehybrid", "mamba_d_head", "large"),
        ("granitemoehybrid", "mamba_d_state", 0),
        ("granitemoehybrid", "time_step_limit", [0.0]),
        ("granitemoehybrid", "time_step_limit", [0.0, "long"]),
        ("granitemoehybrid", "mlp_bias", True),
        ("nemotron_h", "hybrid_override_pattern", "M-M*|M-"),
        ("nemotron_h", "hybrid_override_pattern", ""),
        ("nemotron_h", "layers_block_type", ["mamba", "attention", "convolution"]),
        ("nemotron_h", "layers_block_type", []),
        ("nemotron_h", "n_groups", 3),
        ("nemotron_h", "n_groups", 0),
        ("nemotron_h", "mamba_hidden_act", "xielu"),
        ("nemotron_h", "ssm_state_size", 0),
        ("nemotron_h", "layer_norm_epsilon", 0.0),
        ("nemotron_h", "attn_layer_period", 2),
        ("nemotron_h", "attention_head_dim", 48),
        ("glm4", "mlp_bias", True),
        ("glm4", "sliding_window", 128),
        ("glm4", "partial_rotary_factor", 0.2),
        ("glm4", "partial_rotary_factor", 1.5),
        ("glm4", "partial_rotary_factor", 0),
        ("ministral3", "original_max_position_embeddings", 8),
        ("qwen3_vl", "use_sliding_window", True),
        ("qwen3_vl_moe", "use_sliding_window", True),
        ("gpt_oss", "hidden_act", "gelu"),
        ("deepseek_v2", "topk_method", "noaux_tc"),
        ("deepseek_v2", "scoring_func", "sigmoid"),
        ("deepseek_v2", "moe_layer_freq", 2),
        ("deepseek_v3", "scoring_func", "softmax"),
        ("deepseek_v3", "topk_method", "group_limited_greedy"),
        ("deepseek_v3", "index_topk", 2048),
        ("deepseek_v3", "n_group", 3),
        ("cohere2", "sliding_window", None),
        ("cohere2", "sliding_window_pattern", 0),
        ("cohere2", "use_parallel_block", False),
        ("cohere2", "use_gated_activation", False),
        ("cohere2", "use_qk_norm", True),
        ("cohere2", "rotary_pct", 0.5),
        ("cohere2", "position_embedding_type", "rope_neox"),
        ("cohere2", "order_of_interleaved_layers", "global_attn_first"),
        ("cohere2", "hidden_act", "xielu"),
        ("exaone4", "sliding_window", None),
        ("exaone4", "layer_types", ["chunked_attention"] * 6),
        ("exaone4", "attention_bias", True),
        ("seed_oss", "sliding_window", 8),
        ("hunyuan_v1_dense", "use_qk_norm", False),
        ("hunyuan_v1_dense", "use_cla", True),
        ("hunyuan_v1_dense", "num_experts", 8),
        ("hunyuan_v1_dense", "norm_type", "layernorm"),
        ("hunyuan_v1_dense", "use_rotary_pos_emb", False),
        ("hunyuan_v1_dense", "mlp_bias", True),
        ("hunyuan_v1_dense", "rope_scaling", {"type": "dynamic", "alpha": -1.0}),
        ("hunyuan_v1_dense", "rope_scaling", {"type": "dynamic", "alpha": "1"}),
        ("hunyuan_v1_dense", "rope_scaling", {"type": "linear", "factor": 2.0, "mscale": 1.0}),
        ("arcee", "hidden_act", "xielu"),
        ("arcee", "partial_rotary_factor", 0.5),
        ("apertus", "mlp_bias", True),
        ("apertus", "qk_norm", False),
        ("apertus", "post_norm", True),
        ("olmoe", "clip_qkv", -1.0),
        ("olmoe", "shared_expert_intermediate_size", 8),
        ("qwen2_moe", "layer_types", ["sliding_attention"] * 4),
        ("qwen2_moe", "use_qk_norm", True),
        ("minimax_m2", "attn_type_list", [1, 0, 1, 1]),
        ("minimax_m2", "qk_norm_type", "per_head"),
        ("minimax_m2", "use_qk_norm", False),
        ("minimax_m2", "scoring_func", "softmax"),
        ("minimax_m2", "use_routing_bias", False),
        ("minimax_m2", "shared_intermediate_size", 8),
        ("minimax_m2", "layernorm_mlp_beta", 3.5),
        ("minimax_m2", "rotary_dim", 7),
        ("minimax_m2", "sliding_window", 8),
        ("ernie4_5", "attention_bias", True),
        ("ernie4_5_moe", "moe_gate", "hash"),
        ("ernie4_5_moe", "moe_use_aux_free", False),
        ("phimoe", "num_experts_per_tok", 3),
        ("phimoe", "rope_scaling", {"type": "linear", "factor": 2.0, "short_mscale": 1.0, "long_mscale": 1.0}),
        ("phimoe", "rope_scaling", {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8}),
        ("deepseek_v32", "q_lora_rank", 0),
        ("deepseek_v32", "scoring_func", "softmax"),
        ("deepseek_v32", "moe_layer_freq", 2),
        ("deepseek_v32", "index_topk", 0),
        ("deepseek_v32", "indexer_types", ["full"] * 4),
        ("deepseek_v32", "rope_interleave", False),
        ("deepseek_v32", "indexer_rope_interleave", True),
        ("glm_moe_dsa", "rope_interleave", False),
        ("glm_moe_dsa", "indexer_rope_interleave", False),
        ("deepseek_v32", "layer_types", ["full_attention"] * 4),
        ("deepseek_v32", "mlp_layer_types", ["dense"] * 3),
        ("deepseek_v32", "mlp_layer_types", ["dense", "sparse", "sparse", "mixed"]),
        ("glm_moe_dsa", "indexer_types", ["full"] * 4),
        ("glm_moe_dsa", "indexer_types", ["full", "shared", "full", "full", "none"]),
        ("glm_moe_dsa", "index_topk_pattern", "FSSFX"),
        ("glm_moe_dsa", "index_topk_pattern", 7),
        ("glm_moe_dsa", "index_topk_freq", -1.5),
        ("deepseek_v4", "attention_bias", True),
        ("deepseek_v4", "intermediate_size", 96),
        ("deepseek_v4", "n_shared_experts", 2),
        ("deepseek_v4", "n_group", 2),
        ("deepseek_v4", "topk_method", "group_limited_greedy"),
        ("deepseek_v4", "scoring_func", "softmax"),
        ("deepseek_v4", "swiglu_limit", 0.0),
        ("deepseek_v4", "num_key_value_heads", 2),
        ("deepseek_v4", "o_groups", 3),
        ("deepseek_v4", "index_topk", 0),
        ("deepseek_v4", "index_head_dim", 4),
        ("deepseek_v4", "sliding_window", 0),
        ("deepseek_v4", "hc_mult", 0),
        ("deepseek_v4", "hc_sinkhorn_iters", 1.5),
        ("deepseek_v4", "hc_eps", 0),
        ("deepseek_v4", "layer_types", ["sliding_attention"] * 5),
        ("deepseek_v4", "layer_types", ["full_attention"] * 6),
        ("deepseek_v4", "mlp_layer_types", ["dense"] * 6),
        ("deepseek_v4", "compress_ratios", [0, 0, 4, 64, 4, 64]),
        ("deepseek_v4", "compress_rates", {"compressed_sparse_attention": 4}),
        ("deepseek_v4", "compress_rates", {"compressed_sparse_attention": 0, "heavily_compressed_attention": 8}),
        ("deepseek_v4", "compress_rate_csa", 2.5),
        ("deepseek_v4", "compress_rope_theta", 0),
        ("deepseek_v4", "rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
        ("deepseek_v4", "rope_parameters", {"main": {"rope_type": "default", "x": 1}, "compress": {}}),
    ],
)
def test_an_option_that_is_not_implemented_is_named(kind: str, field: str, value: Any) -> None:
    refuse(values_of(kind, **{field: value}), field)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (kind, field, value)
        for kind, field, value in itertools.product(KINDS, SIZES, [..., None])
        if field not in NOT_NEEDED.get(kind, ()) and (value is None or field not in LEFT_OUT.get(kind, ()))
    ],
)
def test_a_size_that_is_missing_is_named(kind: str, field: str, value: Any) -> None:
    refuse(values_of(kind, **{field: value}), f"lacks the field '{field}'")


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in EXPERTS.items() for field in fields])
def test_a_size_of_the_experts_that_is_missing_is_named(kind: str, field: str) -> None:
    refuse(values_of(kind, **{field: ...}), f"lacks the field '{field}'")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", "512"),
        ("hidden_size", 64.5),
        ("num_hidden_layers", True),
        ("num_hidden_layers", [4]),
        ("intermediate_size", 0),
        ("num_attention_heads", -4),
        ("rms_norm_eps", "1e-6"),
        ("rms_norm_eps", float("nan")),
        ("tie_word_embeddings", "no"),
        ("attention_bias", 1.5),
        ("rope_theta", [8]),
        ("rope_scaling", [8]),
    ],
)
def test_a_value_of_the_wrong_type_is_named(kind: str, field: str, value: Any) -> None:
    values = values_of(kind, **({field: value} if field != "rope_theta" else {field: value, "rope_parameters": None}))
    if "text_config" in values and field == "tie_word_embeddings":
        values[field] = value
    if field == "attention_bias" and kind in ("mistral", "mixtral", "qwen2", "phi3"):
        refuse(values, "attention_bias = 1.5")
    else:
        refuse(values, field)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_field_holds_it_is_read_or_refused(kind: str) -> None:
    names = [*values_of(kind).get("text_config", values_of(kind)), "rope_parameters", "rope_scaling", "layer_types"]
    for name, value in itertools.product(names, [None, -1, 0, 2.5, True, "odd", [], ["odd"], [[1]], {"a": 1}, 10**400]):
        values = values_of(kind, **{name: value})
        with contextlib.suppress(ConfigError, UnknownArchitectureError):
            families.find(values).config(values)


@pytest.mark.parametrize(
    ("kind", "name", "other"),
    [
        ("qwen3_moe", "num_experts", "num_local_experts"),
        ("mixtral", "num_local_experts", "num_experts"),
        ("deepseek_v3", "n_routed_experts", "num_local_experts"),
    ],
)
def test_names_of_one_number_with_two_values(kind: str, name: str, other: str) -> None:
    refuse(values_of(kind, **{other: 4}), f"{name} = 8, {other} = 4 are names of one number")


def test_what_null_says() -> None:
    def read(kind: str, **changes: Any) -> DecoderConfig:
        values = values_of(kind)
        return families.find(values).config(values | changes)

    scaling = values_of("arcee")["rope_scaling"] | {"truncate": None}
    rope = read("arcee", rope_scaling=scaling).layers[0].mixer
    assert isinstance(rope, Attention)
    assert rope.rope is not None
    assert not rope.rope.truncate
    mamba = read("granitemoehybrid", mamba_conv_bias=None).first(Mamba2)
    assert mamba is not None
    assert not mamba.conv_bias
    assert not read("gemma3", tie_word_embeddings=None).tied


@pytest.mark.parametrize(
    ("kind", "outer", "text", "tied"),
    [
        # The default of transformers' class of the whole file counts, whatever the text model's part says;
        ("qwen3_vl", ..., True, False),
        ("qwen3_5", ..., True, False),
        ("gemma3", ..., False, True),
        # but Llama 4's text model is a model of its own.
        ("llama4", False, True, True),
        ("llama4", True, False, False),
        ("llama4", True, ..., False),
    ],
)
def test_who_says_whether_a_multimodal_model_is_tied(kind: str, outer: Any, text: Any, tied: bool) -> None:
    values = values_of(kind, tie_word_embeddings=text)
    values = {name: value for name, value in (values | {"tie_word_embeddings": outer}).items() if value is not ...}
    assert families.find(values).config(values).tied == tied


def test_phi_3_5_moe_has_its_length_in_the_embedding_s_description() -> None:
    values = values_of("phimoe", original_max_position_embeddings=7)
    mixer = families.find(values).config(values).layers[0].mixer
    assert isinstance(mixer, Attention)
    assert mixer.rope is not None
    assert mixer.rope.original_max_position == 64


@pytest.mark.parametrize("kind", ["gemma3_text", "olmo3", "gemma4_text_31b", "gemma4_e2b"])
@pytest.mark.parametrize("value", [{"full_attention": 8}, {"rope_type": "default"}, {"full_attention": {"x": 1}}])
def test_malformed_rotary_embeddings_of_layer_types(kind: str, value: Any) -> None:
    refuse(values_of(kind, rope_parameters=value), "rope_parameters")


@pytest.mark.parametrize("kind", ["llama3", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "linear"}, "lacks the field 'factor'"),
        ({"rope_type": "dynamic", "factor": "2"}, "factor = '2' is not of type float"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "lacks the field 'high_freq_factor'"),
        ({"rope_type": "yarn", "factor": 8.0, "alpha": 1000.0}, "alpha = 1000.0"),
        ({"rope_type": "longrope", "long_factor": [1.0] * 4}, "lacks the field 'short_factor'"),
        ({"rope_type": "longrope", "short_factor": [1], "long_factor": [2]}, "short_factor has 1 values"),
        (
            {"rope_type": "longrope", "short_factor": ["1"] * 8, "long_factor": [2.0] * 8},
            "short_factor must hold numbers",
        ),
        ({"type": "mrope", "mrope_section": [2, 1, 1]}, "'mrope' is not implemented"),
        ({"full_attention": {"rope_type": "default"}}, "cannot have rope_parameters for each type of layer"),
    ],
)
def test_what_a_rotary_embedding_lacks_or_has_too_much(kind: str, scaling: Values, message: str) -> None:
    refuse(values_of(kind, rope_parameters=None, rope_scaling=scaling), message)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"rope_type": "default"}, "lacks the field 'rope_theta'"),
        ({"rope_type": "proportional"}, "lacks the field 'rope_theta'"),
        ({"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 1.5}, "partial_rotary_factor = 1.5"),
        ({"rope_type": "proportional", "rope_theta": 1e6, "factor": 0}, "factor = 0.0 must be positive"),
        ({"rope_type": "proportional", "rope_theta": 1e6, "beta_fast": 32}, "beta_fast = 32"),
        ({"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25}, "partial_rotary_factor = 0.25"),
    ],
)
def test_what_the_rotary_embedding_of_a_kind_of_layer_lacks_or_has_too_much(described: Values, message: str) -> None:
    local = {"rope_type": "default", "rope_theta": 1e4}
    parameters = {"full_attention": described, "sliding_attention": local}
    refuse(values_of("gemma4_text_31b", rope_parameters=parameters), message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_routed_experts": ...}, "lacks the field 'n_routed_experts'"),
        ({"num_experts_per_tok": ...}, "lacks the field 'num_experts_per_tok'"),
        ({"moe_intermediate_size": None}, "lacks the field 'moe_intermediate_size'"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok = 9, but n_routed_experts = 8"),
        ({"n_group": 3}, "n_group = 3"),
        ({"moe_latent_size": 0}, "latent_dim = 0"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob = 'yes'"),
    ],
)
def test_experts_that_a_layer_is_alone(changes: Values, message: str) -> None:
    refuse(values_of("nemotron_h", hybrid_override_pattern="ME*", **changes), message)


def test_chunks_need_a_length() -> None:
    values = values_of("llama4_text", attention_chunk_size=None, layer_types=["chunked_attention"] * 5)
    refuse(values, "lacks the field 'attention_chunk_size'")


def test_one_rotated_pair_cannot_grow_with_the_length() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    refuse(values_of("glm4_moe", head_dim=4, rope_scaling=scaling), "'dynamic' needs more than one rotated pair")


def test_a_pattern_in_letters_needs_the_kinds_of_layers() -> None:
    refuse(values_of("exaone4", layer_types=None), "sliding_window_pattern = 'LLLG' is not of type int")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 is no multiple of num_key_value_heads = 3"),
        ({"head_dim": ..., "hidden_size": 66}, "lacks head_dim, and hidden_size = 66 is no multiple"),
    ],
)
def test_sizes_that_do_not_fit_each_other(changes: Values, message: str) -> None:
    refuse(values_of("llama3", **changes), message)


def test_more_experts_for_a_token_than_its_groups_have() -> None:
    values = values_of("deepseek_v3", n_group=4, topk_group=1, num_experts_per_tok=3)
    refuse(values, "num_experts_per_tok = 3, but only 2 experts are in topk_group = 1")


def test_an_unknown_kind_of_model_names_the_known_ones() -> None:
    with pytest.raises(UnknownArchitectureError, match="model_type = 'mamba2'") as caught:
        families.find({"model_type": "mamba2"})
    for family in families.known():
        for known in family.model_types:
            assert known in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"model_type": None}, {"model_type": 3}])
def test_a_file_without_a_kind_of_model(values: Values) -> None:
    with pytest.raises(ConfigError, match="model_type"):
        families.find(values)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_may_be_written_either_way(kind: str) -> None:
    values = values_of(kind)
    text = values.get("text_config", values)
    for name, value in text.items():
        if isinstance(value, float) and value.is_integer():
            text[name] = int(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            text[name] = float(value)
    assert families.find(values).config(values) == families.find(values).config(values_of(kind))


@pytest.mark.parametrize(
    "kind",
    ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v2", "deepseek_v3", "olmoe", "qwen2_moe", "minimax_m2", "phimoe"],
)
@pytest.mark.parametrize("name", ["num_experts", "num_local_experts"])
def test_the_number_of_experts_goes_by_several_names(kind: str, name: str) -> None:
    own = EXPERTS[kind][0]
    values = values_of(kind, **{own: ..., name: 8})
    assert families.find(values).config(values) == families.find(values).config(values_of(kind))
