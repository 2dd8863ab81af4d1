"""What the fields of a Gemma 3n mean that other families do not have, and the repositories that people have."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from support import checkpoints
from support.decoders import run

import lazyload
from lazyload import families
from lazyload.architecture import DecoderConfig

GOLDEN = json.loads((checkpoints.GOLDEN / "specs" / "gemma3n_text.json").read_text())["config"]
TOWERS = ("vision_tower.timm_model.conv_stem.conv.weight", "audio_tower.conformer.0.norm.weight")
EMBEDDERS = ("embed_vision.embedding.weight", "embed_audio.soft_embedding_norm.weight")


def read(**changes: Any) -> DecoderConfig:
    config: DecoderConfig = families.find(GOLDEN).config({**GOLDEN, **changes})
    return config


def multimodal(**changes: Any) -> dict[str, Any]:
    """The `config.json` of a repository with towers."""
    text = {name: value for name, value in GOLDEN.items() if name not in ("architectures", "tie_word_embeddings")}
    towers = {"vision_config": {"model_type": "gemma3n_vision"}, "audio_config": {"model_type": "gemma3n_audio"}}
    tokens = {"vision_soft_tokens_per_image": 256, "audio_soft_tokens_per_image": 188, "boi_token_id": 255_999}
    return {"model_type": "gemma3n", "text_config": {**text, **changes}, **towers, **tokens}


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_model_of_a_repository_with_towers(prefix: str, tmp_path: Path) -> None:
    stored = {
        prefix + name.removeprefix("model."): array for name, array in checkpoints.tensors("gemma3n_text").items()
    }
    beside = {f"model.{name}": np.ones(4, np.float32) for name in (*TOWERS, *EMBEDDERS)}
    save_file({**stored, **beside}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(multimodal()))
    tokens, expected = checkpoints.reference("gemma3n_text")
    mesh = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    with jax.default_matmul_precision("highest"):
        model = lazyload.from_pretrained(tmp_path, mesh=mesh, dtype="float32", cache_dir=tmp_path / "cache")
        np.testing.assert_allclose(run(model, jnp.asarray(tokens))[0], expected, rtol=0, atol=2e-4)


def test_what_a_part_of_a_file_leaves_out_is_that_of_the_releases() -> None:
    values = {"model_type": "gemma3n", "text_config": {"model_type": "gemma3n_text"}}
    config = families.find(values).config(values)
    assert (config.num_layers, config.embed_dim, config.vocab_size, config.tied) == (35, 2048, 262_400, True)
    assert [layer.feed_forward.sparsity for layer in config.layers] == [0.95] * 10 + [0.0] * 25
    assert {layer.feed_forward.mlp_dim for layer in config.layers} == {16_384}
    assert [layer.mixer.kv_layer for layer in config.layers] == [None] * 20 + ([18] * 4 + [19]) * 3
    assert [layer.mixer.window for layer in config.layers] == ([512] * 4 + [None]) * 7


def test_one_width_stands_for_all_layers() -> None:
    assert read(intermediate_size=96) == read()
    assert [layer.feed_forward.mlp_dim for layer in read(intermediate_size=[96] * 9 + [32]).layers] == [96] * 9 + [32]


def test_few_layers_are_not_sparse_by_default() -> None:
    assert {layer.feed_forward.sparsity for layer in read(activation_sparsity_pattern=None).layers} == {0.0}


def test_what_is_switched_off_is_not_there() -> None:
    assert "altup.output_scale" not in read(altup_correct_scale=False).layers[0].parameters
    assert read(final_logit_softcapping=None).final_softcap is None
