from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.decoders import ATTENTION, CONFIGS, TOKENS, build, config, decode_scanned, layer, run, weights

from lazyload.errors import InputError


def decoder(config):
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_decoding_one_token_at_a_time_equals_the_whole_sequence(name):
    model = decoder(CONFIGS[name])
    logits, cache = run(model, TOKENS)
    assert cache is None
    assert logits.dtype == jnp.float32
    assert logits.shape == (*TOKENS.shape, 64)
    np.testing.assert_allclose(decode_scanned(model, TOKENS, cache_size=16), logits, atol=2e-5)


def test_a_prefill_then_steps_equal_the_whole_sequence():
    model = decoder(CONFIGS["gemma2"])
    whole, _ = run(model, TOKENS)
    cache = model.init_cache(4, 12, jnp.float32)
    first, cache = run(model, TOKENS[:, :7], cache=cache)
    second, cache = run(model, TOKENS[:, 7:], cache=cache)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=2e-5)
    assert set(cache) == {"layer_0", "layer_1"}
    np.testing.assert_array_equal(cache["layer_0"]["end_index"], [12] * 4)


def test_layers_that_share_keys_and_values_keep_none():
    model = decoder(CONFIGS["gemma4"])
    cache = model.init_cache(4, 12, jnp.float32)
    assert {name: arrays["k"].shape for name, arrays in cache.items()} == {
        "layer_0": (4, 12, 2, 8),
        "layer_1": (4, 12, 1, 12),
    }
    _, cache = run(model, TOKENS, cache=cache)
    assert set(cache) == {"layer_0", "layer_1"}


def test_a_layer_without_a_mixer_keeps_the_number_of_tokens():
    model = decoder(CONFIGS["nemotron_h"])
    _, cache = run(model, TOKENS, cache=model.init_cache(4, 12, jnp.float32))
    assert set(cache["layer_0"]) == {"end_index"}
    np.testing.assert_array_equal(cache["layer_0"]["end_index"], [12] * 4)


@pytest.mark.parametrize("name", ["gemma3n", "gemma4", "nemotron_h"])
def test_every_parameter_of_layers_with_branches_beside_their_blocks_counts(name):
    graphdef, state = nnx.split(decoder(CONFIGS[name]))
    gradient = jax.jit(jax.grad(lambda state: jnp.mean(nnx.merge(graphdef, state)(TOKENS)[0] ** 2)))(state)
    silent = {".".join(map(str, path)) for path, array in nnx.to_flat_state(gradient) if not np.any(array[...])}
    # It counts for the choice of experts, which has no gradient.
    assert {path for path in silent if not path.endswith("selection_bias")} == set()


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


@pytest.mark.parametrize("padding", [0, 3])
def test_no_token_sees_beyond_the_start_of_its_chunk(padding):
    model = decoder(config(layer(replace(ATTENTION, chunk=5))))
    tokens, mask = np.pad(TOKENS, ((0, 0), (padding, 0))), np.pad(np.ones_like(TOKENS), ((0, 0), (padding, 0)))
    changed = tokens.copy()
    changed[:, padding + 6] += 1
    before, after = (run(model, some, None, None, mask)[0][:, padding:] for some in (tokens, changed))
    np.testing.assert_allclose(before[:, :6], after[:, :6], atol=1e-6)
    np.testing.assert_allclose(before[:, 10:], after[:, 10:], atol=1e-6)
    assert np.all(np.abs(before[:, 6:10] - after[:, 6:10]).max(axis=-1) > 1e-4)


# One of each way in which a layer reads the mask.
@pytest.mark.parametrize("name", ["gemma2", "deepseek_v32", "deepseek_v4", "qwen3_next", "granite4", "llama4"])
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


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_tokenizer_s_mask_is_combined_with_causality(name, cached):
    model = decoder(CONFIGS[name])
    plain, _ = run(model, TOKENS)
    padded = np.pad(TOKENS, ((0, 0), (3, 0)))
    mask = np.pad(np.ones_like(TOKENS), ((0, 0), (3, 0)))
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)
    if not cached:
        logits, _ = run(model, padded, positions, None, jnp.asarray(mask))
        np.testing.assert_allclose(logits[:, 3:], plain, atol=2e-5)
        return
    cache, mask = model.init_cache(4, 20, jnp.float32), jnp.asarray(mask[:, :-1])
    logits, cache = run(model, padded[:, :-1], positions[:, :-1], cache, mask)
    np.testing.assert_allclose(logits[:, 3:], plain[:, :-1], atol=2e-5)
    # The mask of the prompt serves for what follows it, too.
    one, _ = run(model, padded[:, -1:], positions[:, -1:], cache, mask)
    np.testing.assert_allclose(one[:, 0], plain[:, -1], atol=2e-5)


def test_masks_for_each_token_are_taken_as_they_are():
    model = decoder(CONFIGS["plain"])
    both_ways = np.ones((4, 12, 12), bool)
    expected, _ = run(model, TOKENS, attention_mask=both_ways)
    assert not np.allclose(expected, run(model, TOKENS)[0], atol=1e-3)
    np.testing.assert_array_equal(run(model, TOKENS, attention_mask=both_ways[:, None])[0], expected)
    np.testing.assert_array_equal(run(model, TOKENS, attention_mask=both_ways[:1])[0], expected)


@pytest.mark.parametrize(
    "mask",
    [np.ones((12, 12), bool), np.ones((4, 13), bool), np.ones((4, 12, 4), bool), np.ones((4, 2, 12, 12), bool)],
    ids=lambda mask: str(mask.shape),
)
def test_masks_of_other_shapes_are_refused(mask):
    with pytest.raises(InputError, match=r"attention_mask has shape .*\[4, 12, 12\]"):
        decoder(CONFIGS["plain"])(TOKENS, attention_mask=mask)


def test_additive_masks_are_refused():
    with pytest.raises(InputError, match="attention_mask is float32"):
        decoder(CONFIGS["plain"])(TOKENS, attention_mask=np.zeros((4, 12), np.float32))


@pytest.mark.parametrize("name", ["plain", "qwen3_next"])
def test_more_tokens_than_the_cache_holds(name):
    model = decoder(CONFIGS[name])
    with pytest.raises(InputError, match="8 slots and holds 0 tokens: 12 more"):
        run(model, TOKENS, cache=model.init_cache(4, 8, jnp.float32))
    _, cache = run(model, TOKENS[:, :7], cache=model.init_cache(4, 8, jnp.float32))
    # Outside jit as well, where a model has few operations to be compiled one by one.
    call = model if name == "plain" else partial(run, model)
    last, full = call(TOKENS[:, 7:8], cache=cache)
    assert np.all(np.isfinite(last))
    with pytest.raises(InputError, match="8 slots and holds 8 tokens: 1 more"):
        model(TOKENS[:, 8:9], cache=full)
    # Compiled, it shows in the result.
    assert np.all(np.isnan(run(model, TOKENS[:, 8:9], cache=full)[0]))


def call(model, **options):
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state: nnx.merge(graphdef, state)(TOKENS, **options)[0])(state)


@pytest.mark.parametrize("name", ["plain", "gemma2"])
def test_hidden_states_become_the_logits_whole_or_in_chunks(name):
    model = decoder(CONFIGS[name])
    logits, hidden = call(model), call(model, skip_lm_head=True)
    assert hidden.shape == (*TOKENS.shape, 32)
    chunks = [model.compute_final_logits(hidden[:, start : start + 5]) for start in range(0, 12, 5)]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1), logits, atol=1e-5)
    np.testing.assert_allclose(call(model, decode_only_last_token=True), logits[:, -1:], atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "gemma2"])
def test_the_output_projection_can_be_replaced_tied_or_not(name):
    model = decoder(CONFIGS[name])
    assert (model.lm_head.in_features, model.lm_head.out_features) == (32, 64)
    hidden = call(model, skip_lm_head=True)
    model.lm_head = nnx.Linear(32, 1, use_bias=False, rngs=nnx.Rngs(0))
    assert call(model).shape == (*TOKENS.shape, 1)
    np.testing.assert_allclose(call(model), hidden @ model.lm_head.kernel[...], atol=1e-5)


def test_images_are_refused():
    with pytest.raises(InputError, match="a model of text alone"):
        decoder(CONFIGS["plain"])(TOKENS, images=np.zeros((4, 8, 8, 3)))


def test_a_decoder_that_was_not_loaded_has_no_names_in_other_programs():
    with pytest.raises(InputError, match=r"lazyload\.from_pretrained has loaded"):
        decoder(CONFIGS["plain"]).to_hf_mappings()
