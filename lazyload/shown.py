"""`show_sharding`: how a model, or what a plan speaks of, lies on a mesh."""

from typing import Any

from jax.sharding import AbstractMesh, Mesh, NamedSharding

from lazyload.display.picture import Picture
from lazyload.display.shards import Placed, Shards
from lazyload.errors import ShardingError
from lazyload.models.arrays import Held, arrays_of, shards_of
from lazyload.results import Plan
from lazyload.sharding import Rules, grid_of, partitions, require_mesh


def show_sharding(model: Any, mesh: Mesh | AbstractMesh | None = None, rules: Rules | None = None) -> Picture:
    """Which part of each kind of parameter each device holds, the bytes of a device, and what is whole and why.

    Args:
        model: A model that has been loaded, any other `nnx.Module` or pytree of arrays, or a `lazyload.Plan`.
        mesh: The mesh to ask about, without devices, too (`jax.sharding.AbstractMesh`); None for where the arrays
            really lie, and for a plan its own.
        rules: The rules for that mesh, as `from_pretrained` takes them.

    Returns:
        What a notebook draws, and `print` prints.

    Raises:
        ShardingError: There is no mesh; or where the arrays would go on it is not known, since they do not say their
            logical axes; or the rules do not fit.

    Example:
        >>> plan = lazyload.plan("Qwen/Qwen3-8B")  # doctest: +SKIP
        >>> lazyload.show_sharding(plan, AbstractMesh((4, 2), ("fsdp", "tp")))  # doctest: +SKIP
    """
    return shards(model, mesh, rules).picture()


def shards(model: Any, mesh: Mesh | AbstractMesh | None = None, rules: Rules | None = None) -> Shards:
    """What `show_sharding` shows, as values."""
    if isinstance(model, Plan):
        title, arrays = model.model, _planned(model)
        mesh, rules = (model.mesh, model.rules) if mesh is None else (mesh, rules)
    else:
        title, arrays = type(model).__name__, arrays_of(model)
    found = shards_of(title, arrays) if mesh is None and rules is None else _on_mesh(title, arrays, mesh, rules)
    if found is None:
        raise ShardingError(f"{title}: its arrays lie nowhere yet; give mesh=, such as jax.make_mesh or AbstractMesh")
    return found


def _planned(plan: Plan) -> dict[str, Held]:
    return {
        path: Held(array.shape, array.dtype, array.nbytes, array.axes, None) for path, array in plan.parameters.items()
    }


def _on_mesh(title: str, arrays: dict[str, Held], mesh: Mesh | AbstractMesh | None, rules: Rules | None) -> Shards:
    """How arrays would lie on a mesh, or with other rules on the one that they lie on."""
    mesh = require_mesh(_mesh_of(arrays) if mesh is None else mesh)
    unknown = [path for path, array in arrays.items() if len(array.axes) != len(array.shape)]
    if unknown:
        raise ShardingError(f"{title}: {unknown[0]} does not say its logical axes, by which a mesh is used")
    places = partitions(mesh, rules, {path: (array.shape, array.axes) for path, array in arrays.items()})
    placed = {path: Placed(arrays[path].dtype, arrays[path].nbytes, place) for path, place in places.items()}
    return Shards(title, grid_of(mesh), placed)


def _mesh_of(arrays: dict[str, Held]) -> Mesh | AbstractMesh | None:
    shardings = (array.sharding for array in arrays.values())
    return next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
