import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.decoders import CONFIGS, TOKENS, build, decode_scanned, run, weights
from support.meshes import mesh_named, on_mesh

from lazyload.models.meshes import run_with_automatic_axes


def on_one_device(config):
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


def squares(graphdef):
    return jax.jit(jax.grad(lambda state, tokens: jnp.mean(nnx.merge(graphdef, state)(tokens)[0] ** 2)))


@pytest.mark.parametrize(
    ("name", "mesh_name", "axis_type", "mesh_is_set"),
    [
        ("gpt_oss", "fsdp=2,expert=2,tp=2", AxisType.Auto, True),
        ("gpt_oss", "fsdp=2,expert=2,tp=2", AxisType.Explicit, True),
        ("gpt_oss", "fsdp=4,tp=2", AxisType.Auto, False),
        ("deepseek", "fsdp=4,tp=2", AxisType.Explicit, True),
        ("deepseek_v4", "fsdp=4,tp=2", AxisType.Auto, True),
        ("gemma4", "fsdp=4,tp=2", AxisType.Explicit, False),
        ("parallel", "fsdp=4,tp=2", AxisType.Explicit, True),
    ],
)
def test_a_mesh_changes_nothing(name, mesh_name, axis_type, mesh_is_set):
    expected, _ = run(on_one_device(CONFIGS[name]), TOKENS)
    mesh = mesh_named(mesh_name, axis_type)
    model = on_mesh(CONFIGS[name], mesh)
    tokens = jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec("fsdp")))
    with jax.set_mesh(mesh) if mesh_is_set else nullcontext():
        logits, _ = run(model, tokens)
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        np.testing.assert_allclose(decode_scanned(model, tokens, cache_size=16), expected, atol=2e-5)
    assert logits.sharding.spec[0] == "fsdp"


def test_layers_of_one_block_on_a_mesh():
    config = CONFIGS["nemotron_h"]
    expected, _ = run(on_one_device(config), TOKENS)
    mesh = mesh_named("fsdp=2,expert=2,tp=2", AxisType.Auto)
    model, tokens = on_mesh(config, mesh), jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec("fsdp")))
    np.testing.assert_allclose(run(model, tokens)[0], expected, atol=2e-5)
    np.testing.assert_allclose(decode_scanned(model, tokens, cache_size=16), expected, atol=2e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_call_outside_jit_runs_on_the_mesh_of_the_parameters(axis_type):
    config = CONFIGS["plain"]
    logits, _ = on_mesh(config, mesh_named("fsdp=4,tp=2", axis_type))(TOKENS)
    np.testing.assert_allclose(logits, run(on_one_device(config), TOKENS)[0], atol=2e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_gradients_lie_where_their_parameters_lie(axis_type):
    config = CONFIGS["gpt_oss"]
    graphdef, state = nnx.split(on_one_device(config))
    expected = jax.tree.leaves(squares(graphdef)(state, TOKENS))
    mesh = mesh_named("fsdp=2,expert=2,tp=2", axis_type)
    graphdef, state = nnx.split(on_mesh(config, mesh))
    with jax.set_mesh(mesh):
        found = jax.tree.leaves(squares(graphdef)(state, TOKENS))
    for gradient, wanted, parameter in zip(found, expected, jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=2e-6)
        if axis_type == AxisType.Explicit:
            assert gradient.sharding.is_equivalent_to(parameter.sharding, parameter.ndim)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_no_device_gathers_all_experts(axis_type):
    """The experts' weights may be gathered along fsdp, never along the expert axis."""
    mesh = mesh_named("fsdp=2,expert=2,tp=2", axis_type)
    graphdef, state = nnx.split(on_mesh(CONFIGS["gpt_oss"], mesh))
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda state, tokens: nnx.merge(graphdef, state)(tokens)).lower(state, TOKENS).compile()
    gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", compiled.as_text())
    assert gathered
    assert not [shape for shape in gathered if re.match(r"8,(32|16|8),(32|16|8)$", shape)]


def test_what_a_call_on_explicit_axes_adds_to_the_module_stays():
    def adding(module, x):
        module.seen = nnx.Intermediate(module.seen[...] + x if hasattr(module, "seen") else x)
        module.adapter = nnx.LoRAParam(x + 1)
        return x * 2

    module = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    with jax.set_mesh(jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Explicit,))):
        x = jax.device_put(jnp.arange(8.0), PartitionSpec("fsdp"))
        for _ in range(2):
            y = run_with_automatic_axes(adding, module, x, out_specs=PartitionSpec("fsdp"))
    assert y.sharding.spec == PartitionSpec("fsdp")
    np.testing.assert_array_equal(module.seen[...], 2 * np.arange(8.0))
    np.testing.assert_array_equal(module.adapter[...], np.arange(8.0) + 1)
