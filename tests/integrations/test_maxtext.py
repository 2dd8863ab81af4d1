"""Filling in a MaxText config: what is converted, and what is refused. Configs are plain fields here; MaxText's own
are tested where MaxText restores."""

import ast
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec as P
from support import checkpoints

import lazyload
from lazyload.errors import ConfigError, LayoutError, SourceNotFoundError, StorageError
from lazyload.integrations.maxtext import HUB_IDS, with_checkpoint

# Golden models, with those of the settings of their golden trees that are compared with config.json, and more that are.
GDN = [
    f"gdn_{name}" for name in ("conv_kernel_dim", "key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads")
]
INDEXER = ["indexer_n_heads", "indexer_head_dim", "indexer_topk"]
COMPARED: dict[str, tuple[list[str], dict[str, Any]]] = {
    "llama4_8": (
        ["base_moe_mlp_dim", "num_experts_per_tok"],
        {
            "base_mlp_dim": 96,
            "shared_experts": 1,
            "inhomogeneous_layer_cycle_interval": 4,
            "interleave_moe_layer_step": 2,
            "nope_layer_interval": 4,
            "chunk_attn_window_size": 8,
            "temperature_tuning": True,
            "use_qk_norm": False,
        },
    ),
    "deepseek_v4_7": (
        ["o_groups", "o_lora_rank", "mhc_expansion_rate", "first_num_hash_layers", "sliding_window_size", *INDEXER],
        {},
    ),
    "deepseek_v32": (INDEXER, {}),
    "qwen3_5_moe_8": (GDN, {"inhomogeneous_layer_cycle_interval": 4, "shared_experts": 1}),
    "qwen3_next_8": (GDN, {"inhomogeneous_layer_cycle_interval": 4, "shared_experts": 1}),
    "gemma4_a4b_12": (
        ["global_head_dim", "global_num_kv_heads", "share_kv_projections", "base_moe_mlp_dim", "num_experts_per_tok"],
        {"shared_experts": 1, "first_num_dense_layers": 0, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    ),
    "gemma4_e2b_10": (
        ["num_kv_shared_layers", "hidden_size_per_layer_input", "vocab_size_per_layer_input", "use_double_wide_mlp"],
        {"model_name": "gemma4-e2b", "scan_layers": False},
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("qwen3", "gemma2", "deepseek_v3", "gpt_oss", "phi3", "qwen3_vl", *COMPARED):
        checkpoints.make(name, folder)
    return folder


@pytest.fixture(autouse=True)
def _no_pathways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USE_PATHWAYS", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def qwen(models: Path, **fields: Any) -> dict[str, Any]:
    return {
        "model_name": "tiny",
        "tokenizer_path": str(models / "qwen3"),
        "convert_checkpoint_if_possible": True,
        "load_parameters_path": "",
        "scan_layers": True,
        "checkpoint_storage_use_ocdbt": True,
        "checkpoint_storage_use_zarr3": True,
        "base_emb_dim": 64,
        "base_num_query_heads": 4,
        "base_num_kv_heads": 2,
        "base_mlp_dim": 96,
        "base_num_decoder_layers": 4,
        "head_dim": 16,
        "vocab_size": 512,
        "num_experts": 1,
        "logits_via_embedding": False,
        "attention_bias": False,
        **fields,
    }


def tree(config: dict[str, Any]) -> dict[str, Any]:
    return ocp.PyTreeCheckpointer().metadata(config["load_parameters_path"]).item_metadata.tree


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("flags", [True, False])
def test_layout_and_storage_are_the_config_s(models: Path, tmp_path: Path, scan_layers: bool, flags: bool) -> None:
    storage = {"checkpoint_storage_use_ocdbt": flags, "checkpoint_storage_use_zarr3": flags}
    config = qwen(models, scan_layers=scan_layers, vocab_size=520, **storage)
    filled = with_checkpoint(config, cache_dir=tmp_path)
    assert filled == {**config, "load_parameters_path": filled["load_parameters_path"]}
    path = Path(filled["load_parameters_path"])
    parameters = tree(filled)["params"]["params"]
    assert ("layers" in parameters["decoder"]) == scan_layers
    assert parameters["token_embedder"]["embedding"].shape == (520, 64)
    assert (path / "manifest.ocdbt").exists() == flags
    # MaxText takes `items` off the path and asks the composite checkpoint.
    assert path.name == "items"
    for folder in (path, path.parent):
        metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())
        assert metadata["custom_metadata"]["scan_layers"] is scan_layers


@pytest.mark.parametrize("flags", [True, False])
def test_plain_orbax_restores_the_path(models: Path, tmp_path: Path, flags: bool) -> None:
    storage = lazyload.Storage(ocdbt=flags, zarr3=flags)
    converted = lazyload.convert(
        models / "qwen3", layout=lazyload.MaxText(), storage=storage, cache_dir=tmp_path, dtype="float32"
    )
    restored = ocp.PyTreeCheckpointer().restore(converted.path)
    assert restored["step"] == 0
    embedding = checkpoints.tensors("qwen3")["model.embed_tokens.weight"]
    found = np.asarray(restored["params"]["params"]["token_embedder"]["embedding"])
    np.testing.assert_array_equal(found, embedding.astype(np.float32))


def test_the_parameter_tree_on_a_mesh(models: Path, tmp_path: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    layout = lazyload.MaxText(vocab_size=520)
    tree = lazyload.from_pretrained(models / "qwen3", layout=layout, mesh=mesh, cache_dir=tmp_path)
    path = lazyload.convert(models / "qwen3", layout=layout, cache_dir=tmp_path).path
    assert not lazyload.last_report().reasons
    expected = ocp.PyTreeCheckpointer().restore(path)["params"]
    assert jax.tree.structure(tree) == jax.tree.structure({"params": expected})
    for leaf, plain in zip(jax.tree.leaves(tree["params"]), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.mesh == mesh
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(plain))
    layers = tree["params"]["params"]["decoder"]["layers"]
    assert layers["mlp"]["wo"]["kernel"].sharding.spec == P("tp", None, "fsdp")
    assert layers["self_attention"]["query"]["kernel"].addressable_shards[0].data.shape == (16, 4, 2, 16)
    assert tree["params"]["params"]["token_embedder"]["embedding"].sharding.spec == P("tp", "fsdp")


@pytest.mark.parametrize("name", ["qwen3_5_moe_8", "qwen3_next_8", "gemma4_a4b_12"])
def test_blocks_that_are_scanned_twice_on_a_mesh(models: Path, tmp_path: Path, name: str) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    path = lazyload.convert(models / name, layout=lazyload.MaxText(), cache_dir=tmp_path).path
    found = lazyload.from_pretrained(models / name, layout=lazyload.MaxText(), mesh=mesh, cache_dir=tmp_path)
    assert lazyload.last_report().hit
    expected = ocp.PyTreeCheckpointer().restore(path)["params"]
    for leaf, plain in zip(jax.tree.leaves(found["params"]), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == plain.dtype
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(plain))
    decoder = found["params"]["params"]["decoder"]
    if name == "qwen3_5_moe_8":
        layer = decoder["layers"]["layer_0"]["attention"]
        assert layer["in_proj_qkvz"]["kernel"].sharding.spec == P("fsdp", None, "tp")
        assert {layer[kind].dtype.name for kind in ("A_log", "dt_bias")} == {"float32", "bfloat16"}
    if name == "gemma4_a4b_12":
        query = decoder["scanned_blocks"]["local_layers"]["self_attention"]["query"]["kernel"]
        assert query.sharding.spec == P("fsdp", None, None, "tp")


def test_a_second_run_takes_the_same_checkpoint(models: Path, tmp_path: Path) -> None:
    first, second = (with_checkpoint(qwen(models), cache_dir=tmp_path) for _ in range(2))
    assert first == second
    assert lazyload.last_report().hit


@pytest.mark.parametrize(
    "config",
    [
        {"model_name": "qwen3-8b", "convert_checkpoint_if_possible": False, "load_parameters_path": ""},
        {"model_name": "qwen3-8b", "convert_checkpoint_if_possible": True, "load_parameters_path": "/mine/0/items"},
    ],
)
def test_a_config_that_asks_for_nothing_comes_back_as_it_is(config: dict[str, Any]) -> None:
    assert with_checkpoint(config) is config


def test_other_configs_keep_their_type(models: Path, tmp_path: Path) -> None:
    class Config(SimpleNamespace):
        """The two methods of pydantic that MaxText's configs are used by."""

        def model_copy(self, update: dict[str, Any]) -> "Config":
            return Config(**{**vars(self), **update})

    filled = with_checkpoint(Config(**qwen(models)), cache_dir=tmp_path)
    assert isinstance(filled, Config)
    assert Path(filled.load_parameters_path).is_dir()


def test_all_differences_are_in_one_error(models: Path, tmp_path: Path) -> None:
    wrong = {"base_emb_dim": 128, "emb_dim": 256, "head_dim": 32, "base_num_decoder_layers": 2, "vocab_size": 500}
    with pytest.raises(ConfigError) as caught:
        with_checkpoint(qwen(models, logits_via_embedding=True, num_experts=8, **wrong), cache_dir=tmp_path)
    assert str(caught.value).splitlines()[1:] == [
        "  - emb_dim is 256, config.json means 64",
        "  - base_num_decoder_layers is 2, config.json means 4",
        "  - num_experts is 8, config.json means 1",
        "  - logits_via_embedding is True, config.json means False",
        "  - head_dim is 32, config.json means 16",
        "  - vocab_size is 500, config.json has 512; it can be larger, but not smaller",
    ]
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_maxtext_layer_of_gemma_2_is_two_layers(models: Path, tmp_path: Path) -> None:
    gemma = {"tokenizer_path": str(models / "gemma2"), "logits_via_embedding": True, "vocab_size": 640}
    filled = with_checkpoint(qwen(models, base_num_decoder_layers=2, **gemma), cache_dir=tmp_path)
    assert tree(filled)["params"]["params"]["token_embedder"]["embedding"].shape == (640, 64)
    with pytest.raises(ConfigError, match=r"base_num_decoder_layers is 4, config\.json means 2"):
        with_checkpoint(qwen(models, **gemma), cache_dir=tmp_path)


def test_experts_and_latent_attention_are_compared(models: Path, tmp_path: Path) -> None:
    right = {
        "tokenizer_path": str(models / "deepseek_v3"),
        "base_num_decoder_layers": 5,
        "base_num_kv_heads": 4,
        "head_dim": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "base_moe_mlp_dim": 48,
        "first_num_dense_layers": 2,
        "shared_experts": 1,
        "q_lora_rank": 24,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
    }
    assert Path(with_checkpoint(qwen(models, **right), cache_dir=tmp_path)["load_parameters_path"]).is_dir()
    for name in sorted(right.keys() - {"tokenizer_path", "head_dim", "base_num_kv_heads"}):
        with pytest.raises(ConfigError, match=f"  - {name} is"):
            with_checkpoint(qwen(models, **{**right, name: right[name] + 1}), cache_dir=tmp_path)


def tree_settings(models: Path, name: str) -> dict[str, Any]:
    """A config of a golden model, as its golden tree was made with."""
    tree = json.loads(next((checkpoints.GOLDEN / "maxtext").glob(f"{name}-*.json")).read_text())
    overrides = (override.split("=") for override in tree["overrides"] if override != "attention=dot_product")
    settings = {key: ast.literal_eval(value) for key, value in overrides}
    unlike = {"base_mlp_dim": None, "logits_via_embedding": None, "tokenizer_path": str(models / name)}
    return qwen(models, **{**unlike, **settings})


@pytest.mark.parametrize("name", COMPARED)
def test_what_only_some_families_have_is_compared(models: Path, tmp_path: Path, name: str) -> None:
    compared, more = COMPARED[name]
    config = tree_settings(models, name) | more
    model = models / name
    assert Path(with_checkpoint(config, model=model, cache_dir=tmp_path)["load_parameters_path"]).is_dir()
    for field in [*compared, *(more.keys() - {"model_name", "scan_layers"})]:
        value = not config[field] if isinstance(config[field], bool) else config[field] + 1
        with pytest.raises(ConfigError, match=f"  - {field} is {value}, config.json means {config[field]}"):
            with_checkpoint({**config, field: value}, model=model, cache_dir=tmp_path)


def test_a_small_gemma_4_of_another_name_has_another_pattern(models: Path, tmp_path: Path) -> None:
    config = tree_settings(models, "gemma4_e2b_10") | {"scan_layers": False, "model_name": "gemma4-e4b"}
    with pytest.raises(ConfigError, match=r"model_name is gemma4-e4b, whose every 6th layer .* has every 5th"):
        with_checkpoint(config, model=models / "gemma4_e2b_10", cache_dir=tmp_path)


def test_what_maxtext_does_not_scan_or_wants_packed(models: Path, tmp_path: Path) -> None:
    config = tree_settings(models, "qwen3_vl") | {"deepstack_visual_indexes_for_vit": [5, 11]}
    with pytest.raises(
        ConfigError, match=r"deepstack_visual_indexes_for_vit is \[5, 11\].*give \[\], or scan_layers=F"
    ):
        with_checkpoint(config, cache_dir=tmp_path)
    filled = with_checkpoint({**config, "scan_layers": False}, cache_dir=tmp_path)
    assert "layers_0" in tree(filled)["params"]["params"]["decoder"]
    with pytest.raises(ConfigError, match="weight_dtype is float8_e4m3fn, for which MaxText wants codes and scales"):
        with_checkpoint(qwen(models, weight_dtype="float8_e4m3fn"), cache_dir=tmp_path)


def test_a_config_that_contradicts_the_entry_it_names(models: Path, tmp_path: Path) -> None:
    filled = with_checkpoint(qwen(models), cache_dir=tmp_path)
    assert with_checkpoint(filled) is filled
    with pytest.raises(ConfigError, match=r"asks for layout maxtext-unscanned, but .* with layout maxtext;"):
        with_checkpoint({**filled, "scan_layers": False})
    with pytest.raises(ConfigError, match=r"asks for vocab_size 640, but .* with vocab_size 512"):
        with_checkpoint({**filled, "vocab_size": 640})
    with pytest.raises(ConfigError, match=r"asks for ocdbt False, but .* with ocdbt True"):
        with_checkpoint({**filled, "checkpoint_storage_use_ocdbt": False})
    with pytest.raises(ConfigError, match=r"layout maxtext-unscanned, zarr3 False, but .* layout maxtext, zarr3 True"):
        with_checkpoint({**filled, "scan_layers": False, "checkpoint_storage_use_zarr3": False})


def test_a_config_that_does_not_say_how_layers_are_scanned_takes_it_from_the_entry(
    models: Path, tmp_path: Path
) -> None:
    filled = with_checkpoint(qwen(models, scan_layers=False), cache_dir=tmp_path)
    del filled["scan_layers"]
    assert with_checkpoint(filled) is filled


def test_an_entry_that_is_no_maxtext_checkpoint(models: Path, tmp_path: Path) -> None:
    house = lazyload.convert(models / "qwen3", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"asks for layout maxtext, but .* with layout nnx"):
        with_checkpoint(qwen(models, load_parameters_path=str(house.path)))


def test_scanned_layers_on_another_axis(models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="param_scan_axis is 0"):
        with_checkpoint(qwen(models, param_scan_axis=0), cache_dir=tmp_path)
    filled = with_checkpoint(qwen(models, param_scan_axis=0, scan_layers=False), cache_dir=tmp_path)
    assert "layers_0" in tree(filled)["params"]["params"]["decoder"]


def test_a_family_without_a_table(models: Path, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="no MaxText layout"):
        with_checkpoint(qwen(models, tokenizer_path=str(models / "phi3")), cache_dir=tmp_path)


def test_under_pathways_the_config_s_flags_must_be_off(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "proxy,cpu")
    with pytest.raises(StorageError, match="Pathways"):
        with_checkpoint(qwen(models), cache_dir=tmp_path)
    off = {"checkpoint_storage_use_ocdbt": False, "checkpoint_storage_use_zarr3": False}
    path = Path(with_checkpoint(qwen(models, **off), cache_dir=tmp_path)["load_parameters_path"])
    assert not list(path.rglob("zarr.json"))
    assert list(path.rglob(".zarray"))
    assert not (path / "manifest.ocdbt").exists()


def test_runs_with_and_without_pathways_share_a_cache_but_no_entry(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {name: value for name, value in qwen(models).items() if not name.startswith("checkpoint_storage")}
    environments = {"multi-controller": ("cpu", "0"), "pathways": ("proxy,cpu", "1")}
    found: dict[str, list[str]] = {name: [] for name in environments}
    for _ in range(2):
        for name, (platforms, pathways) in environments.items():
            monkeypatch.setenv("JAX_PLATFORMS", platforms)
            monkeypatch.setenv("USE_PATHWAYS", pathways)
            found[name].append(with_checkpoint(config, cache_dir=tmp_path)["load_parameters_path"])
    for paths in found.values():
        assert len(set(paths)) == 1
    [ours], [theirs] = (set(paths) for paths in found.values())
    assert (Path(ours) / "manifest.ocdbt").exists()
    assert {path.name for path in Path(theirs).rglob(".z*")} == {".zarray"}
    assert not list(Path(theirs).rglob("zarr.json"))
    assert len(lazyload.Cache(tmp_path).entries()) == 2


@pytest.mark.parametrize("flag", ["ocdbt", "zarr3"])
def test_pathways_can_read_neither(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv("USE_PATHWAYS", "1")
    with pytest.raises(StorageError, match=rf"{flag}=True.*Pathways"):
        lazyload.convert(
            models / "qwen3", layout=lazyload.MaxText(), storage=lazyload.Storage(**{flag: True}), cache_dir=tmp_path
        )
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("model", "changes", "layout", "message"),
    [
        ("gpt_oss", {"num_hidden_layers": 3}, {}, r"3 layers are not a multiple of 2.*scan_layers=False"),
        ("qwen3", {}, {"vocab_size": 511}, r"vocab_size=511.*512 rows"),
        ("phi3", {}, {}, r"no MaxText layout; these have one: .*qwen3"),
    ],
)
def test_what_has_no_layout_is_refused_before_any_work(
    models: Path, tmp_path: Path, model: str, changes: dict[str, Any], layout: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(models / model, tmp_path / model)
    config = json.loads((folder / "config.json").read_text())
    if changes:
        config = {name: value for name, value in config.items() if name != "layer_types"}
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(LayoutError, match=message):
        lazyload.convert(folder, layout=lazyload.MaxText(**layout), cache_dir=tmp_path / "cache")
    assert not list(tmp_path.rglob("manifest.json"))


def test_which_checkpoint_a_config_means(tmp_path: Path) -> None:
    asked = {"convert_checkpoint_if_possible": True}
    with pytest.raises(ConfigError, match="model="):
        with_checkpoint({"model_name": "mine", "tokenizer_path": "", **asked})
    # The name decides before the tokenizer does, as for MaxText itself.
    config = {"model_name": "qwen3-8b", "tokenizer_path": "somebody/else", **asked}
    with pytest.raises(SourceNotFoundError, match=HUB_IDS["qwen3-8b"]):
        with_checkpoint(config, cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(SourceNotFoundError, match="v1"):
        with_checkpoint({**config, "revision": "v1"}, cache_dir=tmp_path, local_files_only=True)
