"""Running a model on whatever mesh its parameters lie on, with automatic or with explicit axes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def mesh_of(array: jax.Array) -> AbstractContextManager[Any]:
    """Sets the mesh that the array lies on, unless a mesh is set or the array lies on none."""
    if not jax.sharding.get_abstract_mesh().empty or jax.typeof(array).sharding.mesh.empty:
        return nullcontext()
    if isinstance(array, jax.core.Tracer):
        return jax.sharding.use_abstract_mesh(jax.typeof(array).sharding.mesh)
    mesh = array.sharding.mesh if isinstance(array.sharding, NamedSharding) else None
    return jax.set_mesh(mesh) if isinstance(mesh, Mesh) else nullcontext()


def has_explicit_axes() -> bool:
    """Whether the mesh that is set has explicit axes."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def explicit_spec(array: jax.Array) -> PartitionSpec:
    """How the array is sharded over the mesh's explicit axes."""
    spec: PartitionSpec = jax.typeof(array).sharding.spec
    return spec


def run_with_automatic_axes(function: Callable[..., Any], module: nnx.Module, *args: Any, out_specs: Any) -> Any:
    """Runs `function(module, *args)` with the explicit axes of the mesh made automatic.

    Args:
        function: Must not change the module.
        module: What holds parameters.
        *args: Pytrees of arrays.
        out_specs: A pytree of `PartitionSpec`s over the explicit axes, one for each array of the result.

    Returns:
        What the function returns, sharded as `out_specs` say.
    """
    graphdef, state = nnx.split(module)

    def body(state: Any, *args: Any) -> Any:
        return function(nnx.merge(graphdef, state), *args)

    return jax.sharding.auto_axes(body, out_sharding=out_specs)(state, *args)
