"""An adapter in PEFT's format, as the parameters of LoRA that Tunix trains and qwix makes."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import checkpoints, decoders, stored
from support.lora import ALPHA, PATHS, save

import lazyload
from lazyload.low_rank import lora_parameters

qwix = pytest.importorskip("qwix", reason="Tunix is not installed, nor its qwix")

pytestmark = [
    # qwix 0.1.8 uses much that Flax 0.12 deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_qwix_s_parameters_say_what_the_merged_weights_say(tmp_path: Path) -> None:
    base = checkpoints.make("llama3", tmp_path)
    _, folder = save(base, tmp_path)
    options: dict[str, Any] = {"dtype": "float32", "cache_dir": tmp_path / "cache"}
    merged = lazyload.from_pretrained(base, adapter=folder, **options)
    beside = lazyload.from_pretrained(base, adapter=folder, merge=False, **options)
    assert lazyload.last_report().hit, "the base model is in the cache without the adapter"
    assert len(jax.tree.leaves(nnx.state(beside, nnx.LoRAParam))) == 2 * len(PATHS)
    tokens = jnp.arange(20).reshape(2, 10) * 3 % 61
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(beside(tokens)[0], merged(tokens)[0], rtol=0, atol=1e-4)
    again = lazyload.save_pretrained(beside, tmp_path / "again", like=base, adapter_only=True, lora_alpha=ALPHA)
    matrices, others = (load_file(each / "adapter_model.safetensors") for each in (folder, again))
    assert matrices.keys() == others.keys()
    assert all(np.array_equal(matrices[name], others[name]) for name in matrices)


def test_what_an_adapter_was_made_with_is_kept(tmp_path: Path) -> None:
    base = checkpoints.make("llama3", tmp_path)
    _, folder = save(base, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "alpha_pattern": {"o_proj": 3.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    options: dict[str, Any] = {"dtype": "float32", "cache_dir": tmp_path / "cache"}
    beside = lazyload.from_pretrained(base, adapter=folder, merge=False, **options)
    again = lazyload.save_pretrained(beside, tmp_path / "again", like=base, adapter_only=True, lora_alpha=ALPHA)
    one, other = (lazyload.from_pretrained(base, adapter=each, **options) for each in (folder, again))
    for before, after in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-6)


def adapter_of_all(base: Path, folder: Path, **options: Any) -> dict[str, np.ndarray]:
    """An adapter of all matrices but the embedding; returns its own."""
    random = np.random.default_rng(0)
    matrices = {}
    for name, weight in stored.tensors(base).items():
        if weight.ndim == 2 and "embed_tokens" not in name:
            module, (out, into) = f"base_model.model.{name.removesuffix('.weight')}", weight.shape
            matrices[f"{module}.lora_A.weight"] = random.normal(size=(4, into)).astype(np.float32) / into**0.5
            matrices[f"{module}.lora_B.weight"] = random.normal(size=(out, 4)).astype(np.float32) * 0.05
    folder.mkdir()
    save_file(matrices, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6} | options))
    return matrices


def test_fused_matrices_in_stacked_layers(tmp_path: Path) -> None:
    base = checkpoints.make("phi3", tmp_path)
    matrices = adapter_of_all(base, tmp_path / "adapter")
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    options: dict[str, Any] = {"dtype": "float32", "cache_dir": tmp_path / "cache", "scan_layers": True, "mesh": mesh}
    options |= {"adapter": tmp_path / "adapter", "layers": range(1, 4)}
    merged = lazyload.from_pretrained(base, **options)
    beside = lazyload.from_pretrained(base, merge=False, **options)
    up = beside.layers[0].mlp.up_proj
    assert tuple(up.kernel_lora_b[...].sharding.spec) == (None, None, "tp")
    tokens = jnp.arange(20).reshape(2, 10) * 3 % 61
    run = nnx.jit(lambda model, tokens: model(tokens)[0])
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(run(beside, tokens), run(merged, tokens), rtol=0, atol=1e-4)
    whole = lazyload.from_pretrained(base, merge=False, **options | {"layers": None})
    again = lazyload.save_pretrained(whole, tmp_path / "again", like=base, adapter_only=True, lora_alpha=ALPHA)
    saved = load_file(again / "adapter_model.safetensors")
    assert saved.keys() == matrices.keys()
    assert all(np.array_equal(matrices[name], saved[name]) for name in matrices)


def test_it_lies_where_qwix_would_put_it(tmp_path: Path) -> None:
    base = checkpoints.make("llama3", tmp_path)
    adapter_of_all(base, tmp_path / "adapter")
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    options: dict[str, Any] = {"dtype": "bfloat16", "cache_dir": tmp_path / "cache", "mesh": mesh}
    ours = lazyload.from_pretrained(base, merge=False, adapter=tmp_path / "adapter", **options)
    plain = lazyload.from_pretrained(base, **options)
    provider = qwix.LoraProvider(module_path=".*_proj|lm_head", rank=4, alpha=6.0)
    theirs = qwix.apply_lora_to_model(plain, provider, rngs=nnx.Rngs(0), **plain.get_model_input())
    expected, found = (lora_parameters(each) for each in (theirs, ours))
    assert expected.keys() == found.keys()
    for path, one in expected.items():
        other = found[path]
        assert (one.shape, one[...].dtype) == (other.shape, other[...].dtype), path
        assert one[...].sharding.is_equivalent_to(other[...].sharding, one[...].ndim), path
        metadata = other.get_metadata()
        metadata.pop("lora_alpha", None)
        assert one.get_metadata() == metadata, path


def test_latent_attention_has_it_with_a_cache_too() -> None:
    """Keys and values are not expanded there: the projection's weights are multiplied with, and not called."""
    model = lazyload.Decoder(decoders.config(decoders.layer(decoders.LATENT)), dtype=jnp.float32, rngs=nnx.Rngs(0))
    provider = qwix.LoraProvider(
        module_path=".*kv_b_proj", rank=2, alpha=4.0, lora_b_initializer=jax.nn.initializers.normal(1.0)
    )
    model = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(0), **model.get_model_input())
    tokens = jnp.arange(6)[None] % 5
    with jax.default_matmul_precision("highest"):
        expected, _ = decoders.run(model, tokens)
        found, _ = decoders.run(model, tokens, cache=model.init_cache(1, 8, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
