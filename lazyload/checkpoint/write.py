"""Writing: lazy tensors stream, chunk by chunk, into a folder that is an ordinary Orbax checkpoint.

A few threads each read one chunk and hand it to TensorStore before they take the next, which waits while too many bytes
are still being written: memory holds a few chunks whatever the size of the arrays. Neither JAX nor Orbax is needed, and
nothing is registered with them.
"""

import collections
import contextlib
import errno
import logging
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tensorstore as ts

from lazyload.checkpoint.chunks import boxes, choose_chunks
from lazyload.checkpoint.completeness import WrittenFiles, files_below
from lazyload.checkpoint.orbax_files import write_composite_file, write_orbax_files
from lazyload.checkpoint.order import in_order_of_arrival
from lazyload.checkpoint.records import ArrayRecord, chunk_checksum, combined
from lazyload.checkpoint.store import context, new_array_spec
from lazyload.errors import CacheError, LazyLoadError
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box
from lazyload.progress import Advance
from lazyload.storage import Storage

logger = logging.getLogger("lazyload")

_DISK_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_THREADS = min(4, max(2, os.cpu_count() or 2))

_BYTES_IN_FLIGHT = 64 << 20
"""Of chunks that are being written while the next ones are read; a single larger one is let through alone."""

_LARGE_ARRAY_BYTES = 1 << 20
_SECONDS_BETWEEN_LOOKS = 0.1
_LARGE_FILE_BYTES = 1 << 20
"""What is smaller is left for the end, when the disk's journal takes all of it at once."""


def write(
    folder: Path,
    tensors: Mapping[str, LazyTensor],
    storage: Storage,
    *,
    metadata: Mapping[str, Any] | None = None,
    scalars: Mapping[str, int] | None = None,
    item: str = "",
    advance: Advance = lambda nbytes: None,
) -> dict[str, dict[str, Any]]:
    """Writes a checkpoint.

    Args:
        folder: An empty folder; becomes an Orbax checkpoint.
        tensors: The arrays, by dotted path: `a.b.c` is the leaf `tree["a"]["b"]["c"]`.
        storage: How to store them; every flag concrete.
        metadata: Orbax's custom metadata.
        scalars: Whole numbers stored beside the arrays, by dotted path.
        item: Where the folder is to be a composite checkpoint, with the arrays as its only item: the item's name.
        advance: Called with the number of bytes of every chunk that is handed on to be written, from any thread.

    Returns:
        What there is to know of each array, for the manifest (`ArrayRecord.as_dict`).

    Raises:
        CacheError: The disk is full or cannot be written to, or what was written has been removed or changed meanwhile.
    """
    chunks = {
        path: choose_chunks(lazy.shape, lazy.dtype.itemsize, lazy.split_order, storage.chunk_bytes or 1)
        for path, lazy in tensors.items()
    }
    checksums: dict[str, dict[int, int]] = collections.defaultdict(dict)
    overflowed: dict[str, dict[int, int]] = collections.defaultdict(dict)
    arrays = folder / item
    files = WrittenFiles(arrays, storage)
    with _explained(folder):
        arrays.mkdir(exist_ok=True)
        stores = _create(arrays, tensors, chunks, storage)
        _write_scalars(arrays, scalars or {}, storage)

    def write_chunk(path: str, number: int, box: Box) -> None:
        chunk = writes.array([cut.stop - cut.start for cut in box], tensors[path].dtype)
        overflowed[path][number] = tensors[path].read_into(chunk, box)
        checksums[path][number] = chunk_checksum(chunk)
        with _explained(folder):
            # Its memory is used again only when TensorStore, too, has let go of it.
            write = stores[path][box].write(chunk, can_reference_source_data_indefinitely=True)
            write.commit.add_done_callback(lambda _: files.note(path))
            writes.add(write, chunk.nbytes)
        advance(chunk.nbytes)

    logger.debug("writing %d arrays to %s", len(tensors), arrays)
    work = in_order_of_arrival(
        ((path, *item) for path, lazy in tensors.items() for item in enumerate(boxes(lazy.shape, chunks[path]))),
        tensors,
    )
    largest = max((math.prod(chunks[path]) * lazy.dtype.itemsize for path, lazy in tensors.items()), default=0)
    with _sent_to_disk_meanwhile(folder), _Writes(folder, _BYTES_IN_FLIGHT, largest) as writes:
        _run(write_chunk, iter(work))
    records = {
        path: ArrayRecord(
            lazy.shape,
            lazy.dtype.name,
            chunks[path],
            lazy.nbytes,
            combined(checksums[path][number] for number in sorted(checksums[path])),
        )
        for path, lazy in tensors.items()
    }
    with _explained(folder):
        write_orbax_files(arrays, records, scalars or {}, storage, metadata or {})
        if item:
            write_composite_file(folder, item, metadata or {})
        files.require_complete(stores, records)
        _synchronise(folder)
    _tell_overflows({path: sum(counts.values()) for path, counts in overflowed.items()}, tensors)
    return {path: record.as_dict() for path, record in records.items()}


def _tell_overflows(counts: Mapping[str, int], tensors: Mapping[str, LazyTensor]) -> None:
    """Warns of values that are infinite in float16 and were not before."""
    some = [f"{count} of {path} ({', '.join(tensors[path].sources[:2])})" for path, count in counts.items() if count]
    if some:
        shown = ", ".join(some[:20]) + (f" and of {len(some) - 20} more arrays" if len(some) > 20 else "")
        logger.warning("values too large for float16 have become infinite: %s; use dtype='bfloat16'", shown)


def _create(
    folder: Path, tensors: Mapping[str, LazyTensor], chunks: Mapping[str, tuple[int, ...]], storage: Storage
) -> dict[str, ts.TensorStore]:
    shared = context()
    specs = {
        path: new_array_spec(folder, path, storage, shape=lazy.shape, dtype=lazy.dtype, chunks=chunks[path])
        for path, lazy in tensors.items()
    }
    futures = {path: ts.open(spec, context=shared) for path, spec in specs.items()}
    with _settled(futures.values()):
        return {path: future.result() for path, future in futures.items()}


def _write_scalars(folder: Path, scalars: Mapping[str, int], storage: Storage) -> None:
    for path, value in scalars.items():
        spec = new_array_spec(folder, path, storage, shape=(), dtype=np.dtype(np.int64), chunks=())
        opening = ts.open(spec, context=context())
        with _settled([opening]):
            writing = opening.result().write(np.int64(value))
        with _settled([writing.commit]):
            writing.result()


@contextlib.contextmanager
def _settled(futures: Iterable["ts.Future[Any]"]) -> Iterator[None]:
    """Waits for what TensorStore is at, also after an error: it would make a folder again that has been removed."""
    try:
        yield
    finally:
        for future in futures:
            future.exception()


def _run(task: Callable[..., None], work: Iterator[tuple[Any, ...]]) -> None:
    """Calls the task with every piece of work, a few at a time; stops at the first error."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="lazyload") as pool:
        running: set[Future[None]] = set()
        try:
            for arguments in work:
                if len(running) >= _THREADS:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                running.add(pool.submit(task, *arguments))
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Loan:
    """Memory that is in use for as long as an array made of it, or a view of one, is referred to."""

    def __init__(self, memory: np.ndarray):
        self.__array_interface__ = memory.__array_interface__


class _Writes:
    """Writes that TensorStore is at, and the memory that they are from: so many bytes, used again and again.

    Leaving the context waits for all, also after an error, so that nothing is written any more.
    """

    def __init__(self, folder: Path, limit: int, largest: int):
        """`largest` is the size of the largest array."""
        self._folder = folder
        self._limit = limit
        self._largest = largest
        self._lock = threading.Lock()
        self._pending: collections.deque[tuple[ts.WriteFutures, int]] = collections.deque()
        self._nbytes = 0
        # What puts memory back runs wherever the last reference is dropped, also under the lock.
        self._free: collections.deque[np.ndarray] = collections.deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                with _explained(self._folder):
                    self._wait_until(0)
        finally:
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
        self._wait_until(self._limit)

    def _wait_until(self, limit: int) -> None:
        while True:
            with self._lock:
                if self._nbytes <= limit:
                    return
                write, held = self._pending.popleft()
                self._nbytes -= held
            with _settled([write.commit]):
                write.commit.result()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turns what TensorStore or the operating system say of a folder that the body writes to into an error of ours."""
    try:
        yield
    except LazyLoadError:
        raise
    # TensorStore's errors are ValueErrors, or NotImplementedErrors of its own choosing.
    except (OSError, ValueError, NotImplementedError) as error:
        raise _write_error(folder, str(error)) from error


def _write_error(folder: Path, message: str) -> CacheError:
    """What TensorStore or the operating system say about a folder that cannot be written to, with what to do."""
    if any(words in message for words in _DISK_FULL):
        return CacheError(
            f"{folder}: the disk is full; make space (`lazyload cache ls`, `lazyload cache rm`) or give another "
            "cache_dir"
        )
    return CacheError(f"{folder} cannot be written to: {message.splitlines()[0][-200:]}; give another cache_dir")


@contextlib.contextmanager
def _sent_to_disk_meanwhile(folder: Path) -> Iterator[None]:
    """Synchronises large files as they appear while the body writes more of them, so that little is left for the end.

    Every file is synchronised once more at the end; but what goes wrong is told only once, so it is raised here, too.
    """
    finished = threading.Event()

    def follow() -> None:
        known: set[str] = set()
        while not finished.wait(_SECONDS_BETWEEN_LOOKS):
            for path in files_below(folder):
                if path not in known and not finished.is_set():
                    known.add(path)
                    # Until it is complete, TensorStore gives a file another name.
                    with contextlib.suppress(FileNotFoundError):
                        if os.path.getsize(path) >= _LARGE_FILE_BYTES:
                            _synchronise_one(path)

    with ThreadPoolExecutor(1, thread_name_prefix="lazyload-sync") as pool:
        following = pool.submit(follow)
        try:
            yield
        finally:
            finished.set()
        with _explained(folder):
            following.result()


def _synchronise(folder: Path) -> None:
    """Makes sure that everything below a folder is on the disk, before a manifest says that it is."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="lazyload-sync") as pool:
        collections.deque(pool.map(_synchronise_one, files_below(folder)), maxlen=0)
    for parent, _, _ in os.walk(folder):
        _synchronise_one(parent)


def _synchronise_one(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)
