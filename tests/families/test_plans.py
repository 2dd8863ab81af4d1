"""What is stored on the hub is accounted for, tensor by tensor; what does not fit is one error."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from support import checkpoints

import lazyload
from lazyload.errors import TensorMismatchError
from lazyload.sources import ModelReference, open_source

Tensors = dict[str, np.ndarray]


def config_of(name: str) -> dict[str, Any]:
    return json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text())["config"]


PLAIN = [name for name in checkpoints.NAMES if "quantization_config" not in config_of(name)]


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


def write(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.asarray(array, order="C") for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


def plan(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> lazyload.Plan:
    return lazyload.plan(write(folder / "model", config, tensors), cache_dir=folder / "cache")


@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_every_tensor_is_used_or_knowingly_skipped(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = checkpoints.make(name, tmp_path)
    with caplog.at_level("INFO", logger="lazyload"):
        found = lazyload.plan(folder, cache_dir=tmp_path / "cache")
    told = [record.getMessage() for record in caplog.records if "knowingly not used" in record.getMessage()]
    assert [f"{len(found.skipped)} tensors, {found.skipped[0]} to" in line for line in told] == [True] * bool(
        found.skipped
    )
    used = {source for parameter in found.parameters.values() for source in parameter.sources}
    with contextlib.closing(open_source(ModelReference(folder))) as source:
        assert used | set(found.skipped) == set(source.tensors) | source.skipped
        of_activations = source.skipped
    assert not used & set(found.skipped)
    skipped = r".*visi?on.*|.*visual.*|.*multi_modal.*|mm_.*|.*audio.*|mtp\..*|model\.layers\.[45]\..*"
    if "gemma4" in name:
        skipped = rf"{skipped}|.*\.self_attn\.(k_proj|v_proj|k_norm)\.weight"
    assert all(re.fullmatch(skipped, tensor) for tensor in {*found.skipped} - of_activations)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("tied", [True, False])
def test_an_output_projection_counts_where_it_is_not_tied(name: str, tied: bool, tmp_path: Path) -> None:
    config, tensors = config_of(name), checkpoints.tensors(name)
    config["tie_word_embeddings"] = text_of(config)["tie_word_embeddings"] = tied
    ends = ("embed_tokens.weight", ".embeddings.weight", "embed.weight")
    embedding = next(tensor for tensor in tensors if tensor.endswith(ends))
    prefix = "language_model." if embedding.startswith("language_model.") else ""
    head = "head.weight" if embedding == "embed.weight" else f"{prefix}lm_head.weight"
    found = plan(tmp_path, config, {**tensors, head: tensors[embedding]})
    assert ("lm_head.kernel" in found.parameters) == (not tied)
    assert (head in found.skipped) == tied


@pytest.mark.parametrize("name", [name for name in PLAIN if not name.startswith(("deepseek_v4", "nemotron_h"))])
def test_rotary_frequencies_of_old_files_are_skipped(name: str, tmp_path: Path) -> None:
    tensors = checkpoints.tensors(name)
    query = next(tensor for tensor in tensors if ".self_attn." in tensor and "mtp" not in tensor)
    frequencies = f"{query[: query.index('self_attn')]}self_attn.rotary_emb.inv_freq"
    assert frequencies in plan(tmp_path, config_of(name), {**tensors, frequencies: np.ones(8, np.float32)}).skipped


@pytest.mark.parametrize("name", ["qwen3", "llama3_tied", "gemma3_text"])
def test_models_of_embeddings_are_stored_without_a_prefix(name: str, tmp_path: Path) -> None:
    config = {**config_of(name), "tie_word_embeddings": True}
    tensors = checkpoints.tensors(name)
    tensors.pop("lm_head.weight", None)
    bare = {tensor.removeprefix("model."): array for tensor, array in tensors.items()}
    assert plan(tmp_path, config, bare).parameters.keys() == plan(tmp_path, config, tensors).parameters.keys()


def gemma3_saved_by_newer_releases(name: str) -> str:
    for old, new in (("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")):
        name = name.replace(old, new)
    return name if name.startswith(("model.", "lm_head.")) else f"model.{name}"


def test_both_forms_of_multimodal_gemma_3(tmp_path: Path) -> None:
    config, tensors = config_of("gemma3"), checkpoints.tensors("gemma3")
    old = plan(tmp_path, config, tensors)
    new = plan(tmp_path, config, {gemma3_saved_by_newer_releases(name): array for name, array in tensors.items()})
    assert old.parameters.keys() == new.parameters.keys()
    assert len(old.skipped) == len(new.skipped) > 0


def test_gemma_3_without_its_vision_tower(tmp_path: Path) -> None:
    config, tensors = config_of("gemma3"), checkpoints.tensors("gemma3")
    text = {
        name.removeprefix("language_model."): array for name, array in tensors.items() if name.startswith("language")
    }
    assert plan(tmp_path, config, text).skipped == ()


def test_layers_of_gemma_4_that_share_keys_and_values_need_none_of_their_own(tmp_path: Path) -> None:
    config, tensors = config_of("gemma4_text_e2b"), checkpoints.tensors("gemma4_text_e2b")
    names = ("k_proj", "v_proj", "k_norm")
    unused = {f"model.layers.{number}.self_attn.{name}.weight" for number in range(4, 8) for name in names}
    found = plan(tmp_path, config, tensors)
    assert set(found.skipped) == unused
    without = plan(tmp_path, config, {name: array for name, array in tensors.items() if name not in unused})
    assert without.parameters.keys() == found.parameters.keys()
    assert without.skipped == ()
    assert "layers.3.attn.v_proj.kernel" in found.parameters
    config["num_kv_shared_layers"] = 3
    with pytest.raises(TensorMismatchError, match=r"model\.layers\.4\.mlp"):
        plan(tmp_path, config, tensors)


def test_what_predicts_further_tokens_in_deepseek_v3_is_skipped(tmp_path: Path) -> None:
    config, tensors = {**config_of("deepseek_v3"), "num_nextn_predict_layers": 1}, checkpoints.tensors("deepseek_v3")
    count = config["num_hidden_layers"]
    last, further = f"model.layers.{count - 1}.", f"model.layers.{count}."
    own = ("embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight",
           "shared_head.head.weight")  # fmt: skip
    extra = {name.replace(last, further): array for name, array in tensors.items() if name.startswith(last)}
    extra |= {further + name: np.ones((2, 2), np.float32) for name in own}
    assert plan(tmp_path, config, tensors | extra).skipped == tuple(sorted(extra))


@pytest.mark.parametrize("name", ["llama3", "deepseek_v2", "deepseek_v3", "qwen3_moe", "gemma3"])
def test_layers_that_the_configuration_does_not_have_are_an_error(name: str, tmp_path: Path) -> None:
    config = config_of(name)
    text_of(config)["num_hidden_layers"] -= 1
    with pytest.raises(TensorMismatchError, match="has no use for it"):
        plan(tmp_path, config, checkpoints.tensors(name))


def lacking(tensors: Tensors, name: str) -> Tensors:
    return {other: array for other, array in tensors.items() if other != name}


def surplus(tensors: Tensors, name: str) -> Tensors:
    return {**tensors, f"{name}.bias": tensors[name][:1]}


def misshapen(tensors: Tensors, name: str) -> Tensors:
    return {**tensors, name: tensors[name][:-1]}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lacking, "missing; expected an array of shape"), (surplus, "has no use for it"), (misshapen, "has shape")],
)
def test_a_tensor_that_does_not_fit_is_named(
    name: str, spoil: Callable[[Tensors, str], Tensors], message: str, tmp_path: Path
) -> None:
    tensors = checkpoints.tensors(name)
    last = (".self_attn.o_proj.weight", ".mixer.o_proj.weight", ".attn.wo_b.weight")
    spoilt = next(tensor for tensor in tensors if tensor.endswith(last) and "mtp" not in tensor)
    with pytest.raises(TensorMismatchError, match=message) as caught:
        plan(tmp_path, config_of(name), spoil(tensors, spoilt))
    (problem,) = caught.value.problems
    assert spoilt.removesuffix(".weight").replace("language_model.", "") in problem.replace("language_model.", "")


def test_all_problems_are_in_one_error(tmp_path: Path) -> None:
    tensors = checkpoints.tensors("mixtral")
    layer = "model.layers.1.block_sparse_moe"
    expert, router, norm = f"{layer}.experts.3.w2.weight", f"{layer}.gate.weight", "model.norm.weight"
    with pytest.raises(TensorMismatchError) as caught:
        plan(tmp_path, config_of("mixtral"), misshapen(surplus(lacking(tensors, expert), router), norm))
    assert sorted(problem.split(":")[0] for problem in caught.value.problems) == [expert, f"{router}.bias", norm]
    assert all(problem in str(caught.value) for problem in caught.value.problems)


def test_both_forms_of_deepseek_v4(tmp_path: Path) -> None:
    """DeepSeek's own names, and what transformers 5.24 makes of them as it saves a model."""
    config, tensors = config_of("deepseek_v4"), checkpoints.tensors("deepseek_v4")
    kept = {name: array for name, array in tensors.items() if not name.startswith("mtp.")}
    own = plan(tmp_path, config, kept)
    renamed = {"embed.": "model.embed_tokens.", "norm.": "model.norm.", "hc_head_": "model.hc_head.hc_"}
    renamed |= {"layers.": "model.layers.", "head.": "head."}

    def as_saved(name: str) -> str:
        prefix = next(prefix for prefix in renamed if name.startswith(prefix))
        return (renamed[prefix] + name.removeprefix(prefix)).replace("attn.kv_norm", "attn.norm")

    saved = plan(tmp_path, config, {as_saved(name): array for name, array in kept.items()})
    assert own.parameters.keys() == saved.parameters.keys()
    assert own.skipped == saved.skipped == ()
    assert set(plan(tmp_path, config, tensors).skipped) == tensors.keys() - kept.keys()
