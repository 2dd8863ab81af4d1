"""Reading once: processes read disjoint parts of an array, and its devices exchange what each of them needs.

`checkpoint/reads.py` says which arrays are worth it, and into which parts they are cut; XLA moves the parts.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from lazyload.bucket.path import Folder
from lazyload.checkpoint.ranges import are_ranges
from lazyload.checkpoint.read import read
from lazyload.checkpoint.reads import Kind, better_split
from lazyload.checkpoint.records import ArrayRecord, Records
from lazyload.progress import Advance
from lazyload.storage import Storage

_BYTES_AT_ONCE = 2 << 30
"""Of arrays that a process reads before their parts are exchanged, unless a single one is larger."""


def read_once(
    folder: Folder,
    arrays: Records,
    shardings: Mapping[str, Sharding],
    storage: Storage,
    *,
    advance: Advance,
    count: Advance,
    together: Callable[[str, Callable[[], None]], None],
) -> dict[str, jax.Array]:
    """Restores a checkpoint in all processes of a mesh at the same time; see `lazyload.checkpoint.read.read`.

    Args:
        folder: The checkpoint.
        arrays: What the manifest says of its arrays.
        shardings: Where each of them goes.
        storage: How they are stored.
        advance: Called with the number of bytes of every chunk that is read, or is not needed here.
        count: Called with the numbers of bytes that this process reads.
        together: Called with a name and what has devices exchange something; calls that once all processes have come
            here, and returns when it is done.

    Raises:
        CacheError: An array is missing or damaged.
    """
    first_places = {
        path: place
        for path, final in shardings.items()
        if are_ranges(storage) and (place := place_to_read(ArrayRecord.from_dict(arrays[path]), final))
    }
    direct = {path: place for path, place in shardings.items() if path not in first_places}
    found = read(folder, arrays, direct, storage, advance=advance, count=count)
    for number, group in enumerate(_groups(first_places, arrays)):
        places = {path: first_places[path] for path in group}
        parts = read(folder, arrays, places, storage, advance=advance, count=count)
        together(f"exchange.{number}", functools.partial(_move, parts, shardings, found))
    return {path: found[path] for path in shardings}


def place_to_read(record: ArrayRecord, final: Sharding) -> NamedSharding | None:
    """Where an array goes first so that a fleet reads it about once; None where it is read once as it is."""
    if not isinstance(final, NamedSharding) or not isinstance(final.mesh, Mesh):
        return None
    return _place_to_read(Kind.of(record), final, final.mesh)


@functools.lru_cache(maxsize=4096)
def _place_to_read(kind: Kind, final: NamedSharding, mesh: Mesh) -> NamedSharding | None:
    devices = mesh.devices.reshape(-1)
    indices: Mapping[jax.Device, Any] = final.devices_indices_map(kind.shape)
    limits = [
        tuple(cut.indices(size)[:2] for cut, size in zip(indices[device] or (), kind.shape, strict=True))
        for device in devices
    ]
    split = better_split(kind, limits, [device.process_index for device in devices])
    if split is None:
        return None
    flat = Mesh(devices.reshape(split.parts, -1), ("part", "copy"))
    return NamedSharding(flat, PartitionSpec(*[None] * split.dimension, "part"))


def _groups(places: Mapping[str, NamedSharding], arrays: Records) -> list[list[str]]:
    """Paths in their order, as many together as a process may hold at once; the same in all processes."""
    groups: list[list[str]] = []
    held = 0
    for path, place in places.items():
        processes = {device.process_index for device in place.mesh.devices.flat}
        nbytes = ArrayRecord.from_dict(arrays[path]).nbytes // len(processes)
        if not groups or held + nbytes > _BYTES_AT_ONCE:
            groups.append([])
            held = 0
        groups[-1].append(path)
        held += nbytes
    return groups


def _move(parts: dict[str, jax.Array], shardings: Mapping[str, Sharding], found: dict[str, jax.Array]) -> None:
    """Moves arrays to their places, one after the other, so that no more than one is there twice."""
    for path in list(parts):
        found[path] = _moved(parts.pop(path), shardings[path])
        found[path].block_until_ready()


def _moved(array: jax.Array, place: Sharding) -> jax.Array:
    """An array in its place."""
    mesh = place.mesh if isinstance(place, NamedSharding) else None
    # Another mesh may be set, which JAX would hold the places against.
    with jax.set_mesh(mesh) if isinstance(mesh, Mesh) else contextlib.nullcontext():
        return _move_to(place)(array)


@functools.lru_cache(maxsize=256)
def _move_to(place: Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=place)
