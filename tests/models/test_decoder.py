from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.decoders import ATTENTION, CONFIGS, TOKENS, build, config, decode, layer, run, weights


def decoder(config):
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_one_token_at_a_time_equals_the_whole_sequence(name):
    model = decoder(CONFIGS[name])
    logits, cache = run(model, TOKENS)
    assert cache is None
    assert logits.dtype == jnp.float32
    assert logits.shape == (*TOKENS.shape, 64)
    np.testing.assert_allclose(decode(model, TOKENS), logits, atol=2e-5)


def test_a_prefill_then_steps_equal_the_whole_sequence():
    model = decoder(CONFIGS["gemma2"])
    whole, _ = run(model, TOKENS)
    cache = model.init_cache(4, 12, jnp.float32)
    first, cache = run(model, TOKENS[:, :7], cache=cache)
    second, cache = run(model, TOKENS[:, 7:], cache=cache)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=2e-5)
    assert set(cache) == {"layer_0", "layer_1"}
    np.testing.assert_array_equal(cache["layer_0"]["end_index"], [12] * 4)


def test_no_token_sees_a_later_one():
    model = decoder(CONFIGS["gpt_oss"])
    changed = TOKENS.copy()
    changed[:, 6] += 1
    before, after = run(model, TOKENS)[0], run(model, changed)[0]
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 6:], after[:, 6:])


def test_a_window_hides_what_lies_further_back():
    model = decoder(config(layer(replace(ATTENTION, window=3))))
    changed = TOKENS.copy()
    changed[:, 2] += 1
    before, after = run(model, TOKENS)[0], run(model, changed)[0]
    np.testing.assert_allclose(before[:, 5:], after[:, 5:], atol=1e-6)
    assert np.all(np.abs(before[:, 4] - after[:, 4]).max(axis=-1) > 1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_left_padding_behind_a_mask_changes_nothing(name):
    """How Tunix's sampler feeds prompts of different lengths: padded on the left, positions without the padding."""
    model = decoder(CONFIGS[name])
    plain, _ = run(model, TOKENS)
    padded = np.pad(TOKENS, ((0, 0), (3, 0)))
    real = np.pad(np.ones_like(TOKENS), ((0, 0), (3, 0))).astype(bool)
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
    mask = np.tril(np.ones((15, 15), bool))[None] & real[:, None, :]
    np.testing.assert_allclose(run(model, padded, positions, None, mask)[0][:, 3:], plain, atol=2e-5)
    cached = np.pad(mask, ((0, 0), (0, 0), (0, 5)))
    cache = model.init_cache(4, 20, jnp.float32)
    np.testing.assert_allclose(run(model, padded, positions, cache, cached)[0][:, 3:], plain, atol=2e-5)


def test_a_query_that_sees_nothing_is_finite():
    logits, _ = run(decoder(CONFIGS["plain"]), TOKENS, attention_mask=np.zeros((4, 12, 12), bool))
    assert np.all(np.isfinite(logits))


def test_sinks_take_attention_away():
    model = decoder(CONFIGS["gpt_oss"])
    before, _ = run(model, TOKENS)
    for number in range(2):
        sinks = model.layers[number].attn.sinks
        sinks[...] = jnp.full_like(sinks[...], -1e9)
    assert not np.allclose(before, run(model, TOKENS)[0], atol=1e-3)


def test_soft_caps_bound_the_logits():
    logits, _ = run(decoder(CONFIGS["gemma2"]), TOKENS)
    assert np.max(np.abs(logits)) < 3.0


@pytest.mark.parametrize("field", ["embed_scale", "residual_scale", "logits_scale"])
def test_multipliers_are_applied(field):
    plain, _ = run(decoder(config()), TOKENS)
    layers = (layer(residual_scale=0.5),) * 2 if field == "residual_scale" else ()
    scaled, _ = run(decoder(config(*layers, **({} if layers else {field: 0.5}))), TOKENS)
    if field == "logits_scale":
        np.testing.assert_allclose(scaled, plain * 0.5, atol=1e-6)
    assert not np.allclose(scaled, plain, atol=1e-3)


def test_what_tunix_reads():
    model = decoder(CONFIGS["plain"])
    assert (model.config.num_layers, model.config.num_kv_heads, model.config.head_dim) == (2, 2, 8)
    assert model.num_embed == 64
    logits, cache = model(**model.get_model_input())
    assert logits.shape == (2, 1, 64)
    assert cache is None
    assert jax.tree.all(jax.tree.map(lambda x: x.shape[0] == 3, model.init_cache(3, 5, jnp.bfloat16)))


def test_bfloat16_stays_bfloat16_inside():
    arrays = {path: jnp.asarray(array, jnp.bfloat16) for path, array in weights(CONFIGS["gpt_oss"]).items()}
    half, _ = run(build(CONFIGS["gpt_oss"], jnp.bfloat16, arrays), TOKENS)
    whole, _ = run(decoder(CONFIGS["gpt_oss"]), TOKENS)
    assert half.dtype == jnp.float32
    np.testing.assert_array_equal(half, half.astype(jnp.bfloat16))
    assert np.corrcoef(half.ravel(), whole.ravel())[0, 1] > 0.99
