"""What only a GPU can show: cuDNN's attention is dense attention, and checkpoints reach the GPU as they are.

JAX_PLATFORMS=cuda,cpu python -m pytest tests/models/test_on_gpu.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import checkpoints
from support.decoders import ATTENTION, config, decode_scanned, layer, run

import lazyload
from lazyload.architecture import Attention
from lazyload.models.decoder import Decoder

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")

LENGTH = 512
TOKENS = (np.arange(4 * LENGTH).reshape(4, LENGTH) * 7 % 61).astype(np.int32)
REAL = np.arange(LENGTH) >= np.array([[0], [40], [300], [7]])
SEGMENTS = np.broadcast_to(np.arange(LENGTH, dtype=np.int32) // 150, TOKENS.shape)
PAIRS = REAL[:, None] & np.tri(LENGTH, dtype=bool)
WIDE = replace(ATTENTION, num_heads=8, head_dim=64)


def loss_and_gradient(model: Decoder, attention: Any, tokens: Any, dtype: Any, **kwargs: Any) -> tuple[Any, Any, str]:
    """Logits of the tokens that are real, the loss's gradient, and the program that computed them."""
    model.attention = attention
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda array: array.astype(dtype), state)

    def loss(state: Any, kwargs: Any) -> tuple[jax.Array, jax.Array]:
        logits, _ = nnx.merge(graphdef, state)(tokens, **kwargs)
        logits = jnp.where(REAL[:, : logits.shape[1], None], logits.astype(jnp.float32), 0)
        return jnp.mean(jax.nn.log_softmax(logits) * np.sin(np.arange(64))), logits

    lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(state, kwargs)
    (_, logits), gradient = lowered.compile()(state, kwargs)
    return logits, gradient, lowered.as_text()


def difference(found: Any, expected: Any) -> float:
    """Of all leaves together, relative to what is expected."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    squares = [(jnp.sum((a.astype(jnp.float32) - b) ** 2), jnp.sum(b**2)) for a, b in pairs]
    return float(np.sqrt(sum(float(a) for a, _ in squares) / sum(float(b) for _, b in squares)))


@pytest.mark.parametrize(
    ("mixer", "length", "kwargs"),
    [
        pytest.param(WIDE, LENGTH, {}, id="causal"),
        pytest.param(WIDE, 333, {}, id="an odd length"),
        pytest.param(WIDE, 333, {"attention_mask": REAL[:, :333]}, id="an odd length with padding"),
        pytest.param(
            replace(WIDE, window=100), 333, {"segment_ids": SEGMENTS[:, :333]}, id="an odd length in segments, a window"
        ),
        pytest.param(replace(WIDE, window=100), LENGTH, {}, id="window"),
        pytest.param(replace(WIDE, head_dim=128), LENGTH, {}, id="128 wide"),
        pytest.param(replace(WIDE, head_dim=256), LENGTH, {}, id="256 wide"),
        pytest.param(replace(WIDE, head_dim=8), LENGTH, {}, id="8 wide"),
        pytest.param(WIDE, LENGTH, {"attention_mask": REAL}, id="padding"),
        pytest.param(replace(WIDE, window=100), LENGTH, {"segment_ids": SEGMENTS}, id="segments and a window"),
        pytest.param(replace(WIDE, chunk=50), LENGTH, {}, id="chunks"),
        pytest.param(WIDE, LENGTH, {"attention_mask": PAIRS}, id="a mask of pairs"),
    ],
)
def test_cudnn_computes_dense_attention(mixer: Attention, length: int, kwargs: dict[str, Any]) -> None:
    model = Decoder(config(layer(mixer), layer(mixer)), rngs=nnx.Rngs(0))
    tokens = TOKENS[:, :length]
    exact = loss_and_gradient(model, "dense", tokens, jnp.float32, **kwargs)
    dense = loss_and_gradient(model, "dense", tokens, jnp.bfloat16, **kwargs)
    cudnn = loss_and_gradient(model, "cudnn", tokens, jnp.bfloat16, **kwargs)
    for found, rounded, expected in zip(cudnn[:2], dense[:2], exact[:2], strict=True):
        assert difference(found, expected) < max(1.5 * difference(rounded, expected), 1e-2)
    assert "cudnn$fmha" in cudnn[2]
    assert "cudnn$fmha" not in dense[2]


def test_in_bfloat16_cudnn_is_chosen_and_in_float32_it_is_not() -> None:
    model = Decoder(config(layer(WIDE)), rngs=nnx.Rngs(0))
    assert "cudnn$fmha" in loss_and_gradient(model, None, TOKENS, jnp.bfloat16)[2]
    assert "cudnn$fmha" not in loss_and_gradient(model, None, TOKENS, jnp.float32)[2]
    assert "cudnn$fmha" not in loss_and_gradient(model, None, TOKENS, jnp.bfloat16, attention_mask=REAL)[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize(
    "name",
    [
        "llama3",
        "qwen3_moe",
        "gemma2",
        "gemma3_text",
        "gemma3n_text",
        "gemma4_e2b",
        "gpt_oss_mxfp4",
        "deepseek_v3_fp8",
        "deepseek_v32_sparse",
        "deepseek_v4_flash",
        "llama4_text",
        "nemotron_h",
        "qwen3_next",
        "qwen3_w4a16",
    ],
)
def test_golden_logits(name: str, folder: Path) -> None:
    model = checkpoints.make(name, folder)
    tokens, expected = checkpoints.reference(name)
    mesh = jax.make_mesh((1,), ("fsdp",))
    loaded = lazyload.from_pretrained(model, mesh=mesh, dtype="float32", cache_dir=folder / "cache")
    again = lazyload.from_pretrained(model, mesh=mesh, dtype="float32", cache_dir=folder / "cache")
    assert lazyload.last_report().hit
    for delivered, read in zip(*map(jax.tree.leaves, (nnx.state(loaded), nnx.state(again))), strict=True):
        assert {device.platform for device in read.devices()} == {"gpu"}
        np.testing.assert_array_equal(delivered, read)
    with jax.default_matmul_precision("highest"):
        whole, _ = run(again, jnp.asarray(tokens))
        np.testing.assert_allclose(whole, expected, rtol=0, atol=2e-4)
        steps = decode_scanned(again, jnp.asarray(tokens), cache_size=tokens.shape[1])
        np.testing.assert_allclose(steps, expected, rtol=0, atol=2e-4)


def test_generate_and_save(folder: Path) -> None:
    source = checkpoints.make("qwen3", folder)
    model = lazyload.from_pretrained(source, mesh=jax.make_mesh((1,), ("fsdp",)), cache_dir=folder / "cache")
    tokens = lazyload.generate(model, np.array([[1, 2, 3], [4, 5, 6]]), 8)
    assert tokens.shape == (2, 11)
    lazyload.save_pretrained(model, folder / "saved", like=source)
    again = lazyload.from_pretrained(folder / "saved", mesh=jax.make_mesh((1,), ("fsdp",)), cache_dir=folder / "cache")
    for one, other in zip(*map(jax.tree.leaves, (nnx.state(model), nnx.state(again))), strict=True):
        np.testing.assert_array_equal(one, other)
