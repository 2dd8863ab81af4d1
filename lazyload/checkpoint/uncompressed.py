"""Uncompressed chunks: read from where they lie, and written there on a disk, without TensorStore.

TensorStore copies what it writes, and what it reads, through fresh memory of its own, which takes three times as long
as the bytes; and it reads a chunk as a whole, whoever needs how much of it.
"""

import itertools
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from lazyload.bucket.path import Folder
from lazyload.checkpoint.damage import explained
from lazyload.checkpoint.files import OpenFiles, reserve, write_at
from lazyload.checkpoint.ocdbt import Reference, data_file, database_files
from lazyload.checkpoint.pieces import Piece, Stretch, start_of_stretch
from lazyload.checkpoint.ranges import data_file_sizes, file_of, range_of
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.zarr import chunk_key, encoded_metadata, metadata_key
from lazyload.errors import CacheError
from lazyload.layouts.scratch import Scratch
from lazyload.layouts.source import Box
from lazyload.storage import Storage

if TYPE_CHECKING:
    from lazyload.checkpoint.assembly import Assembly


_GAP_BYTES = 64
"""Between what is read in one call, at most."""


class Ranges(Protocol):
    """The files of a checkpoint that is read: on a disk (`FileRanges`) or in a bucket (`ObjectRanges`).

    Attributes:
        threads: How many may read at a time.
        batch_bytes: Of chunks that one reads at a time, unless a single one is larger.
        strip_bytes: What is read at a time where it goes to several places.
    """

    threads: int
    batch_bytes: int
    strip_bytes: int

    def read(self, file: str, offset: int, parts: Sequence[memoryview]) -> None:
        """Fills memory from a position of a file on, one part after another.

        Raises:
            ValueError: The file ends before.
            OSError: It cannot be read.
        """

    def expect(self, spans: Sequence[tuple[str, int, int]]) -> None:
        """Is told which bytes this thread is about to read: files, from where, and to where.

        Raises:
            ValueError: A file ends before.
            OSError: One cannot be read.
        """

    def require_size(self, file: str, nbytes: int) -> None:
        """Makes sure that a file has its size.

        Raises:
            ValueError: It has not.
            OSError: It cannot be looked at.
        """

    def close(self) -> None:
        """Ends it."""


class UncompressedReader:
    """Reads uncompressed chunks, for as long as the context lasts.

    Attributes:
        threads: How many may read at a time.
        batch_bytes: Of chunks that one reads at a time, unless a single one is larger.
    """

    threads: int
    batch_bytes: int

    def __init__(self, folder: Folder, storage: Storage, files: Ranges):
        """`folder` is that of the arrays, and `files` are its files."""
        self.threads, self.batch_bytes = files.threads, files.batch_bytes
        self._folder = folder
        self._storage = storage
        self._files = files
        self._scratch = Scratch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def stretches(self, piece: Piece, record: ArrayRecord, assembly: "Assembly") -> list[Stretch] | None:
        """Where a chunk's bytes go; None unless all that is needed of it are stretches in the file and in memory."""
        file, offset = range_of(piece.path, record, piece.box, self._storage)
        self._require_whole(file, record)
        found = []
        for view, where in assembly.parts(piece.box):
            start = start_of_stretch(where, record.chunks)
            if start is None or not view.flags.c_contiguous:
                return None
            memory = view.reshape(-1).view(np.uint8).data
            found.append(Stretch(piece.path, file, offset + start * record.numpy_dtype.itemsize, memory))
        return found

    def strips(self, piece: Piece, record: ArrayRecord, wanted: "Assembly | None") -> Iterator[tuple[Box, np.ndarray]]:
        """What is wanted of a chunk, or all of it, in pieces that are valid until the next one."""
        file, offset = range_of(piece.path, record, piece.box, self._storage)
        self._require_whole(file, record)
        dtype, stored = record.numpy_dtype, record.chunks
        axis = next((number for number, size in enumerate(stored) if size > 1), len(stored))
        row_shape = stored[axis + 1 :]
        row_bytes = math.prod(row_shape) * dtype.itemsize
        count = piece.box[axis].stop - piece.box[axis].start if axis < len(stored) else 1
        step = max(1, self._files.strip_bytes // max(1, row_bytes))
        trimmed = tuple(slice(0, cut.stop - cut.start) for cut in piece.box[axis + 1 :])
        needed = [slice(0, count)]
        if wanted is not None:
            needed = [(*where, slice(0, 1))[axis] for _, where in wanted.parts(piece.box)]
        for first in range(0, count, step):
            last = min(first + step, count)
            if not any(rows.start < last and first < rows.stop for rows in needed):
                continue
            box = piece.box
            if axis < len(stored):
                low = box[axis].start
                box = (*box[:axis], slice(low + first, low + last), *box[axis + 1 :])
            rows = self._scratch.array((last - first, *row_shape), dtype)
            self._files.read(file, offset + first * row_bytes, [rows.reshape(-1).view(np.uint8).data])
            yield box, rows[(slice(None), *trimmed)].reshape([cut.stop - cut.start for cut in box])

    def expect(self, stretches: Iterable[Stretch], pieces: Iterable[tuple[Piece, ArrayRecord]]) -> None:
        """Is told what this thread is about to ask `fill` and `strips` for."""
        spans = [(each.file, each.offset, each.offset + len(each.memory)) for each in stretches]
        for piece, record in pieces:
            file, offset = range_of(piece.path, record, piece.box, self._storage)
            spans.append((file, offset, offset + record.chunk_nbytes))
        self._files.expect(spans)

    def fill(self, stretches: Iterable[Stretch]) -> None:
        """Reads stretches, neighbours in one call."""
        ordered = sorted(stretches, key=lambda stretch: (stretch.file, stretch.offset))
        for run in _runs(ordered):
            try:
                self._fill(run)
            except (OSError, ValueError):
                # Whose bytes they are that cannot be read is not known of several.
                for stretch in run:
                    with explained(self._folder, stretch.path):
                        self._fill([stretch])
                raise

    def _fill(self, run: Sequence[Stretch]) -> None:
        self._files.read(run[0].file, run[0].offset, [stretch.memory for stretch in run])

    def _require_whole(self, file: str, record: ArrayRecord) -> None:
        """Makes sure that a file which is a chunk has its size."""
        if not self._storage.ocdbt:
            self._files.require_size(file, record.chunk_nbytes)


def _runs(stretches: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    """Sorted stretches by those that follow each other in a file, up to a gap that arrays are aligned by."""
    run: list[Stretch] = []
    end = 0
    for stretch in stretches:
        gap = stretch.offset - end
        if run and (stretch.file != run[0].file or not 0 <= gap <= _GAP_BYTES):
            yield run
            run = []
        if run and gap:
            run.append(Stretch(stretch.path, stretch.file, end, memoryview(bytearray(gap))))
        run.append(stretch)
        end = stretch.offset + len(stretch.memory)
    if run:
        yield run


class UncompressedWriter:
    """Writes uncompressed chunks, for as long as the context lasts."""

    def __init__(self, folder: Path, records: Mapping[str, ArrayRecord], storage: Storage, *, joins: bool = False):
        """Makes the files that chunks are written to.

        Args:
            folder: Where the arrays go, an empty folder.
            records: What they will be, with their places.
            storage: How they are stored.
            joins: Whether another process has prepared the folder, and completes it.

        Raises:
            OSError: The folder cannot be written to.
        """
        self._folder = folder
        self._records = records
        self._storage = storage
        self._scratch = Scratch()
        self._files = OpenFiles(folder, os.O_WRONLY | os.O_CREAT)
        self._lock = threading.Lock()
        # Of files of single chunks: how each was left, by array. Of data files: where what has been written ends.
        # Of either, how much of it is not on the disk yet.
        self._complete: dict[str, dict[str, os.stat_result]] = {path: {} for path in records}
        self._dirty: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        if not joins:
            self._make_places()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    def _make_places(self) -> None:
        if self._storage.ocdbt:
            (self._folder / "d").mkdir()
            for file, nbytes in data_file_sizes(self._records).items():
                reserve(self._folder / file, nbytes)
            return
        for path, record in self._records.items():
            (self._folder / path).mkdir()
            content = encoded_metadata(record.shape, record.numpy_dtype, record.chunks, self._storage)
            (self._folder / path / metadata_key(self._storage)).write_bytes(content)

    def array(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary content, to be filled and written from; valid until the thread's next one."""
        return self._scratch.array(shape, dtype)

    def put(self, path: str, box: Box, chunk: np.ndarray) -> None:
        """Writes a chunk.

        Args:
            path: The array's.
            box: Which part of it the chunk is.
            chunk: C-contiguous, without padding.

        Raises:
            OSError: The folder cannot be written to, or has been removed.
        """
        record = self._records[path]
        file, offset = range_of(path, record, box, self._storage)
        content = padded(chunk, record.chunks).reshape(-1).view(np.uint8).data
        if self._storage.ocdbt:
            self._require_untruncated(file)
            write_at(self._files.descriptor(file), offset, content)
            with self._lock:
                self._dirty[file] = self._dirty.get(file, 0) + len(content)
                self._ends[file] = max(self._ends.get(file, 0), offset + len(content))
            return
        descriptor = self._new_file(path, file)
        try:
            write_at(descriptor, 0, content)
            with self._lock:
                self._complete[path][file] = os.fstat(descriptor)
                self._dirty[file] = len(content)
        finally:
            os.close(descriptor)

    def _new_file(self, path: str, file: str) -> int:
        """A file of the folder; only what lies between it and the array's folder is made."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with suppress(FileNotFoundError):
            return os.open(self._folder / file, flags, 0o666)
        parent = Path(path)
        for step in Path(file).relative_to(path).parts[:-1]:
            parent /= step
            with suppress(FileExistsError):
                (self._folder / parent).mkdir()
        return os.open(self._folder / file, flags, 0o666)

    def worth_synchronising(self, least: int) -> list[str]:
        """The files of which so many bytes have been written since they were named here."""
        with self._lock:
            found = [file for file, nbytes in self._dirty.items() if nbytes >= least]
            for file in found:
                del self._dirty[file]
        return [os.path.join(self._folder, file) for file in found]

    def finish(self) -> None:
        """Makes sure that all that has been written is there, as it was, and completes it.

        Raises:
            CacheError: Something has been removed or changed.
            OSError: The folder cannot be written to.
        """
        self.require_written()
        if self._storage.ocdbt:
            for file, content in database_files(database(self._records, self._storage), data_file(0)).items():
                (self._folder / file).write_bytes(content)

    def require_written(self) -> None:
        """Makes sure that all that this process has written is there, as it was.

        Raises:
            CacheError: Something has been removed or changed.
        """
        if self._storage.ocdbt:
            self._require_data_files()
            return
        for path, files in self._complete.items():
            gone = sum(not _is_there(self._folder / file, written) for file, written in files.items())
            if gone or not (self._folder / path / metadata_key(self._storage)).exists():
                raise self._changed(f"{gone or 'the metadata'} of the chunks of {path} have been removed")

    def _require_untruncated(self, file: str) -> None:
        """Makes sure that a data file has not become shorter; what is written further on would make it long again."""
        with self._lock:
            end = self._ends.get(file, 0)
        found = os.fstat(self._files.descriptor(file)).st_size
        if found < end:
            raise self._changed(f"{file} has {found} bytes, was written with {end}")

    def _require_data_files(self) -> None:
        for file in self._ends:
            self._require_untruncated(file)
            if not _is_there(self._folder / file, os.fstat(self._files.descriptor(file))):
                raise self._changed(f"{file} has been removed")

    def _changed(self, what: str) -> CacheError:
        return CacheError(
            f"{self._folder} was changed while it was written ({what}); call again, and see who removes files there"
        )


def database(records: Mapping[str, ArrayRecord], storage: Storage) -> dict[bytes, bytes | Reference]:
    """Keys and values of arrays in OCDBT, as zarr has them."""
    values: dict[bytes, bytes | Reference] = {}
    for path, record in records.items():
        metadata = encoded_metadata(record.shape, record.numpy_dtype, record.chunks, storage)
        values[f"{path}/{metadata_key(storage)}".encode()] = metadata
        for number, numbers in enumerate(itertools.product(*map(range, record.grid))):
            key = f"{path}/{chunk_key(numbers, storage)}"
            values[key.encode()] = Reference(*file_of(record, number), record.chunk_nbytes)
    return values


def _is_there(path: Path, written: os.stat_result) -> bool:
    """Whether a file is the one that was written, in the size that it had."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, written) and found.st_size == written.st_size


def padded(chunk: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A chunk as it is stored: at the array's edge with zeros after it."""
    if chunk.shape == tuple(shape):
        return chunk
    stored = np.zeros(shape, chunk.dtype)
    stored[tuple(slice(0, size) for size in chunk.shape)] = chunk
    return stored
