"""How a decoder is trained on a mesh: nothing moves that need not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.decoders import CONFIGS, TOKENS, Decoder, config, layer
from support.meshes import by_rules, mesh_named


def step_of(model):
    graphdef, state = nnx.split(model)

    def step(state, tokens):
        gradients = jax.grad(lambda state: jnp.mean(nnx.merge(graphdef, state)(tokens)[0] ** 2))(state)
        return jax.tree.map(lambda value, gradient: value - 0.1 * gradient, state, gradients)

    return jax.jit(step, donate_argnums=0), state


def tokens_on(mesh):
    return jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec("fsdp")))


@pytest.mark.parametrize("name", ["plain", "parallel"])
def test_a_train_step_moves_no_parameter_and_is_compiled_once(name):
    mesh = mesh_named("fsdp=4,tp=2", AxisType.Auto)
    step, state = step_of(by_rules(CONFIGS[name], mesh))
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    for _ in range(2):
        state = step(state, tokens_on(mesh))
    leaves = jax.tree.leaves(state)
    assert all(leaf.sharding.is_equivalent_to(old, leaf.ndim) for leaf, old in zip(leaves, before, strict=True))
    assert step._cache_size() == 1


def test_parameters_are_gathered_and_activations_are_not_exchanged():
    mesh = mesh_named("fsdp=4,tp=2", AxisType.Auto)
    step, state = step_of(by_rules(config(*(layer(),) * 3), mesh))
    text = step.lower(state, tokens_on(mesh)).compile().as_text()
    # Those of the embedding's lookup and of its gradient, however many layers there are.
    assert len(re.findall(r" all-to-all(?:-start)?\(", text)) <= 2
    # Every device has the hidden units of its own sequences and of its own part of the MLP.
    assert "f32[1,12,24]" in text
    assert "f32[4,12,24]" not in text
    assert "f32[4,12,48]" not in text


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_the_cache_lies_where_keys_and_values_are_made(axis_type):
    mesh = mesh_named("fsdp=4,tp=2", axis_type)
    model = by_rules(CONFIGS["plain"], mesh)
    cache = model.init_cache(4, 16, jnp.float32)
    graphdef, state = nnx.split(model)
    step = jax.jit(lambda state, tokens, cache: nnx.merge(graphdef, state)(tokens, cache=cache), donate_argnums=2)
    for _ in range(2):
        keys = cache["layer_1"]["k"]
        assert keys.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("fsdp", None, "tp")), keys.ndim)
        _, cache = step(state, tokens_on(mesh)[:, :1], cache)
    assert step._cache_size() == 1


def test_a_batch_that_the_mesh_does_not_divide_is_left_to_the_compiler():
    mesh = mesh_named("fsdp=4,tp=2", AxisType.Auto)
    model = by_rules(CONFIGS["plain"], mesh)
    graphdef, state = nnx.split(model)
    logits, _ = jax.jit(lambda state: nnx.merge(graphdef, state)(TOKENS[:3]))(state)
    whole, _ = jax.jit(lambda state: nnx.merge(graphdef, state)(TOKENS))(state)
    np.testing.assert_allclose(logits, whole[:3], atol=2e-5)


def test_axes_of_any_name_spread_the_batch_if_the_rules_spread_parameters_over_them():
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    rules = {"embed": "rows", "mlp": "columns", "head": "columns", "kv_head": "columns"}
    model = by_rules(config(layer()), mesh, rules)
    keys = model.init_cache(4, 16, jnp.float32)["layer_0"]["k"]
    assert keys.sharding.spec == PartitionSpec("rows", None, "columns")
    step, state = step_of(model)
    text = step.lower(state, TOKENS).compile().as_text()
    assert "f32[1,12,24]" in text
    assert "f32[4,12,24]" not in text


def test_a_model_without_values_has_a_cache_too():
    model = Decoder(CONFIGS["plain"], rngs=None)
    assert model.init_cache(4, 16, jnp.float32)["layer_0"]["k"].shape == (4, 16, 2, 8)
