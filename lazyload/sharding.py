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

_FULLY_SHARDED = ("fsdp", "zero")
_DATA = ("data", "dp", "batch")
_TENSOR = ("tp", "tensor", "model", "mp", "mdl")
_EXPERT = ("ep", "expert", "experts")
"""The usual names of mesh axes: of MaxText, PyTorch, Praxis and Megatron. Over an axis of data, parameters are sharded
where there is none for that."""

_DEFAULT_RULES: Mapping[str, tuple[str, ...]] = {"embed": _FULLY_SHARDED, "vocab": _TENSOR, "expert": _EXPERT}
"""For logical axes the mesh axes that they are sharded over; those that a mesh has are used."""

_SPLIT_BY_TENSOR = ("head", "mlp", "vocab")
"""What the names of logical axes end in that tensor parallelism splits: `kv_head`, `expert_mlp`, `ple_vocab`, ..."""

_SPREAD = "embed"
"""What the names of logical axes end in that are sharded beside the data: `ple_embed`, ..."""


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
        ShardingError: A rule names an axis that the mesh, or the model, does not have, or one twice.
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
    if rules is None and mesh.size > 1 and all(place.is_fully_replicated for place in places.values()):
        _tell_replicated(mesh, defaults)
    for (axis, size), paths in uneven.items():
        where = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]
        logger.info(
            "axis %s of size %d is not divided by the mesh %s: replicated in %s", axis, size, dict(mesh.shape), where
        )
    return places


def _defaults(mesh: Mesh, arrays: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    """For each logical axis, those of its usual mesh axes that the mesh has."""
    named = [axis for _, axes in arrays.values() for axis in axes]
    split = {axis: _TENSOR for axis in named if axis.endswith(_SPLIT_BY_TENSOR)}
    spread = {axis: _FULLY_SHARDED for axis in named if axis.endswith(_SPREAD)}
    rules = {**split, **spread, **_DEFAULT_RULES}
    if not set(_FULLY_SHARDED) & set(mesh.axis_names):
        rules |= dict.fromkeys((_SPREAD, *spread), _DATA)
    return {axis: tuple(name for name in names if name in mesh.axis_names) for axis, names in rules.items()}


def _tell_replicated(mesh: Mesh, defaults: Mapping[str, tuple[str, ...]]) -> None:
    """Warns that nothing is sharded, with rules that would shard."""
    first, *others = sorted(mesh.axis_names, key=lambda name: -mesh.shape[name])
    by_tensor = {axis: others[0] for axis in defaults if not axis.endswith(_SPREAD) and others}
    logger.warning(
        "the mesh %s has no axis that shards: every device gets a copy of all parameters; "
        "rules={} says that this is meant, rules=%r would shard them",
        dict(mesh.shape),
        {"embed": first, **by_tensor},
    )


def _checked(
    mesh: Mesh, rules: Rules | None, arrays: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
) -> dict[str, tuple[str, ...]]:
    """The user's rules, each as a tuple of mesh axes."""
    pairs = _pairs(rules)
    known = {axis for _, axes in arrays.values() for axis in axes} | set(_DEFAULT_RULES)
    checked: dict[str, tuple[str, ...]] = {}
    for axis, names in pairs:
        if axis not in known:
            raise ShardingError(f"rules: there is no logical axis {axis!r}; this model has {', '.join(sorted(known))}")
        several = () if names is None else (names,) if isinstance(names, str) else tuple(names)
        if len(set(several)) < len(several):
            raise ShardingError(f"rules: {axis!r} is to go to {several!r}, which names a mesh axis twice")
        unknown = [name for name in several if name not in mesh.axis_names]
        if unknown:
            raise ShardingError(
                f"rules: {axis!r} is to go to {unknown[0]!r}, but the mesh has the axes {', '.join(mesh.axis_names)}"
            )
        checked.setdefault(axis, several)
    return checked


def _pairs(rules: Rules | None) -> list[tuple[str, MeshAxes]]:
    """Rules as pairs.

    Raises:
        ShardingError: They are something else.
    """
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules or ()
    is_list = isinstance(pairs, Sequence) and not isinstance(pairs, str)
    if not is_list or not all(_is_pair(pair) for pair in pairs):
        raise ShardingError(
            f"rules: {rules!r:.200} are none; give mesh axes by logical axis, such as {{'embed': 'fsdp', 'mlp': ('tp', "
            "'sp'), 'vocab': None}"
        )
    return [(axis, names) for axis, names in pairs]


def _is_pair(pair: object) -> bool:
    match pair:
        case (str(), None | str()):
            return True
        case (str(), names) if isinstance(names, Sequence):
            return all(isinstance(name, str) for name in names)
    return False
