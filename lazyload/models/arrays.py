"""The arrays that a module, or any tree of arrays, holds, and how they lie on a mesh."""

import collections
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lazyload.display.shards import Placed, Shards
from lazyload.display.weights import Array
from lazyload.errors import SaveError
from lazyload.models.parameters import STORED
from lazyload.partition import Dimension, Grid, Partition
from lazyload.sharding import grid_of, partitions

PLACED = "placed so, not by the default rules"
OFF_MESH = "on no mesh"


class Held(NamedTuple):
    """One array.

    Attributes:
        shape: Its shape.
        dtype: The name of its dtype.
        nbytes: Its size in bytes.
        axes: The logical axis of each dimension; empty where they are not known.
        sharding: Where it lies; None where it has no values, or is being traced.
    """

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    axes: tuple[str, ...]
    sharding: jax.sharding.Sharding | None


def arrays_of(model: Any) -> dict[str, Held]:
    """The arrays of a tree by dotted path; of a module those of its parameters.

    Args:
        model: A module, or a pytree of arrays, or of what has their shape and dtype.
    """
    axes: Mapping[str, tuple[str, ...]] = {}
    tree = model
    if isinstance(model, nnx.Module):
        tree = nnx.to_pure_dict(nnx.state(model, STORED))
        parameters = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, STORED)]
        axes = {".".join(map(str, path)): node.get_metadata().get("logical_axes", ()) for path, node in parameters}
    leaves = {".".join(map(_name, path)): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
    return {path: _held(leaf, axes.get(path, ())) for path, leaf in leaves.items() if hasattr(leaf, "dtype")}


def weights_of(arrays: Mapping[str, Held]) -> dict[str, Array]:
    """The same as pictures of bytes take them."""
    return {path: Array(array.shape, array.dtype, array.nbytes) for path, array in arrays.items()}


def shards_of(title: str, arrays: Mapping[str, Held]) -> Shards | None:
    """How arrays lie on the mesh that most of their bytes are on, or on one device; None where they lie nowhere."""
    if not arrays or any(array.sharding is None for array in arrays.values()):
        return None
    by_mesh: dict[Mesh | AbstractMesh, int] = collections.Counter()
    for array in arrays.values():
        if isinstance(array.sharding, NamedSharding):
            by_mesh[array.sharding.mesh] += array.nbytes
    if not by_mesh:
        return Shards(title, *_without_mesh(arrays))
    mesh = max(by_mesh, key=lambda mesh: by_mesh[mesh])
    expected = partitions(mesh, None, {path: (array.shape, array.axes) for path, array in arrays.items() if array.axes})
    return Shards(
        title,
        grid_of(mesh),
        {path: _placed(array, mesh, expected.get(path)) for path, array in arrays.items()},
    )


def _held(leaf: Any, axes: tuple[str, ...]) -> Held:
    shape = tuple(leaf.shape)
    sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    nbytes = math.prod(shape) * leaf.dtype.itemsize
    return Held(shape, str(leaf.dtype), nbytes, axes if len(axes) == len(shape) else (), sharding)


def _placed(array: Held, mesh: Mesh | AbstractMesh, expected: Partition | None) -> Placed:
    """Where one array lies, with the reasons of the default rules where these have put it there."""
    sharding = array.sharding
    if not isinstance(sharding, NamedSharding) or sharding.mesh != mesh:
        return _whole(array)
    overs = [_names(entry) for entry in sharding.spec]
    overs += [()] * (len(array.shape) - len(overs))
    if expected is not None and [dimension.over for dimension in expected] == overs:
        return Placed(array.dtype, array.nbytes, expected)
    axes = array.axes or ("",) * len(array.shape)
    partition = tuple(
        Dimension(axis, size, over, "" if over else PLACED)
        for axis, size, over in zip(axes, array.shape, overs, strict=True)
    )
    return Placed(array.dtype, array.nbytes, partition)


def _whole(array: Held) -> Placed:
    """An array that does not lie on the mesh, with the devices that hold it."""
    assert array.sharding is not None
    held_by: set[Any] = array.sharding.device_set
    devices = tuple(sorted(device.id for device in held_by))
    axes = array.axes or ("",) * len(array.shape)
    partition = tuple(Dimension(axis, size, (), OFF_MESH) for axis, size in zip(axes, array.shape, strict=True))
    return Placed(array.dtype, array.nbytes, partition, devices)


def _without_mesh(arrays: Mapping[str, Held]) -> tuple[Grid, dict[str, Placed]]:
    placed = {path: _whole(array) for path, array in arrays.items()}
    devices = sorted({device for array in placed.values() for device in array.elsewhere})
    return Grid({"devices": len(devices)} if len(devices) > 1 else {}, tuple(devices)), placed


def _names(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    if isinstance(entry, str):
        return (entry,)
    return () if entry is None or entry is PartitionSpec.UNCONSTRAINED else tuple(entry)


def _name(key: Any) -> str:
    """One step of the path to a leaf."""
    return str(next((getattr(key, part) for part in ("key", "idx", "name") if hasattr(key, part)), key))


def require_here(arrays: Mapping[str, Any]) -> None:
    """Makes sure that arrays lie on devices of this process alone.

    Raises:
        SaveError: A part of one lies on devices of another process.
    """
    for path, array in arrays.items():
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            raise SaveError(
                f"{path} lies on devices of several processes, and one writes a checkpoint alone: bring the model onto "
                "the devices of one first, or load it there from a checkpoint"
            )
