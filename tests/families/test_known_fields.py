"""Fields that mean the same in every family: what every model of transformers reads is known here, false or not."""

import ast
import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints

import lazyload
from lazyload import errors, families
from lazyload.config_json.known import SHARED, is_irrelevant
from lazyload.errors import ConfigError

KINDS = ("llama3", "mistral", "qwen2", "qwen3_moe", "gemma2", "gemma3", "phi3", "olmo3", "deepseek_v3", "granite")

BOOKKEEPING: list[dict[str, Any]] = [
    {"internal_version": "7b-alpha-v2.33.0.30"},
    {"keys_to_ignore_at_inference": ["past_key_values"]},
    {"use_flash_attention_2": True},
    {"_attn_implementation_internal": "sdpa"},
    {"is_causal": True},
    {"is_causal": None},
]

# Read by the shared modules, and each for a reason without meaning for the output of a decoder, or by its family.
BY_FAMILY = {
    "first_k_dense_replace", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "mlp_layer_types", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "num_local_experts", "qk_rope_head_dim", "rms_norm_eps", "rope_parameters", "sliding_window", "tie_word_embeddings",
    "vocab_size", "qk_head_dim",
}  # fmt: skip
# Where they are switched on they are refused as any unknown field; false is off.
SWITCHES = {
    "is_encoder_decoder", "chain_hidden_post_norm", "fusion_config", "kv_sharing_modes", "mtp_hidden_states_first",
    "mtp_layer_types", "mtp_mlp_layer_types", "mtp_per_layer_config", "num_mtp_layers", "number_of_conv_states",
    "per_layer_config", "text_config", "vision_config", "transformers_weights",
}  # fmt: skip
# Methods and class attributes, which no file sets.
NO_FIELDS = re.compile(
    r"__.*|base_model_\w+_plan|get_text_config|is_heterogeneous|nested_rope_parameter_keys|standardize_rope_params"
    r"|get_mtp_config|save_pretrained|sub_configs|validate_\w+|to_\w+|peft_type|quantization_config|_is_quantized|_heterogeneity_spec"
    r"|_\w+_without_heterogeneous_validation"
)


def values_of(kind: str, **changes: Any) -> dict[str, Any]:
    values = json.loads((checkpoints.GOLDEN / "specs" / f"{kind}.json").read_text())["config"]
    values.get("text_config", values).update(changes)
    return values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [False, 0])
def test_attention_in_both_directions_is_refused(kind: str, value: Any) -> None:
    values = values_of(kind, is_causal=value)
    with pytest.raises(ConfigError, match=f"is_causal = {value} is not implemented"):
        families.find(values).config(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", BOOKKEEPING, ids=str)
def test_bookkeeping_changes_nothing(kind: str, fields: dict[str, Any]) -> None:
    values = values_of(kind, **fields)
    assert families.find(values).config(values) == families.find(values).config(values_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(SHARED.keys() - {"is_causal"}))
def test_a_shared_field_of_zero_is_not_switched_off(kind: str, name: str) -> None:
    values = values_of(kind, **{name: 0})
    with pytest.raises(ConfigError, match=f"{name} = 0"):
        families.find(values).config(values)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "qwen3_moe", "smollm3"])
def test_a_window_of_nothing_that_is_switched_off(kind: str) -> None:
    off = values_of(kind, sliding_window=0, use_sliding_window=False)
    config = families.find(off).config(off)
    assert config == families.find(off).config(values_of(kind, sliding_window=None, use_sliding_window=False))
    on = values_of(kind, sliding_window=0, use_sliding_window=True)
    with pytest.raises(ConfigError, match="sliding_window = 0 must be positive"):
        families.find(on).config(on)


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_a_field_that_does_not_matter_is_overridden(kind: str, tmp_path: Path) -> None:
    folder, cache = checkpoints.make(kind, tmp_path), tmp_path / "cache"
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values.get("text_config", values)["notes_of_a_trainer"] = {"run": 7}
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="notes_of_a_trainer") as caught:
        lazyload.plan(folder, cache_dir=cache)
    way_out = ast.literal_eval(str(caught.value).rsplit("config=", 1)[1])
    plan = lazyload.plan(folder, cache_dir=cache, config=way_out)
    assert lazyload.convert(folder, cache_dir=cache, config=way_out).key == plan.key
    model = lazyload.from_pretrained(folder, cache_dir=cache, config=way_out)
    assert lazyload.last_report().hit
    assert model.config == lazyload.from_pretrained(checkpoints.make(kind, tmp_path / "plain"), cache_dir=cache).config


def test_overrides_are_part_of_the_key_and_reach_the_model(tmp_path: Path) -> None:
    folder, cache = checkpoints.make("qwen3", tmp_path), tmp_path / "cache"
    plain = lazyload.plan(folder, cache_dir=cache).key
    assert lazyload.plan(folder, cache_dir=cache, config=None).key == plain
    assert lazyload.plan(folder, cache_dir=cache, config={"rope_theta": 3e4}).key != plain
    model = lazyload.from_pretrained(folder, cache_dir=cache, config={"rms_norm_eps": 1e-3})
    assert model.config.norm.eps == 1e-3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([("a", 1)], "give fields of config.json"),
        ({"a": object()}, "must be those of JSON"),
        ({"a": float("nan")}, "must be those of JSON"),
        ({7: 1}, "give fields of config.json"),
        ({"quantization_config": None}, "says how the weights are stored"),
    ],
)
def test_overrides_that_are_none(config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=message):
        lazyload.plan(checkpoints.make("qwen3", tmp_path), cache_dir=tmp_path / "cache", config=config)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_what_the_shared_modules_of_transformers_read_is_known() -> None:
    import transformers
    from transformers import GenerationConfig, PretrainedConfig

    root = Path(transformers.__file__).parent
    shared = [root / f"{name}.py" for name in ("masking_utils", "modeling_utils", "modeling_layers", "cache_utils",
              "modeling_rope_utils", "configuration_utils", "core_model_loading", "modeling_flash_attention_utils",
              "integrations/moe", "integrations/flash_attention", "integrations/sdpa_attention",
              "integrations/flex_attention", "integrations/eager_paged", "integrations/finegrained_fp8")]  # fmt: skip
    read = {name for path in shared if path.exists() for name in _fields_read(path)}
    read |= {field.name for field in dataclasses.fields(PretrainedConfig)} | vars(GenerationConfig()).keys()
    unknown = {
        name
        for name in read - SHARED.keys() - BY_FAMILY - SWITCHES
        if not is_irrelevant(name) and not NO_FIELDS.fullmatch(name)
    }
    assert unknown == set()


def _fields_read(path: Path) -> set[str]:
    """The names that a module takes from something called a config."""
    is_config = re.compile(r"(\w+\.)*(text_|model_|decoder_)?config(\.get_text_config\(.*\))?")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name("getattr" | "hasattr"), args=[owner, ast.Constant(str(name)), *_]):
                pass
            case ast.Attribute(value=owner, attr=name):
                pass
            case _:
                continue
        if is_config.fullmatch(ast.unparse(owner)) and "generation" not in ast.unparse(owner):
            found.add(name)
    return found
