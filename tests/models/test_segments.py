"""Documents packed into one row are what they are alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.decoders import ATTENTION, CONFIGS, DELTA_NET, MAMBA, TOKENS, build, config, layer, run, weights

from lazyload.architecture import Rope
from lazyload.errors import InputError

DOCUMENTS = (np.arange(36).reshape(6, 6) * 7 % 61).astype(np.int32)
ROWS = DOCUMENTS.reshape(2, 18)
SEGMENTS = np.repeat([[1, 2, 0]], 2, axis=0).repeat(6, axis=1).astype(np.int32)
RECURRENT = ("qwen3_5", "qwen3_next", "granite4")


def decoder(config):
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


def test_compressed_keys_are_of_one_document() -> None:
    with pytest.raises(InputError, match="give each document a row of its own"):
        run(decoder(CONFIGS["deepseek_v4"]), ROWS, segment_ids=SEGMENTS)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "deepseek_v4"])
def test_packed_documents_are_what_they_are_alone(name):
    model = decoder(CONFIGS[name])
    packed = run(model, ROWS, segment_ids=SEGMENTS)[0]
    np.testing.assert_allclose(packed.reshape(6, 6, -1), run(model, DOCUMENTS)[0], atol=2e-5)


def test_positions_that_are_given_are_those_within_the_document():
    model = decoder(CONFIGS["plain"])
    within = np.tile(np.arange(6, dtype=np.int32), (2, 3))
    given = run(model, ROWS, within, segment_ids=SEGMENTS)[0]
    np.testing.assert_array_equal(given, run(model, ROWS, segment_ids=SEGMENTS)[0])


@pytest.mark.parametrize("name", RECURRENT)
def test_states_start_anew_within_the_chunks_that_they_are_computed_by_and_between_them(name):
    documents = (np.arange(3 * 50).reshape(3, 50) * 7 % 61).astype(np.int32)
    model = decoder(CONFIGS[name])
    packed = run(model, documents.reshape(1, 150), segment_ids=np.repeat([[4, 2, 9]], 50, axis=1))[0]
    np.testing.assert_allclose(packed.reshape(3, 50, -1), run(model, documents)[0], atol=5e-5)


@pytest.mark.parametrize("mixer", [ATTENTION, DELTA_NET, MAMBA], ids=lambda mixer: type(mixer).__name__)
def test_gradients_of_packed_documents_are_the_sum_of_theirs_alone(mixer):
    graphdef, state = nnx.split(decoder(config(layer(mixer))))

    def loss(state, tokens, **kwargs):
        return jnp.sum(jax.nn.log_softmax(nnx.merge(graphdef, state)(tokens, **kwargs)[0])[..., 0])

    gradient = jax.jit(jax.grad(loss))
    packed, apart = gradient(state, ROWS, segment_ids=SEGMENTS), gradient(state, DOCUMENTS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-4), packed, apart)


@pytest.mark.parametrize("name", ["gemma2", "qwen3_next", "granite4"])
def test_segments_that_say_what_is_padding_change_nothing_where_there_is_a_mask(name):
    """As Tunix passes them of sequences that are not packed: 1 for tokens, 0 for padding on either side."""
    model = decoder(CONFIGS[name])
    tokens, real = (np.pad(array, ((0, 0), (3, 2))) for array in (TOKENS, np.ones_like(TOKENS)))
    positions = np.cumsum(real, axis=1) - 1
    mask = np.tril(np.ones((17, 17), bool)) & (real[:, None] == 1)
    marked = run(model, tokens, positions, None, mask, segment_ids=real)[0]
    np.testing.assert_allclose(marked[:, 3:15], run(model, TOKENS)[0], atol=2e-5)


@pytest.mark.parametrize(
    "rope",
    [
        Rope(theta=1e4, dim=8, kind="dynamic", factor=4.0, original_max_position=4),
        Rope(
            theta=1e4,
            dim=8,
            kind="longrope",
            original_max_position=4,
            short_factor=(1.0, 1.0, 1.0, 1.0),
            long_factor=(1.0, 2.0, 3.0, 4.0),
            attention_factor=1.1,
            long_attention_factor=1.3,
        ),
    ],
    ids=lambda rope: rope.kind,
)
def test_rotations_that_depend_on_the_length_go_by_that_of_the_document(rope):
    model = decoder(config(layer(replace(ATTENTION, rope=rope))))
    packed = run(model, ROWS, segment_ids=SEGMENTS)[0]
    np.testing.assert_allclose(packed.reshape(6, 6, -1), run(model, DOCUMENTS)[0], atol=2e-5)


def test_segments_that_cannot_be_meant_are_refused():
    model = decoder(CONFIGS["plain"])
    with pytest.raises(InputError, match=r"segment_ids is int32 \[2, 4\]; give int32 \[2, 18\]"):
        model(ROWS, segment_ids=SEGMENTS[:, :4])
    with pytest.raises(InputError, match="segment_ids is float32"):
        model(ROWS, segment_ids=SEGMENTS.astype(np.float32))
    with pytest.raises(InputError, match="segment_ids and a cache"):
        model(ROWS, cache=model.init_cache(2, 18, jnp.float32), segment_ids=SEGMENTS)
