"""The layers of a decoder: stacked and run in a loop, and computed again in the backward pass."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.decoders import CONFIGS, TOKENS, Decoder, build, config, decode_scanned, layer, run, weights

from lazyload.architecture.stacking import cycles, stacks
from lazyload.errors import InputError
from lazyload.formats.nnx import stacked_layout
from lazyload.layouts.unroll import unroll_tree
from lazyload.models.fill import fill, values_of


def repeated(name):
    """The layers of a configuration twice, where that makes sense."""
    once = CONFIGS[name]
    if once.shared_kv_layers or once.selecting_layers:
        return once
    return replace(once, layers=once.layers * 2)


def stacked_weights(shape):
    plain = weights(shape)
    arrays = {path: array for path, array in plain.items() if not path.startswith("layers.")}
    for number, stack in enumerate(stacks(shape)):
        prefix = f"layers.{stack[0]}."
        for path in [path.removeprefix(prefix) for path in plain if path.startswith(prefix)]:
            arrays[f"layers.{number}.{path}"] = np.stack([plain[f"layers.{layer}.{path}"] for layer in stack])
    return arrays


def both(shape):
    arrays = {path: jnp.asarray(array) for path, array in weights(shape).items()}
    stacked = {path: jnp.asarray(array) for path, array in stacked_weights(shape).items()}
    scanned = Decoder(shape, dtype=jnp.float32, scan_layers=True, rngs=None)
    return build(shape, jnp.float32, arrays), fill(scanned, stacked)


def squares(model):
    graphdef, state = nnx.split(model)
    return jax.jit(jax.grad(lambda state: jnp.mean(nnx.merge(graphdef, state)(TOKENS)[0] ** 2)))(state)


@pytest.mark.parametrize("name", ["gemma2", "gemma4", "deepseek_v4", "nemotron_h"])
def test_stacked_layers_are_the_same_model(name):
    shape = repeated(name)
    plain, scanned = both(shape)
    expected = run(plain, TOKENS)[0]
    np.testing.assert_allclose(run(scanned, TOKENS)[0], expected, atol=2e-5)
    np.testing.assert_allclose(decode_scanned(scanned, TOKENS, cache_size=12), expected, atol=2e-5)


def test_the_layout_is_what_the_module_has():
    for name in CONFIGS:
        shape = repeated(name)
        module = Decoder(shape, scan_layers=True, rngs=None)
        expected = {path: array.shape for path, array in unroll_tree(stacked_layout(shape), shape).items()}
        assert {path: value.shape for path, value in values_of(module).items()} == expected


def test_layers_in_turns_make_cycles():
    local, full = layer(), layer(feed_forward=replace(layer().feed_forward, mlp_dim=16))
    found = cycles(config(full, *(local, local, full) * 3, local))
    assert found == ((range(0, 7, 3), range(1, 8, 3), range(2, 9, 3)), (range(9, 10),), (range(10, 11),))


def test_a_layer_whose_keys_others_attend_to_is_in_no_loop():
    shape = CONFIGS["gemma4"]
    assert all(len(stack) == 1 for stack in stacks(shape) if stack[0] in shape.shared_kv_layers)


def test_the_program_does_not_grow_with_the_layers():
    def size(count):
        shape = config(*(layer(),) * count)
        graphdef, state = nnx.split(Decoder(shape, scan_layers=True, rngs=None))
        traced = jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(TOKENS)[0])(state)
        return len(str(traced))

    assert size(64) < 1.1 * size(8)


@pytest.mark.parametrize("shape", [config(), config(layer())])
def test_what_a_call_adds_to_a_layer_of_a_stack_is_told(shape, monkeypatch):
    model = Decoder(shape, dtype=jnp.float32, scan_layers=True, rngs=nnx.Rngs(0))
    called = type(model.layers[0]).__call__

    def adding(self, x, *args):
        self.seen = nnx.Intermediate(x)
        return called(self, x, *args)

    monkeypatch.setattr(type(model.layers[0]), "__call__", adding)
    with pytest.raises(InputError, match="scan_layers=False"):
        nnx.jit(lambda model: model(TOKENS)[0])(model)


@pytest.mark.parametrize("name", ["deepseek_v4", "gemma3n"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_what_is_computed_again_is_the_same(name, scan_layers):
    model = both(repeated(name) if scan_layers else CONFIGS[name])[scan_layers]
    expected = run(model, TOKENS)[0]
    model.remat = "block"
    np.testing.assert_allclose(run(model, TOKENS)[0], expected, atol=2e-5)


@pytest.mark.parametrize("remat", ["block", "dots"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_computing_again_changes_no_gradient(remat, scan_layers):
    model = both(repeated("gemma2"))[scan_layers]
    expected = squares(model)
    model.remat = remat
    jax.tree.map(lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=1e-6), squares(model), expected)


def test_computing_again_keeps_less():
    def kept(remat):
        graphdef, state = nnx.split(Decoder(config(*(layer(),) * 4), dtype=jnp.float32, remat=remat, rngs=None))
        backward = jax.eval_shape(lambda state: jax.vjp(lambda s: nnx.merge(graphdef, s)(TOKENS)[0], state)[1], state)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    nothing, dots, block = (kept(remat) for remat in ("none", "dots", "block"))
    assert block < dots < nothing


def test_it_works_inside_the_transforms_of_flax():
    model = Decoder(CONFIGS["plain"], dtype=jnp.float32, remat="block", rngs=nnx.Rngs(0))
    gradients = nnx.jit(nnx.grad(lambda model: jnp.mean(model(TOKENS)[0] ** 2)))(model)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def test_a_name_that_says_nothing_is_refused():
    model = Decoder(config(layer()), dtype=jnp.float32, rngs=nnx.Rngs(0))
    model.remat = "blocks"
    with pytest.raises(InputError, match="'none', 'block' or 'dots'"):
        model(TOKENS)
