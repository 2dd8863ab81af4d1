"""From logical axes to mesh axes: where the parameters of a model go."""

import collections
import logging
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lazyload.errors import ShardingError

logger = logging.getLogger("lazyload")

MeshAxes = str | Sequence[str] | None
"""One mesh axis, several, or none."""

Rules = Mapping[str, MeshAxes] | Sequence[tuple[str, MeshAxes]]
"""From logical axis to mesh axes."""

_TENSOR = ("tp", "tensor", "model")
_DEFAULT_RULES: Mapping[str, tuple[str, ...]] = {"embed": ("fsdp",), "vocab": _TENSOR, "expert": ("ep", "expert")}
"""The usual names of mesh axes for logical axes; those that a mesh has are used."""

_SPLIT_BY_TENSOR = ("head", "mlp")
"""What the names of logical axes end in that tensor parallelism splits: `kv_head`, `expert_mlp`, ..."""


def mesh_or_default(mesh: Mesh | None) -> Mesh:
    """The mesh given, else the one that `jax.set_mesh` has set, else all devices on one axis `fsdp`.

    Raises:
        ShardingError: The mesh has no devices.
    """
    if mesh is None:
        current = jax.sharding.get_mesh()
        mesh = Mesh(np.array(jax.devices()), ("fsdp",)) if current.empty else current
    if isinstance(mesh, AbstractMesh) or not isinstance(mesh, Mesh):
        raise ShardingError(f"mesh: {mesh!r} has no devices; give a jax.sharding.Mesh, such as jax.make_mesh makes")
    if mesh.empty or mesh.devices.size == 0:
        raise ShardingError("mesh: it has no devices; give jax.make_mesh((8,), ('fsdp',)), or None for all devices")
    return mesh


def shardings(
    mesh: Mesh, rules: Rules | None, arrays: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
) -> dict[str, NamedSharding]:
    """Where every array goes.

    Each dimension is sharded over the mesh axes that the rules give its logical axis, as far as they divide it and are
    not in use for an earlier dimension. Without a rule of the user's, arrays of one dimension are replicated.

    Args:
        mesh: The mesh.
        rules: From logical axis to mesh axis, several of them, or None; what they do not name follows the defaults.
        arrays: Shape and logical axes by path.

    Raises:
        ShardingError: A rule names an axis that the mesh, or the model, does not have.
    """
    named = _checked(mesh, rules, arrays)
    defaults = _defaults(mesh, arrays)
    uneven: dict[tuple[str, int], list[str]] = collections.defaultdict(list)
    places = {}
    for path, (shape, axes) in arrays.items():
        wanted = named if len(shape) == 1 else {**defaults, **named}
        used: set[str] = set()
        spec: list[tuple[str, ...] | str | None] = []
        for size, axis in zip(shape, axes, strict=True):
            names = tuple(name for name in wanted.get(axis, ()) if name not in used)
            parts = math.prod(mesh.shape[name] for name in names)
            if size % parts:
                uneven[axis, size].append(path)
                names = ()
            used.update(names)
            spec.append(names[0] if len(names) == 1 else names or None)
        while spec and spec[-1] is None:
            spec.pop()
        places[path] = NamedSharding(mesh, PartitionSpec(*spec))
    for (axis, size), paths in uneven.items():
        where = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]
        logger.info(
            "axis %s of size %d is not divided by the mesh %s: replicated in %s", axis, size, dict(mesh.shape), where
        )
    return places


def _defaults(mesh: Mesh, arrays: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """For each logical axis, those of its usual mesh axes that the mesh has."""
    split = {axis: _TENSOR for _, axes in arrays.values() for axis in axes if axis.endswith(_SPLIT_BY_TENSOR)}
    rules = {**split, **_DEFAULT_RULES}
    return {axis: tuple(name for name in names if name in mesh.axis_names) for axis, names in rules.items()}


def _checked(
    mesh: Mesh, rules: Rules | None, arrays: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
) -> dict[str, tuple[str, ...]]:
    """The user's rules, each as a tuple of mesh axes."""
    pairs = list(rules.items() if isinstance(rules, Mapping) else rules or ())
    known = {axis for _, axes in arrays.values() for axis in axes} | set(_DEFAULT_RULES)
    checked: dict[str, tuple[str, ...]] = {}
    for axis, names in pairs:
        if axis not in known:
            raise ShardingError(f"rules: there is no logical axis {axis!r}; this model has {', '.join(sorted(known))}")
        several = () if names is None else (names,) if isinstance(names, str) else tuple(names)
        unknown = [name for name in several if name not in mesh.axis_names]
        if unknown:
            raise ShardingError(
                f"rules: {axis!r} is to go to {unknown[0]!r}, but the mesh has the axes {', '.join(mesh.axis_names)}"
            )
        checked.setdefault(axis, several)
    return checked
