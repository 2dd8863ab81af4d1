"""A model goes from one mesh to another, whose axes have other names and sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.decoders import CONFIGS, TOKENS, Decoder, run
from support.meshes import mesh_named, on_mesh

import lazyload
from lazyload.errors import ArgumentError, ShardingError


def other_mesh():
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])


def test_a_model_goes_to_a_mesh_with_other_axes():
    model = on_mesh(CONFIGS["plain"], mesh_named("fsdp=4,tp=2", AxisType.Auto))
    expected, _ = run(model, TOKENS)
    resharded = lazyload.reshard(model, other_mesh())
    kernel = resharded.layers[1].mlp.up_proj.kernel
    assert kernel[...].sharding == NamedSharding(other_mesh(), PartitionSpec("data", "model"))
    (spec,) = jax.tree.leaves(nnx.get_partition_spec(kernel), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    assert spec == PartitionSpec("data", "model")
    np.testing.assert_allclose(run(resharded, TOKENS)[0], expected, atol=2e-5)
    assert resharded.init_cache(4, 8, jnp.float32)["layer_0"]["k"].sharding.spec[0] == "data"
    assert model.layers[1].mlp.up_proj.kernel[...].sharding.spec == PartitionSpec("fsdp", "tp")


def test_arrays_that_others_have_moved_run_there():
    """As `tunix.rl.reshard.reshard_pytree` moves them: the partitioning metadata stay those of the old mesh."""
    model = on_mesh(CONFIGS["gpt_oss"], mesh_named("fsdp=2,expert=2,tp=2", AxisType.Auto))
    expected, _ = run(model, TOKENS)
    graphdef, state = nnx.split(model)
    places = jax.tree.map(lambda array: array.sharding, nnx.state(lazyload.reshard(model, other_mesh())))
    moved = nnx.merge(graphdef, jax.device_put(state, places))
    np.testing.assert_allclose(run(moved, TOKENS)[0], expected, atol=2e-5)


def test_rules_say_where_parameters_go():
    model = on_mesh(CONFIGS["plain"], mesh_named("fsdp=4,tp=2", AxisType.Auto))
    resharded = lazyload.reshard(model, other_mesh(), rules={"mlp": None})
    assert resharded.layers[0].mlp.up_proj.kernel[...].sharding.spec == PartitionSpec("data")
    with pytest.raises(ShardingError, match="the mesh has the axes data, model"):
        lazyload.reshard(model, other_mesh(), rules={"mlp": "tp"})


def test_what_has_no_values_is_refused():
    with pytest.raises(ArgumentError, match="no values"):
        lazyload.reshard(Decoder(CONFIGS["plain"], rngs=None), other_mesh())
    with pytest.raises(ArgumentError, match="no module"):
        lazyload.reshard({}, other_mesh())
