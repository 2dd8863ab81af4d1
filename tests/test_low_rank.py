"""LoRA's parameters beside the weights: from PEFT's format, and back into it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints, stored
from support.lora import ALPHA, PATHS, TENSORS, save

import lazyload
from lazyload.errors import ArgumentError, InputError, MissingPackageError, TensorMismatchError
from lazyload.formats import peft


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return checkpoints.make("llama3", tmp_path)


def test_an_adapter_that_is_saved_is_merged_as_it_was(base: Path, tmp_path: Path) -> None:
    _, folder = save(base, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 6.0, {r"layers\.1\.mlp\.down_proj": 2})
    merged = lazyload.from_pretrained(base, adapter=folder, dtype="float32", cache_dir=tmp_path / "cache")
    found = stored.tensors(lazyload.save_pretrained(merged, tmp_path / "merged", like=base))
    matrices = load_file(folder / "adapter_model.safetensors")
    before = stored.tensors(base)
    for path, rank in PATHS.items():
        name = TENSORS[path]
        a, b = (matrices[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
        assert a.shape[0] == b.shape[1] == rank
        expected = before[f"{name}.weight"].astype(np.float32) + ALPHA / rank * (b @ a)
        np.testing.assert_allclose(found[f"{name}.weight"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_loads_it(base: Path, tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers", minversion="5.24")
    _, folder = save(base, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(theirs, folder).merge_and_unload()
    model = lazyload.from_pretrained(base, adapter=folder, dtype="float32", cache_dir=tmp_path / "cache")
    tokens = np.arange(20).reshape(2, 10) * 3 % 61
    with torch.no_grad():
        expected = tuned(torch.tensor(tokens)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        logits, _ = model(jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_what_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = save(base, tmp_path)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "dtype": "float32"}
    with pytest.raises(ArgumentError, match="lora_alpha= belong together"):
        lazyload.save_pretrained(model, tmp_path / "x", like=base, adapter_only=True)
    plain = lazyload.from_pretrained(base, **options)
    with pytest.raises(InputError, match="no parameters of LoRA"):
        lazyload.save_pretrained(plain, tmp_path / "x", like=base, adapter_only=True, lora_alpha=1.0)
    with pytest.raises(ArgumentError, match="give adapter="):
        lazyload.from_pretrained(base, merge=False, **options)
    for asked in ({"layout": lazyload.MaxText()}, {"layers": range(1)}, {"scan_layers": True}):
        with pytest.raises(ArgumentError, match="no into=, layout=, layers= or scan_layers="):
            lazyload.from_pretrained(base, adapter=folder, merge=False, **asked, **options)
    for alpha in (0, "x", True):
        with pytest.raises(ArgumentError, match="give a number above 0"):
            lazyload.save_pretrained(model, tmp_path / "x", like=base, adapter_only=True, lora_alpha=alpha)
    monkeypatch.setattr("lazyload.low_rank.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install qwix"):
        lazyload.from_pretrained(base, adapter=folder, merge=False, **options)
    monkeypatch.setattr("lazyload.low_rank.importlib.util.find_spec", lambda name: name)
    other = checkpoints.make("phi3", tmp_path)
    with pytest.raises(TensorMismatchError, match="cannot stand beside"):
        lazyload.from_pretrained(other, adapter=folder, merge=False, **options)


def test_a_part_of_a_fused_matrix_is_no_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyload.low_rank.importlib.util.find_spec", lambda name: name)
    base = checkpoints.make("phi3", tmp_path)
    fused = stored.tensors(base)["model.layers.0.self_attn.qkv_proj.weight"]
    module = "base_model.model.model.layers.0.self_attn.qkv_proj"
    halves = {"A": np.zeros((4, fused.shape[1]), np.float32), "B": np.zeros((fused.shape[0], 4), np.float32)}
    (tmp_path / "fused").mkdir()
    save_file({f"{module}.lora_{half}.weight": a for half, a in halves.items()}, tmp_path / "fused" / peft.WEIGHTS)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["qkv_proj"]}
    (tmp_path / "fused" / peft.CONFIG).write_text(json.dumps(config))
    with pytest.raises(TensorMismatchError) as caught:
        lazyload.from_pretrained(base, adapter=tmp_path / "fused", merge=False, cache_dir=tmp_path / "cache")
    assert "is no matrix of the model that is a kernel of its own" in caught.value.problems[0]
