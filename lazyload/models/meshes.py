"""Running a model on whatever mesh its parameters lie on, with automatic or with explicit axes."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lazyload.models.parameters import STORED


def mesh_of(array: object) -> AbstractContextManager[Any]:
    """Sets the mesh that the array lies on, unless a mesh is set or the array lies on none."""
    if not isinstance(array, jax.Array):
        return nullcontext()
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
        function: It may change and add variables of the module, such as those that are sown; these are then whole on
            every device.
        module: What holds parameters.
        *args: Pytrees of arrays.
        out_specs: A pytree of `PartitionSpec`s over the explicit axes, one for each array of the result.

    Returns:
        What the function returns, sharded as `out_specs` say.
    """
    graphdef, state = nnx.split(module)
    copies = []

    def body(state: Any, *args: Any) -> Any:
        copies.append(nnx.merge(graphdef, state))
        return function(copies[0], *args)

    result = jax.sharding.auto_axes(body, out_sharding=out_specs)(state, *args)
    _take_over(module, copies[0])
    return result


def _take_over(module: nnx.Module, changed: nnx.Module) -> None:
    """Gives a module the variables that its copy on automatic axes has come to have."""
    modules = {path: node for path, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)}
    for path, copy in [(path, node) for path, node in nnx.iter_graph(changed) if isinstance(node, nnx.Module)]:
        for name, value in list(vars(copy).items()):
            before = vars(modules[path]).get(name)
            if type(value) is type(before) and (isinstance(value, STORED) or not isinstance(value, nnx.Variable)):
                continue
            setattr(modules[path], name, jax.tree.map(_whole_on_every_device, value))


def _whole_on_every_device(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return array
    whole: jax.Array = jax.sharding.auto_axes(lambda x: x, out_sharding=PartitionSpec())(array)
    return whole


def automatic_mesh() -> AbstractMesh | None:
    """The mesh that is set, if it has several devices and its axes are automatic; None for none."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or set(mesh.axis_types) != {AxisType.Auto} else mesh


def usable(mesh: AbstractMesh, axes: Sequence[str], size: int) -> tuple[str, ...]:
    """Those of the axes that the mesh has and that divide a dimension of this size, taken together."""
    found: tuple[str, ...] = ()
    for axis in axes:
        if axis in mesh.shape and size % math.prod(mesh.shape[name] for name in (*found, axis)) == 0:
            found += (axis,)
    return found


def constrain(x: jax.Array, *dimensions: Sequence[str] | None) -> jax.Array:
    """Says of an activation over which axes of the mesh that is set it is split; without such a mesh nothing.

    Args:
        x: The activation.
        *dimensions: For each dimension the mesh axes, as far as they divide it and no dimension before it has them;
            None for what the compiler finds best.
    """
    mesh = automatic_mesh()
    if mesh is None:
        return x
    entries: list[Any] = []
    taken: set[str] = set()
    for size, axes in zip(x.shape, dimensions, strict=True):
        over = usable(mesh, [axis for axis in axes or () if axis not in taken], size)
        taken |= set(over)
        # A dimension that the axes do not divide is not to be gathered for that.
        entries.append(over or (PartitionSpec.UNCONSTRAINED if axes is None or axes else None))
    constrained: jax.Array = jax.lax.with_sharding_constraint(x, PartitionSpec(*entries))
    return constrained
