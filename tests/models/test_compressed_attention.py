"""Keys of windows, their selection, several residual streams, and experts by token: what each is there for."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.decoders import CONFIGS, HEAVY, LOCAL, SPARSE, TOKENS, build, config, layer, run, weights

from lazyload.architecture import HyperConnection
from lazyload.errors import ConfigError
from lazyload.models import hyper_connection
from lazyload.models.decoder import Decoder
from lazyload.models.parameters import Parameters


def decoder(config):
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


@pytest.fixture(scope="module")
def model():
    return decoder(CONFIGS["deepseek_v4"])


@pytest.fixture(scope="module")
def whole(model):
    with jax.default_matmul_precision("highest"):
        return run(model, TOKENS)[0]


def changed_from(mixer, position):
    """The positions whose logits change with the token at a position."""
    changed = TOKENS.copy()
    changed[:, position] += 1
    before, after = np.split(run(decoder(config(layer(mixer))), np.concatenate([TOKENS, changed]))[0], 2)
    return np.flatnonzero(np.abs(before - after).max(axis=(0, 2)) > 1e-5).tolist()


def test_a_token_is_seen_alone_within_the_window_and_then_in_the_keys_of_complete_windows():
    assert changed_from(LOCAL, 3) == [3, 4, 5, 6]
    # Its window of three, tokens 3 to 5, is complete with token 5.
    assert changed_from(replace(HEAVY, window=1), 3) == [3, *range(5, 12)]
    # Keys that overlap hold it in its own window, 2 and 3, and in the next one's key, complete with 5.
    every = replace(SPARSE, indexer=None, window=1)
    assert changed_from(every, 3) == list(range(3, 12))


def test_only_the_selected_keys_are_attended_to():
    arrays = {path: jnp.asarray(array) for path, array in weights(config(layer(SPARSE))).items()}

    def logits(mixer):
        shapes = weights(config(layer(mixer)))
        return run(build(config(layer(mixer)), jnp.float32, {path: arrays[path] for path in shapes}), TOKENS)[0]

    everything = logits(replace(SPARSE, indexer=None))
    # With as many as there are, the indexer has no effect.
    enough = logits(replace(SPARSE, indexer=replace(SPARSE.indexer, num_selected=6)))
    np.testing.assert_allclose(enough, everything, atol=1e-6)
    few = logits(SPARSE)
    np.testing.assert_allclose(few[:, :5], everything[:, :5], atol=1e-6)
    assert not np.allclose(few[:, 5:], everything[:, 5:], atol=1e-4)


def test_the_cache_has_a_key_for_each_window(model):
    cache = model.init_cache(4, 10, jnp.bfloat16)
    assert {name: (array.shape, array.dtype.name) for name, array in cache["layer_2"].items()} == {
        "k": ((4, 10, 1, 8), "bfloat16"),
        "seen": ((4,), "int32"),
        "keys": ((4, 5, 8), "bfloat16"),
        "past": ((4, 4, 2, 16), "bfloat16"),
        "index_keys": ((4, 5, 6), "bfloat16"),
        "index_past": ((4, 4, 2, 12), "bfloat16"),
        "end_index": ((4,), "int32"),
    }
    assert cache["layer_1"]["keys"].shape == (4, 4, 8)
    assert set(cache["layer_0"]) == {"k", "end_index"}


def test_calls_may_cut_through_windows(model, whole):
    cache, logits = model.init_cache(4, 12, jnp.float32), []
    for tokens in (TOKENS[:, :5], TOKENS[:, 5:7], TOKENS[:, 7:]):
        some, cache = run(model, tokens, cache=cache)
        logits.append(some)
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=2e-5)


def test_rows_may_be_padded_differently(model, whole):
    padding = np.array([0, 1, 2, 5])
    tokens, mask = np.zeros((4, 17), np.int32), np.zeros((4, 17), bool)
    for row, count in enumerate(padding):
        tokens[row, count : count + 12], mask[row, count : count + 12] = TOKENS[row], True
    # The numbers of positions do not matter, only their distances; what follows the text is no padding to it.
    logits, _ = run(model, tokens, None, None, jnp.asarray(mask))
    for row, count in enumerate(padding):
        np.testing.assert_allclose(logits[row, count : count + 12], whole[row], atol=2e-5)


def test_every_parameter_is_learned_and_no_table_is(model):
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)

    def loss(parameters):
        return jnp.mean(nnx.merge(graphdef, parameters, rest)(TOKENS)[0] ** 2)

    flat = nnx.to_flat_state(jax.jit(jax.grad(loss))(parameters))
    without = {".".join(map(str, path)) for path, array in flat if not np.any(array[...])}
    # No gradient comes of a selection, of experts as of keys.
    assert without == {
        path for path in weights(CONFIGS["deepseek_v4"]) if "indexer" in path or path.endswith("selection_bias")
    }
    (table,) = jax.tree.leaves(rest)
    assert (table.shape, table.dtype) == ((64, 2), jnp.int32)


def test_experts_are_those_of_the_token(whole):
    arrays = weights(CONFIGS["deepseek_v4"])
    path = "layers.0.moe.token_experts"
    other = arrays | {path: (arrays[path] + 1) % 8}
    after, _ = run(build(CONFIGS["deepseek_v4"], jnp.float32, jax.tree.map(jnp.asarray, other)), TOKENS)
    assert not np.allclose(whole, after, atol=1e-3)


def test_the_streams_are_mixed_by_a_matrix_that_is_almost_doubly_stochastic():
    block = HyperConnection(num_streams=3, num_iterations=20)
    table = {path: entry for path, entry in block.parameters("hc").items()}
    parameters = Parameters(table, {"embed": 8, **block.axes}, dtype=jnp.float32, rngs=nnx.Rngs(0))
    connection = hyper_connection.HyperConnection(block, parameters)
    streams = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 8)), jnp.float32)
    read, added = connection(streams)
    assert read.shape == (2, 5, 8)
    # What comes in is spread over the streams, and their sum stays: the matrix's rows are ones.
    np.testing.assert_allclose(added(jnp.zeros_like(read)).sum(axis=2), streams.sum(axis=2), atol=1e-4)
    assert added(jnp.ones_like(read)).shape == streams.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 3}, "num_heads = 4 is no multiple of num_groups = 3"),
        ({"rope": replace(LOCAL.rope, dim=10)}, "rope rotates 10 of 8 dimensions"),
        ({"rope": replace(LOCAL.rope, kind="dynamic", original_max_position=8)}, "'dynamic', is not implemented"),
        ({"compressor": replace(HEAVY.compressor, dim=6)}, "compressed keys are as wide as others"),
        ({"indexer": SPARSE.indexer}, "a compressor of the same windows"),
    ],
)
def test_values_that_do_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(LOCAL, **changes)


def test_streams_need_a_head():
    with pytest.raises(ConfigError, match="streams = None does not fit layers that expect 2"):
        config(layer(hyper_connection=HyperConnection(num_streams=2)))


def test_a_model_without_values_has_the_table_s_shape():
    model = Decoder(CONFIGS["deepseek_v4"], rngs=None)
    table = model.layers[0].moe.token_experts
    assert (table.shape, table.dtype) == ((64, 2), jnp.int32)
