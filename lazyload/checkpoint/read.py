"""Reading: arrays go from the checkpoint's chunks straight to the devices that hold them.

Every chunk is read once a process, and only if one of the process's devices needs it: into the shard that holds it, or,
where several hold parts of it, into memory that is used again for the next chunk. Touching fresh memory takes longer
than reading the bytes. There is never a host copy of more than a few arrays. Uncompressed chunks in files of their own
are read without TensorStore.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from jax.sharding import Sharding, SingleDeviceSharding

from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.records import ArrayRecord, Records, chunk_checksum, combined
from lazyload.checkpoint.store import array_spec, context
from lazyload.checkpoint.verify import find_damage
from lazyload.errors import CacheError, LazyLoadError
from lazyload.layouts.scratch import Scratch
from lazyload.layouts.source import Box
from lazyload.progress import Advance
from lazyload.storage import Storage, is_pathways

_THREADS = min(16, max(4, os.cpu_count() or 4))
_BYTES_IN_FLIGHT = 2 << 30
"""Of arrays that are being read at the same time, unless a single one is larger."""

_ALIGNMENT = 64
"""What XLA's CPU backend asks of a buffer that it takes over instead of copying it."""

ReadChunk = Callable[[Box, np.ndarray], None]
"""Fills a C-contiguous array of the box's shape with a chunk."""

Limits = tuple[tuple[int, int], ...]
"""Start and stop for each dimension."""


def read(
    folder: Path,
    arrays: Records,
    shardings: Mapping[str, Sharding],
    storage: Storage,
    *,
    verify: bool = False,
    advance: Advance = lambda nbytes: None,
) -> dict[str, jax.Array]:
    """Restores a checkpoint.

    Args:
        folder: The checkpoint.
        arrays: What the manifest says of its arrays.
        shardings: Which of them are wanted, and where each goes; by dotted path.
        storage: How they are stored.
        verify: Whether to compare every array with its checksum; then all its chunks are read, needed here or not.
        advance: Called with the number of bytes of every chunk that is read, or is not needed here, from any thread;
            under Pathways once, in the end.

    Returns:
        The arrays on their devices.

    Raises:
        CacheError: An array is missing or damaged.
    """
    if is_pathways(os.environ):
        if verify and (problems := find_damage(folder, arrays, storage)):
            raise CacheError(f"{folder} is damaged: {problems[0]}; call again with force_convert=True")
        restored = through_orbax(folder, arrays, shardings)
        advance(sum(array.nbytes for array in restored.values()))
        return restored
    records = _records(folder, arrays, shardings)
    shared, scratch = context(), Scratch()
    budget = _Budget(_BYTES_IN_FLIGHT)

    def load(path: str) -> jax.Array:
        record = records[path]
        with budget.taken(record.nbytes), _explained(folder, path):
            read_chunk = _opened(folder, path, record, storage, shared)
            return _load(read_chunk, record, shardings[path], scratch, verify, advance)

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="lazyload") as pool:
        return dict(zip(records, pool.map(load, records), strict=True))


def through_orbax(folder: Path, arrays: Records, shardings: Mapping[str, Sharding]) -> dict[str, jax.Array]:
    """Restores with Orbax itself: under Pathways, its handlers reach devices that this process cannot."""
    # Orbax and Flax take a while to import, and nothing else here needs them.
    import orbax.checkpoint as ocp
    from flax.traverse_util import flatten_dict, unflatten_dict

    arguments = {
        path: ocp.ArrayRestoreArgs(sharding=shardings[path], global_shape=record.shape, dtype=record.numpy_dtype)
        for path, record in _records(folder, arrays, shardings).items()
    }
    restore = ocp.args.PyTreeRestore(
        item=unflatten_dict(dict.fromkeys(arguments, 0), sep="."),
        restore_args=unflatten_dict(arguments, sep="."),
        partial_restore=True,
    )
    with _explained(folder, "the checkpoint"):
        restored = flatten_dict(ocp.PyTreeCheckpointer().restore(folder, args=restore), sep=".")
    return {path: restored[path] for path in arguments}


def _records(folder: Path, arrays: Records, paths: Iterable[str]) -> dict[str, ArrayRecord]:
    records = {}
    for path in paths:
        with _explained(folder, path):
            records[path] = ArrayRecord.from_dict(arrays.get(path, {}))
    return records


def _load(
    read_chunk: ReadChunk, record: ArrayRecord, sharding: Sharding, scratch: Scratch, verify: bool, advance: Advance
) -> jax.Array:
    """One array, on its devices."""
    checksums = []
    dtype = record.numpy_dtype
    shards: dict[Limits, np.ndarray] = {}
    holders: list[tuple[jax.Device, Limits]] = []
    for device, index in sharding.addressable_devices_indices_map(record.shape).items():
        limits = tuple(cut.indices(size)[:2] for cut, size in zip(index or (), record.shape, strict=True))
        holders.append((device, limits))
        if limits not in shards:
            shards[limits] = _aligned([high - low for low, high in limits], dtype)
    for box in boxes(record.shape, record.chunks):
        chunk_limits = tuple((cut.start, cut.stop) for cut in box)
        nbytes = math.prod(high - low for low, high in chunk_limits) * dtype.itemsize
        meeting = [(limits, common) for limits in shards if (common := _common(chunk_limits, limits)) is not None]
        if not meeting and not verify:
            advance(nbytes)
            continue
        chunk = _own_memory(shards, chunk_limits, meeting)
        if chunk is not None:
            meeting = []
        else:
            chunk = scratch.array([high - low for low, high in chunk_limits], dtype)
        read_chunk(box, chunk)
        if verify:
            checksums.append(chunk_checksum(chunk))
        for limits, common in meeting:
            _bits(shards[limits])[_within(common, limits)] = _bits(chunk)[_within(common, chunk_limits)]
        advance(nbytes)
    if verify and (found := combined(checksums)) != record.checksum:
        raise ValueError(f"is {found}, was written as {record.checksum}")
    placed = [jax.device_put(shards[limits], _memory(device, sharding), may_alias=True) for device, limits in holders]
    return jax.make_array_from_single_device_arrays(record.shape, sharding, placed)


def _memory(device: jax.Device, sharding: Sharding) -> "jax.Device | SingleDeviceSharding":
    """Which memory of a device holds its shards: its own, or that of its host."""
    kind = sharding.memory_kind
    is_usual = kind is None or kind == device.default_memory().kind
    return device if is_usual else SingleDeviceSharding(device, memory_kind=kind)


def _own_memory(
    shards: Mapping[Limits, np.ndarray], chunk: Limits, meeting: "list[tuple[Limits, Limits]]"
) -> np.ndarray | None:
    """Where a chunk can be read to without a detour: its place in the only shard that holds any of it."""
    if len(meeting) != 1 or meeting[0][1] != chunk:
        return None
    place = shards[meeting[0][0]][_within(chunk, meeting[0][0])]
    return place if place.flags.c_contiguous else None


def _opened(folder: Path, path: str, record: ArrayRecord, storage: Storage, shared: ts.Context) -> ReadChunk:
    """How the chunks of an array are read."""
    if not storage.ocdbt and storage.compression == "none":
        return lambda box, out: _read_file(folder / path, record, storage, box, out)
    store = ts.open(array_spec(folder, path, storage), context=shared, read=True, open=True).result()
    # TensorStore fills memory that it is given, where `read` would take fresh memory for every chunk.
    return lambda box, out: ts.array(out).write(store[box]).result()


def _read_file(folder: Path, record: ArrayRecord, storage: Storage, box: Box, out: np.ndarray) -> None:
    """An uncompressed chunk, which is the content of a file; at the array's edge it is stored with padding."""
    numbers = [str(cut.start // chunk) for cut, chunk in zip(box, record.chunks, strict=True)]
    name = "/".join(["c", *numbers]) if storage.zarr3 else ".".join(numbers) or "0"
    chunk = out if out.shape == record.chunks else np.empty(record.chunks, out.dtype)
    with open(folder / name, "rb", buffering=0) as file:
        view = chunk.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view) and (count := file.readinto(view[done:])):
            done += count
        if done < len(view) or file.read(1):
            raise ValueError(f"{folder / name} has not the {len(view)} bytes of a chunk")
    if chunk is not out:
        _bits(out)[...] = _bits(chunk)[tuple(slice(0, size) for size in out.shape)]


def _common(chunk: Limits, shard: Limits) -> Limits | None:
    """What a chunk and a shard have in common."""
    common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(chunk, shard, strict=True))
    return common if all(low < high for low, high in common) else None


def _within(part: Limits, whole: Limits) -> tuple[Any, ...]:
    """The index of a part in a larger box; a view even where there are no dimensions."""
    cuts = (slice(low - first, high - first) for (low, high), (first, _) in zip(part, whole, strict=True))
    return (*cuts, ...)


def _aligned(shape: "tuple[int, ...] | list[int]", dtype: np.dtype) -> np.ndarray:
    """Fresh memory in which XLA's CPU backend can leave an array."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def _bits(array: np.ndarray) -> np.ndarray:
    """The same memory in a dtype that NumPy copies quickly."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize <= 8 else array


class _Budget:
    """Bytes that may be in use at the same time; a single larger piece is let through alone."""

    def __init__(self, nbytes: int):
        self._left = self._all = nbytes
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, nbytes: int) -> Iterator[None]:
        """Waits until so many bytes are free, and keeps them while the body runs."""
        share = min(nbytes, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= share)
            self._left -= share
        try:
            yield
        finally:
            with self._changed:
                self._left += share
                self._changed.notify_all()


@contextmanager
def _explained(folder: Path, path: str) -> Iterator[None]:
    """Turns what a damaged checkpoint raises into an error that says what to do."""
    try:
        yield
    except LazyLoadError:
        raise
    # TensorStore's errors are ValueErrors, Orbax's bare Exceptions.
    except Exception as error:
        raise CacheError(
            f"{path} cannot be read from {folder}: {str(error).splitlines()[0][:300]}; look at it with "
            "`lazyload cache verify`, and call again with force_convert=True"
        ) from error
