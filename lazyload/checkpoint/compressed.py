"""Compressed chunks: TensorStore encodes, writes, reads and decodes them.

Writes go on while the next chunks are read, up to a number of bytes, from memory that is used again and again.
"""

import collections
import contextlib
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tensorstore as ts

from lazyload.bucket.path import Folder, kvstore
from lazyload.checkpoint.completeness import WrittenFiles, files_below
from lazyload.checkpoint.pieces import Piece, Stretch
from lazyload.checkpoint.ranges import range_of
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.store import array_spec, context, new_array_spec
from lazyload.layouts.scratch import Scratch
from lazyload.layouts.source import Box
from lazyload.storage import Storage

if TYPE_CHECKING:
    from lazyload.checkpoint.assembly import Assembly

_BYTES_IN_FLIGHT = 64 << 20
"""Of chunks that are being written while the next ones are read; a single larger one is let through alone."""

_LARGE_ARRAY_BYTES = 1 << 20

_SHARE = "ocdbt.process_"
"""How the folders of databases begin that Orbax has processes write."""


class CompressedReader:
    """Reads compressed chunks, for as long as the context lasts.

    Attributes:
        threads: How many may read at a time.
        batch_bytes: Of chunks that one reads at a time, unless a single one is larger.
    """

    threads = min(16, max(4, os.cpu_count() or 4))
    batch_bytes = 8 << 20

    def __init__(self, folder: Folder, storage: Storage):
        """`folder` is that of the arrays."""
        self._folder = folder
        self._storage = storage
        self._context = context()
        self._scratch = Scratch()
        self._stores: dict[str, ts.TensorStore] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stores.clear()

    def stretches(self, piece: Piece, record: ArrayRecord, assembly: "Assembly") -> None:
        """None: of a compressed chunk nothing can be read in part."""

    def strips(self, piece: Piece, record: ArrayRecord, wanted: "Assembly | None") -> Iterator[tuple[Box, np.ndarray]]:
        """A chunk, where any of it is wanted; valid until the thread's next one."""
        if wanted is None or any(True for _ in wanted.parts(piece.box)):
            chunk = self._scratch.array([cut.stop - cut.start for cut in piece.box], record.numpy_dtype)
            # TensorStore fills memory that it is given, where `read` would take fresh memory for every chunk.
            ts.array(chunk).write(self._store(piece.path)[piece.box]).result()
            yield piece.box, chunk

    def expect(self, stretches: Iterable[Stretch], pieces: Iterable[tuple[Piece, ArrayRecord]]) -> None:
        """Nothing: TensorStore reads a chunk when it is asked for."""

    def fill(self, stretches: Iterable[Stretch]) -> None:
        """Nothing has been put off."""

    def _store(self, path: str) -> ts.TensorStore:
        if path not in self._stores:
            spec = array_spec(self._folder, path, self._storage)
            self._stores[path] = ts.open(spec, context=self._context, read=True, open=True).result()
        return self._stores[path]


class CompressedWriter:
    """Writes chunks that are compressed; leaving the context waits for all, so that nothing is written any more."""

    def __init__(self, folder: Folder, records: Mapping[str, ArrayRecord], storage: Storage, share: int = 0):
        """Makes the arrays.

        Args:
            folder: Where they go, an empty folder.
            records: What they will be.
            storage: How they are stored.
            share: What other processes write is put together in the end by that with the first share, 0: of OCDBT, each
                writes a database of its own, in a folder of Orbax's name for it; else they write files beside each
                other.

        Raises:
            OSError: The folder cannot be written to; TensorStore says so by a `ValueError`.
        """
        self._joins = share > 0
        if self._joins and storage.ocdbt:
            folder /= f"{_SHARE}{share}"
            if isinstance(folder, Path):
                folder.mkdir()
        self._folder = folder
        self._records = records
        self._storage = storage
        self._chunks: list[str] = []
        self._files = WrittenFiles(folder, storage)
        self._synchronised: set[str] = set()
        self._stores = _create(folder, records, storage, joins=self._joins and not storage.ocdbt)
        largest = max((record.chunk_nbytes for record in records.values()), default=0)
        self._writes = _Writes(_BYTES_IN_FLIGHT, largest)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writes.settle()
        if error is not None and self._joins:
            # The other process may have removed all that there was, and looks for no more.
            with contextlib.suppress(OSError):
                self._remove()

    def array(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary content, to be filled and written from."""
        return self._writes.array(shape, dtype)

    def put(self, path: str, box: Box, chunk: np.ndarray) -> None:
        """Hands a chunk on to be written, and waits while too many are."""
        self._chunks.append(range_of(path, self._records[path], box, self._storage)[0])
        # Its memory is used again only when TensorStore, too, has let go of it.
        write = self._stores[path][box].write(chunk, can_reference_source_data_indefinitely=True)
        write.commit.add_done_callback(lambda _: self._files.note(path))
        self._writes.add(write, chunk.nbytes)

    def worth_synchronising(self, least: int) -> list[str]:
        """The files of so many bytes that have appeared since this was asked."""
        found: list[str] = []
        if not isinstance(self._folder, Path):
            return found
        for path in self._own_files(self._folder):
            # Until it is complete, TensorStore gives a file another name.
            with contextlib.suppress(FileNotFoundError):
                if path not in self._synchronised and os.path.getsize(path) >= least:
                    self._synchronised.add(path)
                    found.append(path)
        return found

    def _own_files(self, folder: Path) -> Iterable[str]:
        """The files that this process has written, or some of which it will; those of others may lie beside them."""
        if self._joins and not self._storage.ocdbt:
            return [os.path.join(folder, file) for file in self._chunks.copy()]
        return files_below(folder)

    def _remove(self) -> None:
        """Removes what this process has written."""
        if not isinstance(self._folder, Path):
            below = self._folder.bucket.below(f"{self._folder.key}/")
            own = below if self._storage.ocdbt else below.keys() & {*self._chunks}
            self._folder.bucket.remove(f"{self._folder.key}/{name}" for name in own)
            return
        for file in self._own_files(self._folder):
            with contextlib.suppress(FileNotFoundError):
                os.remove(file)
        # TensorStore makes a folder again that has been removed; one in which others have files stays.
        for parent, _, _ in os.walk(self._folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(parent)

    def finish(self) -> None:
        """Puts together what there is, and makes sure that all that has been written is there, as it was.

        Raises:
            CacheError: Something has been removed or changed.
        """
        self._writes.wait_until(0)
        if self._storage.ocdbt:
            _merge(self._folder)
        self._files.require_complete(self._stores, self._records)

    def require_written(self) -> None:
        """Waits for all writes, and makes sure that what this process has written is there, as it was.

        Raises:
            CacheError: Something has been removed or changed.
        """
        self._writes.wait_until(0)
        self._files.require_unchanged()


def _create(
    folder: Folder, records: Mapping[str, ArrayRecord], storage: Storage, *, joins: bool
) -> dict[str, ts.TensorStore]:
    shared = context()
    specs = {
        path: new_array_spec(folder, path, storage, shape=record.shape, dtype=record.numpy_dtype, chunks=record.chunks)
        for path, record in records.items()
    }
    how = {"create": False, "open": True} if joins else {}
    futures = {path: ts.open(spec | how, context=shared) for path, spec in specs.items()}
    with _settled(futures.values()):
        return {path: future.result() for path, future in futures.items()}


def _merge(folder: Folder) -> None:
    """Takes the databases of all shares into the one of the folder; their values stay where they are."""
    names = (
        [path.name for path in folder.iterdir()]
        if isinstance(folder, Path)
        else folder.bucket.children(f"{folder.key}/")[1]
    )
    own = {"driver": "ocdbt", "base": kvstore(folder)}
    shared = context()
    for name in sorted(name for name in names if name.startswith(_SHARE)):
        share = ts.KvStore.open({"driver": "ocdbt", "base": kvstore(folder / name)}, context=shared).result()
        share.experimental_copy_range_to(ts.KvStore.open(own, context=shared).result()).result()


@contextlib.contextmanager
def _settled(futures: Iterable["ts.Future[Any]"]) -> Iterator[None]:
    """Waits for what TensorStore is at, also after an error: it would make a folder again that has been removed."""
    try:
        yield
    finally:
        for future in futures:
            future.exception()


class _Loan:
    """Memory that is in use for as long as an array made of it, or a view of one, is referred to."""

    def __init__(self, memory: np.ndarray):
        self.__array_interface__ = memory.__array_interface__


class _Writes:
    """Writes that TensorStore is at, and the memory that they are from: so many bytes, used again and again."""

    def __init__(self, limit: int, largest: int):
        """`largest` is the size of the largest array."""
        self._limit = limit
        self._largest = largest
        self._lock = threading.Lock()
        self._pending: collections.deque[tuple[ts.WriteFutures, int]] = collections.deque()
        self._nbytes = 0
        # What puts memory back runs wherever the last reference is dropped, also under the lock.
        self._free: collections.deque[np.ndarray] = collections.deque()

    def settle(self) -> None:
        """Waits for what is still pending after an error."""
        for write, _ in self._pending:
            write.commit.exception()

    def array(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array with arbitrary content, to be filled and written from."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _LARGE_ARRAY_BYTES:
            return np.empty(shape, dtype)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(self._largest, np.uint8)
        loan = _Loan(memory)
        weakref.finalize(loan, self._free.append, memory).atexit = False
        return np.asarray(loan)[:nbytes].view(dtype).reshape(shape)

    def add(self, write: ts.WriteFutures, nbytes: int) -> None:
        """Takes note of a write, and waits for the oldest ones while there are too many bytes."""
        held = self._largest if nbytes >= _LARGE_ARRAY_BYTES else nbytes
        with self._lock:
            self._pending.append((write, held))
            self._nbytes += held
        self.wait_until(self._limit)

    def wait_until(self, limit: int) -> None:
        """Waits for the oldest ones until no more than so many bytes are pending."""
        while True:
            with self._lock:
                if self._nbytes <= limit:
                    return
                write, held = self._pending.popleft()
                self._nbytes -= held
            with _settled([write.commit]):
                write.commit.result()
