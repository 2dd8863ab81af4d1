"""From logical axes to mesh axes: where the parameters of a model go."""

import collections
import logging
import math
from collections.abc import Mapping, Sequence, Set

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lazyload.errors import ShardingError
from lazyload.partition import Dimension, Grid, Partition, pieces

logger = logging.getLogger("lazyload")

MeshAxes = str | Sequence[str] | None
"""One mesh axis, several, or none."""

Rules = Mapping[str, MeshAxes] | Sequence[tuple[str, MeshAxes]]
"""From logical axis to mesh axes."""

Arrays = Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
"""Shape and logical axes by path."""

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

_LAYER = "layer"
"""The axis of stacked layers, which is not split: each device has its part of every layer."""

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
    if not isinstance(mesh, Mesh):
        raise ShardingError(f"mesh: {mesh!r} has no devices; give a jax.sharding.Mesh, such as jax.make_mesh makes")
    if mesh.empty or mesh.devices.size == 0:
        raise ShardingError("mesh: it has no devices; give jax.make_mesh((8,), ('fsdp',)), or None for all devices")
    return mesh


def with_automatic_axes(mesh: Mesh) -> Mesh:
    """The same mesh, none of whose axes is explicit."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def require_mesh(mesh: object) -> Mesh | AbstractMesh:
    """A mesh to be asked about, for which one without devices will do.

    Raises:
        ShardingError: It is none, or has no places for devices.
    """
    if not isinstance(mesh, Mesh | AbstractMesh) or mesh.empty or mesh.size == 0:
        raise ShardingError(
            f"mesh: {mesh!r} is no mesh with devices; give a jax.sharding.Mesh, or an AbstractMesh, which needs none: "
            "AbstractMesh((4, 2), ('fsdp', 'tp'))"
        )
    return mesh


def shardings(mesh: Mesh | AbstractMesh, rules: Rules | None, arrays: Arrays) -> dict[str, NamedSharding]:
    """Where every array goes, as `partitions` decides it; what is not as one may expect is logged.

    Args:
        mesh: The mesh.
        rules: From logical axis to mesh axis, several of them, or None; what they do not name follows the defaults.
        arrays: Shape and logical axes by path.

    Raises:
        ShardingError: A rule names an axis that the mesh, or the model, does not have, or one twice.
    """
    places = partitions(mesh, rules, arrays)
    if rules is None and mesh.size > 1 and all(pieces(place, mesh.shape) == 1 for place in places.values()):
        _tell_replicated(mesh, _defaults(mesh, arrays))
    uneven: dict[tuple[str, int], list[str]] = collections.defaultdict(list)
    for path, place in places.items():
        for dimension in place:
            if dimension.refused:
                uneven[dimension.axis, dimension.size].append(path)
    for (axis, size), paths in uneven.items():
        where = f"{paths[0]} and {len(paths) - 1} more" if len(paths) > 1 else paths[0]
        logger.info(
            "axis %s of size %d is not divided by the mesh %s: replicated in %s", axis, size, dict(mesh.shape), where
        )
    return {path: NamedSharding(mesh, spec_of(place)) for path, place in places.items()}


def partitions(mesh: Mesh | AbstractMesh, rules: Rules | None, arrays: Arrays) -> dict[str, Partition]:
    """Decides where every array goes, and says of each dimension that is not split why.

    Each dimension is sharded over the mesh axes that the rules give its logical axis, as far as they divide it and are
    not in use for an earlier dimension. Without a rule of the user's, arrays of one dimension are replicated.

    Args:
        mesh: See `shardings`, here and below.
        rules: The user's rules.
        arrays: Shape and logical axes by path.

    Raises:
        ShardingError: A rule names an axis that the mesh, or the model, does not have, or one twice.
    """
    named, defaults = _checked(mesh, rules, arrays), _defaults(mesh, arrays)
    return {path: _placed(mesh, named, defaults, shape, axes) for path, (shape, axes) in arrays.items()}


def batch_axes(mesh: Mesh | AbstractMesh, spread: Set[str]) -> tuple[str, ...]:
    """The mesh axes that a batch of sequences is split over, in the mesh's order.

    Args:
        mesh: The mesh.
        spread: Those that parameters are spread over beside the data, whatever they are called.
    """
    beside = {*_FULLY_SHARDED, *_DATA, *spread} - {*_TENSOR, *_EXPERT}
    return tuple(name for name in mesh.axis_names if name in beside)


def is_spread(axis: str) -> bool:
    """Whether parameters are spread beside the data along a logical axis, along which activations are not split."""
    return axis.endswith(_SPREAD)


def spec_of(partition: Partition) -> PartitionSpec:
    """The same as JAX says it, without what is None at its end."""
    spec = [dimension.over[0] if len(dimension.over) == 1 else dimension.over or None for dimension in partition]
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def grid_of(mesh: Mesh | AbstractMesh) -> Grid:
    """The devices of a mesh; those of an abstract one are counted from 0."""
    if isinstance(mesh, AbstractMesh):
        return Grid(dict(mesh.shape), tuple(range(mesh.size)))
    devices = mesh.devices.flat
    return Grid(dict(mesh.shape), tuple(device.id for device in devices), devices[0].device_kind)


def _placed(
    mesh: Mesh | AbstractMesh,
    named: Mapping[str, tuple[str, ...]],
    defaults: Mapping[str, tuple[str, ...]],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
) -> Partition:
    """Where one array goes."""
    dimensions: list[Dimension] = []
    for size, axis in zip(shape, axes, strict=True):
        used = {name for dimension in dimensions for name in dimension.over}
        if axis in named:
            wanted, reason = named[axis], f"the rules keep {axis} whole"
        elif sum(name != _LAYER for name in axes) == 1:
            wanted, reason = (), "one dimension"
        elif axis in defaults:
            wanted, reason = defaults[axis], f"no mesh axis for {axis}"
        else:
            wanted, reason = (), f"no rule for {axis}"
        dimensions.append(_split(mesh, axis, size, wanted, used, reason))
    return tuple(dimensions)


def _split(
    mesh: Mesh | AbstractMesh, axis: str, size: int, wanted: tuple[str, ...], used: Set[str], reason: str
) -> Dimension:
    """One dimension, split over those of the mesh axes wanted that no other one uses, if they divide it.

    Args:
        mesh: The mesh.
        axis: Its logical axis.
        size: Its size.
        wanted: The mesh axes that the rules give it.
        used: Those that earlier dimensions are split over.
        reason: Why the rules give it none, if they do not.
    """
    free = tuple(name for name in wanted if name not in used)
    parts = math.prod(mesh.shape[name] for name in free)
    by = " and ".join(f"{name}={mesh.shape[name]}" for name in free)
    if size % parts:
        return Dimension(axis, size, reason=f"{axis} {size} not divided by {by}", refused=free)
    if free:
        return Dimension(axis, size, free, "" if parts > 1 else f"{by} splits nothing")
    if wanted:
        return Dimension(axis, size, reason=f"{' and '.join(wanted)} already split another dimension than {axis}")
    return Dimension(axis, size, reason=reason)


def _defaults(mesh: Mesh | AbstractMesh, arrays: Arrays) -> dict[str, tuple[str, ...]]:
    """For each logical axis, those of its usual mesh axes that the mesh has."""
    named = [axis for _, axes in arrays.values() for axis in axes]
    split = {axis: _TENSOR for axis in named if axis.endswith(_SPLIT_BY_TENSOR)}
    spread = {axis: _FULLY_SHARDED for axis in named if axis.endswith(_SPREAD)}
    rules = {**split, **spread, **_DEFAULT_RULES}
    if not set(_FULLY_SHARDED) & set(mesh.axis_names):
        rules |= dict.fromkeys((_SPREAD, *spread), _DATA)
    return {axis: tuple(name for name in names if name in mesh.axis_names) for axis, names in rules.items()}


def _tell_replicated(mesh: Mesh | AbstractMesh, defaults: Mapping[str, tuple[str, ...]]) -> None:
    """Warns that nothing is sharded, with rules that would shard."""
    first, *others = sorted(mesh.axis_names, key=lambda name: -mesh.shape[name])
    by_tensor = {axis: others[0] for axis in defaults if not axis.endswith(_SPREAD) and others}
    logger.warning(
        "the mesh %s has no axis that shards: every device gets a copy of all parameters; "
        "rules={} says that this is meant, rules=%r would shard them",
        dict(mesh.shape),
        {"embed": first, **by_tensor},
    )


def _checked(mesh: Mesh | AbstractMesh, rules: Rules | None, arrays: Arrays) -> dict[str, tuple[str, ...]]:
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
