"""An adapter in PEFT's format, as the parameters of LoRA that Tunix trains and qwix makes."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from support import checkpoints
from support.lora import ALPHA, PATHS, save

import lazyload

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="Tunix is not installed"),
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
