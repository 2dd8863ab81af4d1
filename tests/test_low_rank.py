"""LoRA's parameters beside the weights: from PEFT's format, and back into it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import checkpoints, stored
from support.decoders import run
from support.lora import ALPHA, PATHS, TENSORS, save

import lazyload
from lazyload.errors import ArgumentError, InputError, MissingPackageError, TensorMismatchError, UnsupportedFormatError
from lazyload.formats.peft import WEIGHTS


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
    _, folder = save(base, tmp_path, {**PATHS, "lm_head": 3})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = peft.PeftModel.from_pretrained(theirs, folder).merge_and_unload()
    model = lazyload.from_pretrained(base, adapter=folder, dtype="float32", cache_dir=tmp_path / "cache")
    tokens = np.arange(20).reshape(2, 10) * 3 % 61
    with torch.no_grad():
        expected = tuned(torch.tensor(tokens)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        logits, _ = run(model, jnp.asarray(tokens))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def with_more(folder: Path, copy: Path, more: dict[str, np.ndarray], **fields: Any) -> Path:
    """An adapter of one module, with further tensors of it."""
    module = "base_model.model.model.layers.0.self_attn."
    kept = {name: values for name, values in load_file(folder / WEIGHTS).items() if name.startswith(f"{module}q_proj")}
    copy.mkdir()
    save_file(kept | {f"{module}{name}": values for name, values in more.items()}, copy / WEIGHTS)
    config = json.loads((folder / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(config | fields))
    return copy


def test_what_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = save(base, tmp_path)
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "dtype": "float32"}
    as_adapter: dict[str, Any] = {"adapter_only": True, "lora_alpha": 1.0}
    with pytest.raises(ArgumentError, match="lora_alpha= belong together"):
        lazyload.save_pretrained(model, tmp_path / "x", like=base, adapter_only=True)
    plain = lazyload.from_pretrained(base, layers=range(1, 3), **options)
    with pytest.raises(TensorMismatchError, match="another model"):
        lazyload.save_pretrained(plain, tmp_path / "x", like=base, **as_adapter)
    with pytest.raises(InputError, match="no parameters of LoRA"):
        lazyload.save_pretrained(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), tmp_path / "x", like=base, **as_adapter)
    with pytest.raises(ArgumentError, match="give adapter="):
        lazyload.from_pretrained(base, merge=False, **options)
    for asked in ({"layout": lazyload.MaxText()}, {"into": plain}):
        with pytest.raises(ArgumentError, match="no into= or layout="):
            lazyload.from_pretrained(base, adapter=folder, merge=False, **asked, **options)
    for alpha in (0, "x", True):
        with pytest.raises(ArgumentError, match="give a number above 0"):
            lazyload.save_pretrained(model, tmp_path / "x", like=base, adapter_only=True, lora_alpha=alpha)
    monkeypatch.setattr("lazyload.low_rank.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="pip install qwix"):
        lazyload.from_pretrained(base, adapter=folder, merge=False, **options)
    monkeypatch.setattr("lazyload.low_rank.importlib.util.find_spec", lambda name: name)
    with pytest.raises(TensorMismatchError) as caught:
        lazyload.from_pretrained(base, adapter=folder, merge=False, scan_layers=True, **options)
    assert any("has no adapter, and others of its stack have one" in each for each in caught.value.problems)
    for number, (changes, message) in enumerate(
        (
            (
                {"q_proj.lora_magnitude_vector": np.ones(64, np.float32)},
                "magnitudes .use_dora., such as .*: give merge",
            ),
            ({"q_proj.lora_B.bias": np.ones(64, np.float32)}, "biases .lora_bias."),
            ({"q_proj.base_layer.bias": np.ones(64, np.float32)}, "tensors in place of the model's, such as .*q_proj"),
        )
    ):
        switches = {"use_dora": number == 0, "lora_bias": number == 1}
        richer = with_more(folder, tmp_path / f"richer{number}", changes, **switches)
        with pytest.raises(UnsupportedFormatError, match=message):
            lazyload.from_pretrained(base, adapter=richer, merge=False, **options)
    other = checkpoints.make("phi3", tmp_path)
    with pytest.raises(TensorMismatchError, match="cannot stand beside"):
        lazyload.from_pretrained(other, adapter=folder, merge=False, **options)


def test_experts_have_no_adapter_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither to be loaded nor to be saved: no trainer makes parameters of LoRA for them."""
    base = checkpoints.make("qwen3_moe", tmp_path)
    module = "base_model.model.model.layers.0.mlp.experts"
    of_all = {f"{module}.lora_A.weight": (16, 48), f"{module}.lora_B.weight": (64, 16)}
    of_one = {f"{module}.3.down_proj.lora_A.weight": (2, 48), f"{module}.3.down_proj.lora_B.weight": (64, 2)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_parameters": ["experts.down_proj"]}
    options: dict[str, Any] = {"cache_dir": tmp_path / "cache", "dtype": "float32"}
    monkeypatch.setattr("lazyload.low_rank.importlib.util.find_spec", lambda name: name)
    for number, shapes in enumerate((of_all, of_one)):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, folder / WEIGHTS)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        message = ("matrices for experts", "3.down_proj.weight: is no matrix that kernels .* merge=True merges it")[
            number
        ]
        with pytest.raises((UnsupportedFormatError, TensorMismatchError), match=message):
            lazyload.from_pretrained(base, adapter=folder, merge=False, **options)
    model = lazyload.from_pretrained(base, **options)
    model.layers[0].moe.down_proj.kernel_lora_a = nnx.LoRAParam(jnp.ones((8, 48, 2)))
    model.layers[0].moe.down_proj.kernel_lora_b = nnx.LoRAParam(jnp.ones((2, 64)))
    with pytest.raises(InputError, match=r"layers\.0\.moe\.down_proj\.kernel is no single matrix of the checkpoint"):
        lazyload.save_pretrained(model, tmp_path / "x", like=base, adapter_only=True, lora_alpha=1.0)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_pairs_of_a_fused_matrix_become_one(scan_layers: bool, tmp_path: Path) -> None:
    """Whatever ranks the parts have, and whether layers are stacked."""
    base = checkpoints.make("phi3", tmp_path)
    ranks = {"attn.q_proj": 4, "attn.v_proj": 2, "mlp.up_proj": 3, "mlp.down_proj": 4}
    layers = range(1) if scan_layers else range(4)
    paths = {f"layers.{layer}.{name}": rank for layer in layers for name, rank in ranks.items()}
    model, folder = save(base, tmp_path, paths | {"lm_head": 5}, scan_layers=scan_layers)
    matrices = load_file(folder / "adapter_model.safetensors")
    qkv = "base_model.model.model.layers.2.self_attn.qkv_proj.lora_"
    assert [matrices[f"{qkv}{half}.weight"].shape for half in "AB"] == [(6, 64), (128, 6)]
    merged = lazyload.from_pretrained(base, adapter=folder, dtype="float32", cache_dir=tmp_path / "cache")
    plain = lazyload.from_pretrained(base, dtype="float32", cache_dir=tmp_path / "cache")
    for layer in range(4):
        for name in (*ranks, "attn.k_proj", "mlp.gate_proj"):
            block, projection = name.split(".")
            before, after = (
                np.asarray(getattr(getattr(each.layers[layer], block), projection).kernel[...])
                for each in (plain, merged)
            )
            if name in ranks:
                own = getattr(getattr(model.layers[0 if scan_layers else layer], block), projection)
                a, b = (
                    np.asarray(half[...])[layer] if scan_layers else np.asarray(half[...])
                    for half in (own.kernel_lora_a, own.kernel_lora_b)
                )
                before = before + ALPHA / ranks[name] * np.tensordot(a, b, 1)
            np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5, err_msg=f"{layer} {name}")
