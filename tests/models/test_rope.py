import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyload.architecture import Rope
from lazyload.models.rope import frequencies, rotate, rotation

DIM = 16


@given(
    kind=st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic", "longrope", "proportional"]), data=st.data()
)
@settings(deadline=None, max_examples=60)
def test_frequencies_are_those_of_transformers(kind, data):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    theta = data.draw(st.sampled_from([1e4, 1.5e5, 5e5, 1e6]))
    factor = data.draw(st.floats(1.5, 40))
    original = data.draw(st.sampled_from([64, 4096, 8192]))
    truncate = data.draw(st.booleans())
    length = data.draw(st.integers(1, 20000))
    share = data.draw(st.sampled_from([0.0, 0.25, 0.4, 1.0]))
    short, long = ([1 + 0.1 * n * k for n in range(DIM // 2)] for k in (1, 3))
    parameters = {
        "default": {},
        "linear": {"factor": factor},
        "llama3": {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "yarn": {"factor": factor, "truncate": truncate},
        "dynamic": {"factor": factor},
        "proportional": {"factor": factor, "partial_rotary_factor": share},
        "longrope": {"short_factor": short, "long_factor": long, "factor": factor},
    }[kind]
    reach = original if kind == "dynamic" else 4 * original
    config = transformers.LlamaConfig(
        hidden_size=4 * DIM,
        num_attention_heads=4,
        head_dim=DIM,
        max_position_embeddings=reach,
        rope_parameters={
            "rope_type": kind,
            "rope_theta": theta,
            "original_max_position_embeddings": original,
            **parameters,
        },
    )
    rope = Rope(
        theta=theta,
        dim=DIM,
        kind=kind,
        factor=factor,
        original_max_position=original,
        truncate=truncate,
        short_factor=tuple(short),
        long_factor=tuple(long),
        turning_pairs=int(share * DIM // 2) if kind == "proportional" else 0,
    )
    if kind == "default":
        expected = theta ** -(np.arange(0, DIM, 2) / DIM)
    else:
        expected = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)[0].numpy()
    np.testing.assert_allclose(frequencies(rope, length), expected, rtol=2e-5)


def test_only_the_first_dimensions_turn():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 12)).astype(np.float32)
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    turned = rotate(x, rotation(Rope(theta=100.0, dim=8), positions))
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])
    np.testing.assert_allclose(turned[:, 0], x[:, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    assert not np.allclose(turned[:, 1:, :, :8], x[:, 1:, :, :8])


@pytest.mark.parametrize("interleaved", [False, True])
def test_products_depend_on_distance_only(interleaved):
    q, k = np.random.default_rng(1).normal(size=(2, 1, 4, 1, 8)).astype(np.float32)
    rope = Rope(theta=100.0, dim=8, interleaved=interleaved)

    def products(offset):
        turn = rotation(rope, offset + jnp.arange(4)[None])
        return np.einsum("bqhd,bkhd->bqk", rotate(q, turn), rotate(k, turn))

    np.testing.assert_allclose(products(0), products(50), atol=1e-4)


def test_interleaved_pairs_turn_like_halves_of_permuted_heads():
    x = np.random.default_rng(2).normal(size=(1, 4, 2, 8)).astype(np.float32)
    permuted = np.concatenate([x[..., 0::2], x[..., 1::2]], axis=-1)
    positions = jnp.arange(4)[None]
    expected = rotate(permuted, rotation(Rope(theta=100.0, dim=8), positions))
    found = rotate(x, rotation(Rope(theta=100.0, dim=8, interleaved=True), positions))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_longrope_switches_when_the_largest_position_passes_the_original_length():
    rope = Rope(theta=1e4, dim=4, kind="longrope", original_max_position=8, short_factor=(1, 1), long_factor=(2, 4))
    inside, beyond = (rotation(rope, jnp.array([[1, last]])) for last in (7, 8))
    plain = np.float32([1.0, 1e-2])
    np.testing.assert_allclose(inside.sin[0, 0], np.sin(plain), rtol=1e-5)
    np.testing.assert_allclose(beyond.sin[0, 0], np.sin(plain / [2, 4]), rtol=1e-5)


def test_longrope_may_have_a_magnitude_of_its_own_beyond_the_original_length():
    rope = Rope(
        theta=1e4,
        dim=4,
        kind="longrope",
        original_max_position=8,
        attention_factor=1.2,
        long_attention_factor=0.7,
        short_factor=(1.0, 1.0),
        long_factor=(2.0, 3.0),
    )
    for last, magnitude, factor in ((7, 1.2, (1.0, 1.0)), (8, 0.7, (2.0, 3.0))):
        found = rotation(rope, jnp.asarray([[1, last]]))
        angles = np.array([1.0, 0.01]) / factor
        np.testing.assert_allclose(found.cos[0, 0], np.cos(angles) * magnitude, rtol=1e-6)
        np.testing.assert_allclose(found.sin[0, 0], np.sin(angles) * magnitude, rtol=1e-5)
