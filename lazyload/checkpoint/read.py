"""Reading: arrays go from the checkpoint's chunks straight to the devices that hold them.

Of every chunk a process reads what its devices need: into the shards that hold it, where that is one stretch of bytes
in the file and in memory, or else by way of memory that fits the processor's cache and is used again for the next
piece. Uncompressed chunks are read as the ranges of bytes that they are, neighbours in one call, without TensorStore.
"""

import collections
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Sharding

from lazyload.bucket.path import Folder
from lazyload.checkpoint.assembly import Assembly, HostMemory
from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.damage import explained
from lazyload.checkpoint.files import FileRanges
from lazyload.checkpoint.pieces import Piece, Stretch
from lazyload.checkpoint.ranges import are_ranges
from lazyload.checkpoint.records import ArrayRecord, Records, chunk_checksum, combined
from lazyload.checkpoint.uncompressed import Ranges, UncompressedReader
from lazyload.errors import CacheError
from lazyload.progress import Advance
from lazyload.storage import Storage, is_pathways

if TYPE_CHECKING:
    from lazyload.checkpoint.compressed import CompressedReader

_BYTES_IN_FLIGHT = 2 << 30
"""Of arrays that are being read at the same time, unless a single one is larger."""

_BYTES_ON_THE_WAY = 512 << 20
"""The same where devices have memory of their own: what is here until it is there, and that it is, costs most."""


def read(
    folder: Folder,
    arrays: Records,
    shardings: Mapping[str, Sharding],
    storage: Storage,
    *,
    verify: bool = False,
    advance: Advance = lambda nbytes: None,
    count: Advance = lambda nbytes: None,
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
        count: Called with the numbers of bytes of arrays that this process reads, from any thread; not under Pathways.

    Returns:
        The arrays on their devices.

    Raises:
        CacheError: An array is missing or damaged.
    """
    if is_pathways(os.environ):
        if verify:
            _require_undamaged(folder, arrays, storage)
        restored = through_orbax(folder, arrays, shardings)
        advance(sum(array.nbytes for array in restored.values()))
        return restored
    records = _records(folder, arrays, shardings)
    with _reader(folder, storage) as reader:
        return _Reading(folder, records, shardings, reader, verify, advance, count).run()


def _reader(folder: Folder, storage: Storage) -> "UncompressedReader | CompressedReader":
    if are_ranges(storage):
        return UncompressedReader(folder, storage, _ranges(folder))
    # TensorStore takes a while to import, and nothing else here needs it.
    from lazyload.checkpoint.compressed import CompressedReader

    return CompressedReader(folder, storage)


def _ranges(folder: Folder) -> Ranges:
    if isinstance(folder, Path):
        return FileRanges(folder)
    # A cache on a disk does without it.
    from lazyload.checkpoint.objects import ObjectRanges

    return ObjectRanges(folder)


def _require_undamaged(folder: Folder, arrays: Records, storage: Storage) -> None:
    # TensorStore takes a while to import, and nothing else here needs it.
    from lazyload.checkpoint.verify import find_damage

    if problems := find_damage(folder, arrays, storage):
        raise CacheError(f"{folder} is damaged: {problems[0]}; call again with force_convert=True")


def through_orbax(folder: Folder, arrays: Records, shardings: Mapping[str, Sharding]) -> dict[str, jax.Array]:
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
    with explained(folder, "the checkpoint"):
        restored = flatten_dict(ocp.PyTreeCheckpointer().restore(os.fspath(folder), args=restore), sep=".")
    return {path: restored[path] for path in arguments}


def _records(folder: Folder, arrays: Records, paths: Iterable[str]) -> dict[str, ArrayRecord]:
    records = {}
    for path in paths:
        with explained(folder, path):
            records[path] = ArrayRecord.from_dict(arrays.get(path, {}))
    return records


class _Reading:
    """Arrays that are being read: batches of chunks, by threads; the last chunk of an array sends it to its devices."""

    def __init__(
        self,
        folder: Folder,
        records: Mapping[str, ArrayRecord],
        shardings: Mapping[str, Sharding],
        reader: "UncompressedReader | CompressedReader",
        verify: bool,
        advance: Advance,
        count: Advance,
    ):
        self._folder = folder
        self._records = records
        self._shardings = shardings
        self._reader = reader
        self._verify = verify
        self._advance = advance
        self._count = count
        self._budget = _Budget(_BYTES_IN_FLIGHT if _are_here(shardings.values()) else _BYTES_ON_THE_WAY)
        self._lock = threading.Lock()
        self._assemblies: dict[str, Assembly] = {}
        self._waiting: dict[str, int] = {}
        self._checksums: dict[str, dict[int, int]] = collections.defaultdict(dict)
        self._arrays: dict[str, jax.Array] = {}
        self._errors: list[BaseException] = []

    def run(self) -> dict[str, jax.Array]:
        """Reads all of them."""
        try:
            with (
                ThreadPoolExecutor(self._reader.threads, thread_name_prefix="lazyload") as pool,
                self._ending_with_errors(),
            ):
                for batch in self._batches():
                    pool.submit(self._read, batch)
        except BaseException as error:
            self._errors.append(error)
            raise
        if self._errors:
            raise self._errors[0]
        return {path: self._arrays[path] for path in self._records}

    def _batches(self) -> Iterator[list[Piece]]:
        """Chunks by batches, in the order in which they lie; waits while too many arrays are under way."""
        memory = HostMemory()
        batch: list[Piece] = []
        held = 0
        for path, record in sorted(self._records.items(), key=lambda item: (item[1].file, item[1].offset)):
            if batch and not self._budget.has(record.nbytes):
                yield batch
                batch, held = [], 0
            self._budget.take(record.nbytes)
            if self._errors:
                return
            assembly = Assembly(record.shape, record.numpy_dtype, self._shardings[path], memory)
            found = [
                Piece(path, number, box, math.prod(cut.stop - cut.start for cut in box) * record.numpy_dtype.itemsize)
                for number, box in enumerate(boxes(record.shape, record.chunks))
            ]
            self._assemblies[path], self._waiting[path] = assembly, len(found)
            if not found:
                self._finish(path)
            for piece in found:
                if batch and held + piece.nbytes > self._reader.batch_bytes:
                    yield batch
                    batch, held = [], 0
                batch.append(piece)
                held += piece.nbytes
        if batch:
            yield batch

    def _read(self, batch: list[Piece]) -> None:
        """A batch of chunks."""
        if self._errors:
            return
        try:
            stretches: list[Stretch] = []
            others = []
            for piece in batch:
                with explained(self._folder, piece.path):
                    found = self._stretches(piece)
                    stretches += found or ()
                    others += [piece] if found is None else []
            with explained(self._folder, batch[0].path):
                self._reader.expect(stretches, [(piece, self._records[piece.path]) for piece in others])
            self._reader.fill(stretches)
            self._count(sum(len(stretch.memory) for stretch in stretches))
            for piece in others:
                with explained(self._folder, piece.path):
                    self._read_strips(piece)
            for piece in batch:
                self._advance(piece.nbytes)
                with self._lock:
                    self._waiting[piece.path] -= 1
                    is_last = not self._waiting[piece.path]
                if is_last:
                    self._finish(piece.path)
        except BaseException as error:
            self._errors.append(error)
            self._budget.lift()

    @contextmanager
    def _ending_with_errors(self) -> Iterator[None]:
        """Lets threads do nothing more once the body raises."""
        try:
            yield
        except BaseException as error:
            self._errors.append(error)
            raise

    def _stretches(self, piece: Piece) -> list[Stretch] | None:
        """Which bytes of a chunk are to be read, and where they go; None where that is not so simple."""
        if self._verify:
            return None
        return self._reader.stretches(piece, self._records[piece.path], self._assemblies[piece.path])

    def _read_strips(self, piece: Piece) -> None:
        """Reads a chunk by way of other memory."""
        record, assembly = self._records[piece.path], self._assemblies[piece.path]
        checksum = 0
        for box, values in self._reader.strips(piece, record, None if self._verify else assembly):
            if self._verify:
                checksum = chunk_checksum(np.ascontiguousarray(values), checksum)
            assembly.put(box, values)
            self._count(values.nbytes)
        if self._verify:
            self._checksums[piece.path][piece.number] = checksum

    def _finish(self, path: str) -> None:
        """An array whose chunks have all been read, to its devices."""
        record = self._records[path]
        with explained(self._folder, path):
            if self._verify:
                checksums = self._checksums.pop(path, {})
                found = combined(checksums[number] for number in sorted(checksums))
                if found != record.checksum:
                    raise ValueError(f"is {found}, was written as {record.checksum}")
            array = self._assemblies.pop(path).array()
            # Until then it keeps its memory here, too, where devices have their own.
            array.block_until_ready()
        self._arrays[path] = array
        self._budget.put_back(record.nbytes)


def _are_here(shardings: Iterable[Sharding]) -> bool:
    """Whether devices take the host's memory over, as CPUs do."""
    devices: set[Any] = set().union(*(sharding.addressable_devices for sharding in shardings))
    return all(device.platform == "cpu" for device in devices)


class _Budget:
    """Bytes that may be in use at the same time; a single larger piece is let through alone."""

    def __init__(self, nbytes: int):
        self._left = self._all = nbytes
        self._changed = threading.Condition()

    def has(self, nbytes: int) -> bool:
        """Whether so many bytes are free now."""
        with self._changed:
            return self._left >= min(nbytes, self._all)

    def take(self, nbytes: int) -> None:
        """Waits until so many bytes are free, and keeps them."""
        share = min(nbytes, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= share)
            self._left -= share

    def put_back(self, nbytes: int) -> None:
        """Lets go of bytes that were taken together."""
        with self._changed:
            self._left += min(nbytes, self._all)
            self._changed.notify_all()

    def lift(self) -> None:
        """Lets everybody through from now on."""
        with self._changed:
            self._left = 1 << 62
            self._changed.notify_all()
