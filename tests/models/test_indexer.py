"""The indexer selects the keys of the largest scores, and nothing where there are no more keys than it may select."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.decoders import INDEXER, LATENT, TOKENS, build, config, layer, run, weights

from lazyload.models.context import Context
from lazyload.models.indexer import Indexer
from lazyload.models.parameters import Parameters

LENGTH = 12


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def indexer(block=INDEXER):
    sizes = {"embed": 32, "q_rank": 12, **block.axes}
    made = Indexer(block, Parameters(block.parameters, sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    made.k_norm.bias[...] = jnp.asarray(normal(3, block.head_dim))
    return made


def context(batch=2, length=LENGTH):
    return Context(jnp.broadcast_to(jnp.arange(length), (batch, length)), 0, None)


def selected(made, around, keys=None, mask=None):
    x = jnp.asarray(normal(0, 2, LENGTH, 32))
    keys = made.keys(x, around) if keys is None else keys
    mask = around.mask(keys.shape[1], None) if mask is None else mask
    return np.asarray(made(x, jnp.asarray(normal(1, 2, LENGTH, 12)), keys, mask, around))


def logits(mixer):
    """Of two layers with random weights, which are the same whether or not they have an indexer."""
    arrays = weights(config(*[layer(replace(LATENT, indexer=INDEXER))] * 2))
    arrays = {path: array for path, array in arrays.items() if mixer.indexer or "indexer" not in path}
    made = build(config(*[layer(mixer)] * 2), jnp.float32, {path: jnp.asarray(a) for path, a in arrays.items()})
    return run(made, TOKENS)[0]


def test_each_token_attends_to_so_many_keys_and_to_none_behind_it():
    found = selected(indexer(), context())
    np.testing.assert_array_equal(found.sum(axis=-1), np.broadcast_to(np.minimum(np.arange(12) + 1, 5), (2, 12)))
    assert not np.any(found & ~np.tri(12, dtype=bool))


def test_the_keys_are_those_of_the_largest_scores():
    made, around = indexer(replace(INDEXER, rope=None)), context()
    x, latent = normal(0, 2, LENGTH, 32), normal(1, 2, LENGTH, 12)
    keys = x @ made.wk.kernel[...]
    keys = (keys - keys.mean(-1, keepdims=True)) / np.sqrt(keys.var(-1, keepdims=True) + 1e-6)
    keys = keys * made.k_norm.scale[...] + made.k_norm.bias[...]
    queries = np.einsum("btr,rhd->bthd", latent, made.wq_b.kernel[...])
    products = np.maximum(np.einsum("bthd,bsd->bths", queries, keys), 0)
    scores = np.einsum("bths,bth->bts", products, x @ made.weights_proj.kernel[...])
    scores = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :5]
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, best, True, axis=-1)
    np.testing.assert_array_equal(selected(made, around), expected & np.tri(LENGTH, dtype=bool))


def test_of_equal_scores_the_first_are_taken():
    found = selected(indexer(), context(), keys=jnp.zeros((2, LENGTH, 1, 6)))
    np.testing.assert_array_equal(found, np.broadcast_to(np.tri(12, dtype=bool) & (np.arange(12) < 5), found.shape))


def test_padding_is_never_selected():
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool)) & (jnp.arange(LENGTH) >= 4)
    found = selected(indexer(), context(), mask=mask)
    assert not found[:, :, :4].any()
    np.testing.assert_array_equal(found[:, 4:].sum(axis=-1), np.broadcast_to(np.minimum(np.arange(8) + 1, 5), (2, 8)))


@pytest.mark.parametrize("num_selected", [LENGTH, 64])
def test_with_no_more_keys_than_are_selected_it_is_plain_latent_attention(num_selected):
    sparse = logits(replace(LATENT, indexer=replace(INDEXER, num_selected=num_selected)))
    np.testing.assert_array_equal(sparse, logits(LATENT))


def test_with_more_keys_the_first_tokens_alone_are_those_of_plain_latent_attention():
    sparse, plain = logits(replace(LATENT, indexer=INDEXER)), logits(LATENT)
    np.testing.assert_allclose(sparse[:, :5], plain[:, :5], atol=1e-5)
    assert np.all(np.abs(sparse - plain)[:, 5:].max(axis=(1, 2)) > 1e-3)
