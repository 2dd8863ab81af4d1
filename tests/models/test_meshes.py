import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.decoders import CONFIGS, TOKENS, abstract, build, decode, run, weights

RULES = {
    "embed": "fsdp",
    "mlp": "tp",
    "expert_mlp": "tp",
    "head": "tp",
    "vocab": "tp",
    "expert": "expert",
    "ple_vocab": "tp",
    "ple_embed": "fsdp",
}
MESHES = {"fsdp=4,tp=2": ((4, 2), ("fsdp", "tp")), "fsdp=2,expert=2,tp=2": ((2, 2, 2), ("fsdp", "expert", "tp"))}


def mesh_named(name, axis_type):
    shape, names = MESHES[name]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(names))


def on_mesh(config, mesh):
    arrays = {}
    params = {".".join(map(str, path)): param for path, param in nnx.to_flat_state(nnx.state(abstract(config)))}
    for path, array in weights(config).items():
        axes = [RULES.get(axis) if RULES.get(axis) in mesh.shape else None for axis in params[path].logical_axes]
        axes = [axis if axis not in axes[:number] else None for number, axis in enumerate(axes)]
        arrays[path] = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*axes)))
    return build(config, jnp.float32, arrays)


def on_one_device(config):
    return build(config, jnp.float32, {path: jnp.asarray(array) for path, array in weights(config).items()})


def squares(graphdef):
    return jax.jit(jax.grad(lambda state, tokens: jnp.mean(nnx.merge(graphdef, state)(tokens)[0] ** 2)))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    ("name", "mesh_name", "mesh_is_set"),
    [
        ("gpt_oss", "fsdp=2,expert=2,tp=2", True),
        ("gpt_oss", "fsdp=4,tp=2", False),
        ("deepseek", "fsdp=4,tp=2", True),
        ("gemma4", "fsdp=4,tp=2", False),
        ("parallel", "fsdp=4,tp=2", True),
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
        np.testing.assert_allclose(decode(model, tokens), expected, atol=2e-5)
    assert logits.sharding.spec[0] == "fsdp"


def test_layers_of_one_block_on_a_mesh():
    config = CONFIGS["nemotron_h"]
    expected, _ = run(on_one_device(config), TOKENS)
    mesh = mesh_named("fsdp=2,expert=2,tp=2", AxisType.Auto)
    model, tokens = on_mesh(config, mesh), jax.device_put(TOKENS, NamedSharding(mesh, PartitionSpec("fsdp")))
    np.testing.assert_allclose(run(model, tokens)[0], expected, atol=2e-5)
    np.testing.assert_allclose(decode(model, tokens), expected, atol=2e-5)


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
