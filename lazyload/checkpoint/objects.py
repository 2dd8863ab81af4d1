"""Uncompressed chunks in a bucket: written in objects of whole chunks, and read in ranges of them, without TensorStore.

Nothing is staged on a disk: an object is put together in memory, of the chunks that belong to it, and written once all
of these are there. Chunks arrive in about the order in which they lie, so that few objects are under way at a time; and
as no two processes write to one object, several may write a checkpoint together.
"""

import contextlib
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from lazyload.bucket.bucket import MOST_AT_ONCE
from lazyload.bucket.path import BucketPath
from lazyload.checkpoint.ocdbt import data_file, database_files
from lazyload.checkpoint.ranges import data_file_sizes, file_of, range_of
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.uncompressed import database, padded
from lazyload.checkpoint.zarr import encoded_metadata, metadata_key
from lazyload.errors import CacheError
from lazyload.layouts.scratch import Scratch
from lazyload.layouts.source import Box
from lazyload.storage import Storage

_RANGE_BYTES = 16 << 20
_GAP_BYTES = 256 << 10
"""To read what lies between takes no longer than another request."""


class ObjectRanges:
    """The objects of a checkpoint, to be read; see `lazyload.checkpoint.uncompressed.Ranges`."""

    threads = MOST_AT_ONCE
    batch_bytes = _RANGE_BYTES
    strip_bytes = _RANGE_BYTES

    def __init__(self, folder: BucketPath):
        """`folder` is that of the arrays."""
        self._folder = folder
        self._expected = threading.local()

    def read(self, file: str, offset: int, parts: Sequence[memoryview]) -> None:
        """Fills memory, by one request for so many bytes as one is good for, or from what was expected."""
        for run in _of_requests(parts):
            total = sum(map(len, run))
            content = memoryview(self._content(file, offset, offset + total))
            for part in run:
                part[:], content = content[: len(part)], content[len(part) :]
            offset += total

    def expect(self, spans: Sequence[tuple[str, int, int]]) -> None:
        """Reads what lies together in one request."""
        runs: list[tuple[str, int, int]] = []
        for file, start, stop in sorted(spans):
            before, first, end = runs[-1] if runs else ("", 0, 0)
            if file == before and start - end <= _GAP_BYTES and stop - first <= _RANGE_BYTES:
                runs[-1] = file, first, stop
            else:
                runs.append((file, start, stop))
        shared = [run for run in runs if run not in spans]
        self._expected.contents = [(run, self._fetch(*run)) for run in shared]

    def _content(self, file: str, start: int, stop: int) -> bytes | memoryview:
        for (expected, first, end), content in getattr(self._expected, "contents", ()):
            if file == expected and first <= start and stop <= end:
                return memoryview(content)[start - first : stop - first]
        return self._fetch(file, start, stop)

    def _fetch(self, file: str, start: int, stop: int) -> bytes:
        return self._folder.bucket.read((self._folder / file).key, start, stop)

    def require_size(self, file: str, nbytes: int) -> None:
        """Nothing: the sizes of all objects were compared when the entry was found."""

    def close(self) -> None:
        """Nothing is open."""


def _of_requests(parts: Sequence[memoryview]) -> list[list[memoryview]]:
    """Memory by the requests that fill it."""
    runs: list[list[memoryview]] = []
    room = 0
    for part in parts:
        start = 0
        while start < len(part):
            if not room:
                runs.append([])
                room = _RANGE_BYTES
            piece = part[start : start + room]
            runs[-1].append(piece)
            start += len(piece)
            room -= len(piece)
    return runs


class ObjectWriter:
    """Writes uncompressed chunks to a bucket, for as long as the context lasts."""

    def __init__(
        self, folder: BucketPath, records: Mapping[str, ArrayRecord], storage: Storage, *, joins: bool = False
    ):
        """Writes nothing yet.

        Args:
            folder: Where the arrays go.
            records: What they will be, with their places.
            storage: How they are stored.
            joins: Whether another process completes them, and removes them if it does not.
        """
        self._folder = folder
        self._records = records
        self._storage = storage
        self._joins = joins
        self._scratch = Scratch()
        self._lock = threading.Lock()
        self._sizes = data_file_sizes(records) if storage.ocdbt else {}
        self._missing: Counter[str] = Counter()
        self._objects: dict[str, bytearray] = {}
        self._written: dict[str, int] = {}
        for record in records.values() if storage.ocdbt else ():
            for number in range(math.prod(record.grid)):
                self._missing[file_of(record, number)[0]] += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._objects.clear()
        if error is not None and self._joins:
            # The other process may have removed all that there was, and looks for no more.
            with contextlib.suppress(CacheError):
                self._folder.bucket.remove((self._folder / file).key for file in self._written)

    def array(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary content, to be filled and written from; valid until the thread's next one."""
        return self._scratch.array(shape, dtype)

    def put(self, path: str, box: Box, chunk: np.ndarray) -> None:
        """Writes a chunk, or keeps it until all of its object is there.

        Raises:
            CacheError: The bucket cannot be written to.
        """
        record = self._records[path]
        file, offset = range_of(path, record, box, self._storage)
        content = padded(chunk, record.chunks).reshape(-1).view(np.uint8).data
        if self._storage.ocdbt and self._sizes[file] != len(content):
            with self._lock:
                if file not in self._objects:
                    self._objects[file] = bytearray(self._sizes[file])
                whole = self._objects[file]
            whole[offset : offset + len(content)] = content
            with self._lock:
                self._missing[file] -= 1
                if self._missing[file]:
                    return
                del self._objects[file]
            content = memoryview(whole)
        self._write(file, content)

    def finish(self) -> None:
        """Writes what is around the chunks, and makes sure that all that has been written is there, as it was.

        Raises:
            CacheError: The bucket cannot be written to, or something has been removed or changed.
        """
        bucket = self._folder.bucket
        if self._storage.ocdbt:
            for file, content in database_files(database(self._records, self._storage), data_file(0)).items():
                self._write(file, content)
            self.require_written()
            return
        metadata = {
            f"{path}/{metadata_key(self._storage)}": encoded_metadata(
                record.shape, record.numpy_dtype, record.chunks, self._storage
            )
            for path, record in self._records.items()
        }
        for _ in bucket.at_once(lambda name: self._write(name, metadata[name]), metadata):
            pass
        self.require_written()

    def _write(self, file: str, content: bytes | memoryview) -> None:
        (self._folder / file).write_bytes(content)
        with self._lock:
            self._written[file] = len(content)

    def require_written(self) -> None:
        """Makes sure that all that this process has written is there, as it was.

        Raises:
            CacheError: Something has been removed or changed, or the bucket cannot be looked into.
        """
        found = self._folder.bucket.below(f"{self._folder.key}/")
        for file, size in self._written.items():
            if file not in found:
                raise self._changed(f"{file} has been removed")
            if found[file].size != size:
                raise self._changed(f"{file} has {found[file].size} bytes, was written with {size}")

    def _changed(self, what: str) -> CacheError:
        return CacheError(
            f"{self._folder} was changed while it was written ({what}); call again, and see who removes objects there"
        )
