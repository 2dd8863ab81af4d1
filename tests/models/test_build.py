import gc

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from support.decoders import CONFIGS, abstract, build, parameter_shapes, weights

from lazyload.errors import TensorMismatchError
from lazyload.formats.nnx import layout
from lazyload.layouts.conversion import axes_of
from lazyload.layouts.unroll import unroll_tree

P = PartitionSpec


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_partition_specs_are_those_of_the_arrays(axis_type):
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(axis_type,) * 2)
    config = CONFIGS["plain"]
    specs = {path: P(*(("fsdp",) if "norm" not in path else ())) for path in weights(config)}
    specs["layers.0.attn.q_proj.kernel"] = P(("fsdp", "tp"))
    with jax.set_mesh(mesh):
        arrays = {
            path: jax.device_put(array, NamedSharding(mesh, specs[path])) for path, array in weights(config).items()
        }
        model = build(config, jnp.float32, arrays)
    found = nnx.get_partition_spec(nnx.state(model))
    paths = [".".join(map(str, path)) for path, _ in nnx.to_flat_state(found)]
    # With an entry a dimension, as modules that are annotated by hand have them, and as qwix reads them.
    full = {path: P(*spec, *(None,) * (arrays[path].ndim - len(spec))) for path, spec in specs.items()}
    assert dict(zip(paths, jax.tree.leaves(found), strict=True)) == full
    again = nnx.merge(*nnx.split(model))
    kernel = again.layers[0].attn.q_proj.kernel
    assert kernel[...] is arrays["layers.0.attn.q_proj.kernel"]
    assert kernel.logical_axes == ("embed", "head", "head_dim")
    assert jax.tree.leaves(nnx.get_partition_spec(nnx.state(again))) == jax.tree.leaves(found)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_the_abstract_model_allocates_nothing_under_any_mesh(axis_type):
    gc.collect()
    before = len(jax.live_arrays())
    with jax.set_mesh(jax.make_mesh((4, 2), ("fsdp", "expert"), axis_types=(axis_type,) * 2)):
        model = abstract(CONFIGS["gpt_oss"])
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model)))
    assert len(jax.live_arrays()) == before


def test_every_problem_is_reported_at_once():
    arrays = {path: jnp.asarray(array) for path, array in weights(CONFIGS["plain"]).items()}
    del arrays["lm_head.kernel"]
    arrays["lm_head.bias"] = jnp.zeros(64)
    arrays["final_norm.scale"] = jnp.zeros(31)
    with pytest.raises(TensorMismatchError) as caught:
        build(CONFIGS["plain"], jnp.float32, arrays)
    assert len(caught.value.problems) == 3
    for path in ("lm_head.kernel", "lm_head.bias", "final_norm.scale"):
        assert path in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_modules_have_exactly_the_parameters_that_their_blocks_declare(name):
    config = CONFIGS[name]
    declared = axes_of(unroll_tree(layout(config), config))
    model = abstract(config)
    made = {".".join(map(str, path)): p.logical_axes for path, p in nnx.to_flat_state(nnx.state(model))}
    assert {path: axes for path, (_, axes) in declared.items()} == made
    assert {path: shape for path, (shape, _) in declared.items()} == parameter_shapes(model)
