"""What a checkpoint stores decides where `config.json` says something else, as in transformers."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import checkpoints

import lazyload
from lazyload import errors
from lazyload.integrations.maxtext import with_checkpoint

Tensors = dict[str, np.ndarray]
TIED = ("qwen3", "llama3_tied", "gemma2", "gemma3", "granite", "qwen3_moe")
INDEX = "model.safetensors.index.json"


def config_of(name: str) -> dict[str, Any]:
    config = json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text())["config"]
    config["tie_word_embeddings"] = config.get("text_config", config)["tie_word_embeddings"] = True
    return config


def write(folder: Path, config: Mapping[str, Any], files: Mapping[str, Tensors]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensors in files.items():
        save_file({tensor: np.ascontiguousarray(array) for tensor, array in tensors.items()}, folder / name)
    return folder


def single(folder: Path, name: str, tensors: Tensors, **changes: Any) -> Path:
    return write(folder, {**config_of(name), **changes}, {"model.safetensors": tensors})


def tied_tensors(name: str) -> tuple[Tensors, str, str]:
    """The tensors without an output projection, the embedding's name, and what the projection would be called."""
    tensors = checkpoints.tensors(name)
    embedding = next(tensor for tensor in tensors if tensor.endswith("embed_tokens.weight"))
    head = embedding.replace("model.embed_tokens", "lm_head")
    tensors.pop(head, None)
    return tensors, embedding, head


def stored(folder: Path, cache: Path, **options: Any) -> dict[str, Any]:
    """The checksums of all arrays of a conversion."""
    manifest = lazyload.convert(folder, cache_dir=cache, **options).manifest
    return {path: record["checksum"] for path, record in manifest.arrays.items()}


@pytest.mark.parametrize("name", TIED)
def test_another_head_beside_a_tied_embedding_is_used(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors, embedding, head = tied_tensors(name)
    other = {**tensors, head: tensors[embedding][::-1]}
    folder, cache = single(tmp_path / "model", name, other), tmp_path / "cache"
    found = stored(folder, cache)
    assert "another one is stored" in caplog.text
    untied = config_of(name)
    untied["tie_word_embeddings"] = untied.get("text_config", untied)["tie_word_embeddings"] = False
    assert found == stored(write(tmp_path / "untied", untied, {"model.safetensors": other}), cache)
    assert "lm_head.kernel" in lazyload.plan(folder, cache_dir=cache).parameters
    for hit in (False, True):
        model = lazyload.from_pretrained(folder, cache_dir=cache, dtype="float32")
        assert lazyload.last_report().hit == hit
        assert not model.config.tied
        np.testing.assert_array_equal(model.lm_head.kernel[...].T, other[head].astype(np.float32))


def test_a_hit_reads_neither_embedding_nor_head(tmp_path: Path) -> None:
    tensors, embedding, head = tied_tensors("qwen3")
    folder = single(tmp_path / "model", "qwen3", {**tensors, head: tensors[embedding].copy()})
    lazyload.convert(folder, cache_dir=tmp_path / "cache")
    lazyload.from_pretrained(folder, cache_dir=tmp_path / "cache")
    assert lazyload.last_report().hit
    assert lazyload.last_report().bytes_read == 0


@pytest.mark.parametrize("name", TIED)
def test_an_equal_head_is_tied(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors, embedding, head = tied_tensors(name)
    plain = stored(single(tmp_path / "plain", name, tensors), tmp_path / "cache")
    both = {**tensors, head: tensors[embedding].copy()}
    assert stored(single(tmp_path / "both", name, both), tmp_path / "cache") == plain
    as_float32 = {**tensors, head: tensors[embedding].astype(np.float32)}
    assert stored(single(tmp_path / "float32", name, as_float32), tmp_path / "cache") == plain
    assert not caplog.records


def test_a_difference_at_the_end_is_found(tmp_path: Path) -> None:
    tensors, embedding, head = tied_tensors("qwen3")
    other = tensors[embedding].copy()
    other[-1, -1] += 1
    plan = lazyload.plan(single(tmp_path / "m", "qwen3", {**tensors, head: other}), cache_dir=tmp_path / "c")
    assert "lm_head.kernel" in plan.parameters


@pytest.mark.parametrize("name", TIED)
def test_a_tied_model_of_which_only_the_head_is_stored(name: str, tmp_path: Path) -> None:
    tensors, embedding, head = tied_tensors(name)
    plain = stored(single(tmp_path / "plain", name, tensors), tmp_path / "cache")
    renamed = {**tensors, head: tensors[embedding]}
    del renamed[embedding]
    assert stored(single(tmp_path / "renamed", name, renamed), tmp_path / "cache") == plain


def test_maxtext_is_told_what_is_stored(tmp_path: Path) -> None:
    tensors, embedding, head = tied_tensors("qwen3")
    folder = single(tmp_path / "model", "qwen3", {**tensors, head: tensors[embedding][::-1]})
    config = {
        "model_name": "tiny",
        "tokenizer_path": str(folder),
        "convert_checkpoint_if_possible": True,
        "scan_layers": True,
    }
    with pytest.raises(errors.ConfigError, match="logits_via_embedding is True, the checkpoint means False"):
        with_checkpoint({**config, "logits_via_embedding": True}, cache_dir=tmp_path / "cache")
    assert with_checkpoint({**config, "logits_via_embedding": False}, cache_dir=tmp_path / "cache")


def halves(tensors: Tensors) -> dict[str, Tensors]:
    names = list(tensors)
    return {f"model-0000{n + 1}-of-00002.safetensors": {name: tensors[name] for name in names[n::2]} for n in range(2)}


def index_of(files: Mapping[str, Tensors], **changes: str) -> str:
    return json.dumps({"weight_map": {name: file for file, half in files.items() for name in half} | changes})


@pytest.mark.parametrize("shards", ["there", "gone"])
def test_a_single_file_counts_more_than_an_index(shards: str, tmp_path: Path) -> None:
    old = checkpoints.tensors("qwen3")
    new = {name: array[::-1] for name, array in old.items()}
    files = halves(old)
    both = files if shards == "there" else {}
    folder = write(tmp_path / "both", config_of("qwen3"), {**both, "model.safetensors": new})
    (folder / INDEX).write_text(index_of(files))
    expected = stored(single(tmp_path / "single", "qwen3", new), tmp_path / "cache")
    assert stored(folder, tmp_path / "cache") == expected


@pytest.mark.parametrize("equal", [True, False])
def test_the_index_decides_between_two_files(equal: bool, tmp_path: Path) -> None:
    tensors = checkpoints.tensors("qwen3")
    name = "model.layers.0.mlp.down_proj.weight"
    files = halves(tensors)
    first = next(file for file, half in files.items() if name in half)
    overlay = {name: tensors[name] if equal else tensors[name][::-1]}
    folder = write(tmp_path / "model", config_of("qwen3"), {**files, "model-overlay.safetensors": overlay})
    for changes, expected in (({name: "model-overlay.safetensors"}, overlay[name]), ({name: first}, tensors[name])):
        (folder / INDEX).write_text(index_of(files, **changes))
        model = lazyload.from_pretrained(folder, cache_dir=tmp_path / "cache", dtype="float32")
        np.testing.assert_array_equal(model.layers[0].mlp.down_proj.kernel[...].T, expected.astype(np.float32))


EXTRAS: dict[str, Tensors] = {
    "rotary tables": {
        "{layer}self_attn.rotary_emb.cos_cached": np.ones((1, 1, 4, 8), np.float32),
        "{layer}self_attn.rotary_emb.sin_cached": np.ones((1, 1, 4, 8), np.float32),
    },
    "value head": {
        "v_head.summary.weight": np.ones((1, 64), np.float32),
        "v_head.summary.bias": np.ones(1, np.float32),
    },
    "zero bias": {"{layer}mlp.down_proj.bias": np.zeros(64, np.float32)},
}


def with_extra(name: str, extra: Tensors) -> Tensors:
    tensors = checkpoints.tensors(name)
    layer = next(tensor for tensor in tensors if ".self_attn." in tensor and "mtp" not in tensor).split("self_attn")[0]
    return tensors | {tensor.replace("{layer}", layer): array for tensor, array in extra.items()}


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "llama3", "granite"])
@pytest.mark.parametrize("extra", EXTRAS)
def test_tensors_that_no_model_reads_are_named_in_a_warning(
    name: str, extra: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors, cache = with_extra(name, EXTRAS[extra]), tmp_path / "cache"
    config = json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text())["config"]
    folder = write(tmp_path / "model", config, {"model.safetensors": tensors})
    plan = lazyload.plan(folder, cache_dir=cache)
    names = set(tensors) - set(checkpoints.tensors(name))
    assert set(plan.unread) == names
    assert all(tensor in caplog.text for tensor in names)
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert stored(folder, cache) == stored(checkpoints.make(name, tmp_path / "plain"), cache)
    for call in (lazyload.plan, lazyload.convert, lazyload.from_pretrained):
        with pytest.raises(errors.TensorMismatchError) as caught:
            call(folder, cache_dir=cache, strict=True)
        assert len(caught.value.problems) == len(names)


@pytest.mark.parametrize(
    "extra",
    [
        {"{layer}mlp.down_proj.bias": np.eye(1, 64, dtype=np.float32)[0]},
        {"{layer}mlp.up_proj.lora_A.weight": np.zeros((4, 64), np.float32)},
        {"{layer}nowhere.bias": np.zeros(64, np.float32)},
        {"model.layers.9.input_layernorm.weight": np.zeros(64, np.float32)},
        {"model.norm.offset": np.zeros(64, np.float32)},
    ],
)
def test_tensors_that_might_matter_are_errors(extra: Tensors, tmp_path: Path) -> None:
    folder = single(tmp_path / "model", "qwen3", with_extra("qwen3", extra), tie_word_embeddings=False)
    with pytest.raises(errors.TensorMismatchError, match="has no use for it"):
        lazyload.plan(folder, cache_dir=tmp_path / "cache")


def test_a_mesh_shards_the_head_that_is_stored(tmp_path: Path) -> None:
    tensors, embedding, head = tied_tensors("qwen3")
    folder = single(tmp_path / "model", "qwen3", {**tensors, head: tensors[embedding][::-1]})
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    model = lazyload.from_pretrained(folder, cache_dir=tmp_path / "cache", mesh=mesh)
    assert model.lm_head.kernel[...].sharding.spec == jax.sharding.PartitionSpec("fsdp", "tp")
