"""Decoders whose parameters differ in dtype: activations have the embedding's, products the wider one's precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.decoders import CONFIGS, TOKENS, build, run, weights

from lazyload.models.decoder import Decoder
from lazyload.models.fill import fill
from lazyload.models.layer import DecoderLayer


def rounded(name):
    """The weights of a configuration, in float32, with values that bfloat16 has, too."""
    return {
        path: jnp.asarray(array if is_table(array) else array.astype(jnp.bfloat16).astype(np.float32))
        for path, array in weights(CONFIGS[name]).items()
    }


def is_table(array):
    return jnp.issubdtype(array.dtype, jnp.integer)


def mixed(name, dtype_of):
    arrays = {path: array if is_table(array) else array.astype(dtype_of(path)) for path, array in rounded(name).items()}
    return build(CONFIGS[name], jnp.bfloat16, arrays)


@pytest.mark.parametrize("name", CONFIGS)
def test_with_an_embedding_in_float32_all_is_computed_in_float32(name):
    model = mixed(name, lambda path: jnp.float32 if path == "embed.embedding" else jnp.bfloat16)
    expected, _ = run(build(CONFIGS[name], jnp.float32, rounded(name)), TOKENS)
    cache = model.init_cache(4, 12, jnp.float32)
    np.testing.assert_allclose(run(model, TOKENS, cache=cache)[0], expected, atol=2e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_with_an_embedding_in_bfloat16_activations_stay_in_bfloat16(name, monkeypatch):
    model = mixed(name, lambda path: jnp.bfloat16 if path == "embed.embedding" else jnp.float32)
    call, seen = DecoderLayer.__call__, []

    def recorded(self, *args):
        y, kept = call(self, *args)
        seen.append(y.dtype)
        return y, kept

    monkeypatch.setattr(DecoderLayer, "__call__", recorded)
    jax.eval_shape(lambda: model(TOKENS))
    cache = model.init_cache(4, 12, jnp.bfloat16)
    _, filled = jax.eval_shape(lambda cache: model(TOKENS, cache=cache), cache)
    assert seen == [jnp.bfloat16] * 2 * len(model.layers)
    assert jax.tree.all(jax.tree.map(lambda after, before: after.dtype == before.dtype, filled, cache))


@pytest.mark.parametrize("name", ["plain", "gemma4", "deepseek_v32", "gpt_oss", "qwen3_next"])
def test_what_is_stored_in_float32_is_computed_in_another_dtype_as_if_it_were_stored_in_that(name):
    model = Decoder(CONFIGS[name], dtype=jnp.float32, compute_dtype="bfloat16", rngs=None)
    logits = run(fill(model, rounded(name)), TOKENS)[0]
    np.testing.assert_array_equal(logits, run(mixed(name, lambda path: jnp.bfloat16), TOKENS)[0])


@pytest.mark.parametrize(("name", "ending"), [("deepseek_v4", "o_a_proj.kernel"), ("gemma3n", "streams.split.kernel")])
def test_no_kernel_is_multiplied_in_more_than_it_is_computed_in(name, ending):
    model = Decoder(CONFIGS[name], dtype=jnp.float32, compute_dtype="bfloat16", rngs=None)
    arrays = rounded(name)
    # Too little to be seen in bfloat16.
    finer = {path: array * (1 + 2**-12) if path.endswith(ending) else array for path, array in arrays.items()}
    assert any(path.endswith(ending) for path in arrays)
    np.testing.assert_array_equal(run(fill(model, finer), TOKENS)[0], run(fill(model, arrays), TOKENS)[0])


def test_logits_are_as_exact_as_the_projection():
    model = mixed("plain", lambda path: jnp.float32 if "lm_head" in path else jnp.bfloat16)
    logits, _ = run(model, TOKENS)
    plain, _ = run(mixed("plain", lambda path: jnp.bfloat16), TOKENS)
    assert not np.array_equal(logits, logits.astype(jnp.bfloat16))
    np.testing.assert_array_equal(plain, plain.astype(jnp.bfloat16))
    np.testing.assert_allclose(logits, plain, rtol=0.01, atol=0.01)


def test_gradients_have_the_dtypes_of_their_parameters():
    model = mixed("qwen3_next", lambda path: jnp.float32 if "norm" in path or "router" in path else jnp.bfloat16)
    graphdef, state = nnx.split(model)
    gradients = jax.eval_shape(jax.grad(lambda state: jnp.sum(nnx.merge(graphdef, state)(TOKENS)[0] ** 2)), state)
    assert jax.tree.all(jax.tree.map(lambda gradient, param: gradient.dtype == param.dtype, gradients, state))
