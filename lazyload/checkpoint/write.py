"""Writing: lazy tensors stream, chunk by chunk, into a folder that is an ordinary Orbax checkpoint.

A few threads each read one chunk, hand it to whoever wants it, too, and write it before they take the next: memory
holds a few chunks whatever the size of the arrays. Neither JAX nor Orbax is needed, and nothing is registered with
them.
"""

import collections
import contextlib
import errno
import logging
import math
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lazyload.bucket.path import Folder
from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.damage import said_by
from lazyload.checkpoint.dealing import dealt
from lazyload.checkpoint.objects import ObjectWriter
from lazyload.checkpoint.orbax_files import write_commit_file, write_composite_file, write_orbax_files
from lazyload.checkpoint.order import in_order_of_arrival
from lazyload.checkpoint.ranges import are_ranges, placed, placed_in_objects
from lazyload.checkpoint.records import ArrayRecord, chunk_checksum, combined, new_record
from lazyload.checkpoint.sharing import Others, Share, Written
from lazyload.checkpoint.uncompressed import UncompressedWriter
from lazyload.errors import CacheError, LazyLoadError
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box
from lazyload.progress import Advance
from lazyload.storage import Storage

if TYPE_CHECKING:
    from lazyload.checkpoint.compressed import CompressedWriter

logger = logging.getLogger("lazyload")

_DISK_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_THREADS = min(8, max(2, os.cpu_count() or 2))

_THREADS_TO_A_BUCKET = 16
"""What is slow there is to wait for an answer."""


_SECONDS_BETWEEN_LOOKS = 0.1
_LARGE_BYTES = 32 << 20
"""Of a file what is less is left for the end, when the disk's journal takes all of it at once."""

Deliver = Callable[[str, Box, np.ndarray], None]
"""Takes a box of an array, by its path; the values are valid until it returns. Called from any thread."""


def write(
    folder: Folder,
    tensors: Mapping[str, LazyTensor],
    storage: Storage,
    *,
    metadata: Mapping[str, Any] | None = None,
    scalars: Mapping[str, int] | None = None,
    item: str = "",
    advance: Advance = lambda nbytes: None,
    deliver: Deliver = lambda path, box, values: None,
    give_up: Callable[[BaseException], None] = lambda error: None,
    share: Share | None = None,
    others: Others | None = None,
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
        deliver: Given every chunk that is written, too.
        give_up: Called with what has gone wrong, before chunks are waited for that are still being read.
        share: What this process writes, where others write the rest (`write_share`); None for all.
        others: These; None for none.

    Returns:
        What there is to know of each array, for the manifest (`ArrayRecord.as_dict`).

    Raises:
        CacheError: The disk is full or cannot be written to, or the bucket cannot, or what was written has been removed
            or changed meanwhile.
    """
    records = (
        share.records if share else _records(tensors, scalars or {}, storage, in_bucket=not isinstance(folder, Path))
    )
    arrays = folder / item
    with _explained(folder):
        if isinstance(arrays, Path):
            arrays.mkdir(exist_ok=True)
        writer = _writer(arrays, records, storage)
    if others:
        others.begin()
    logger.debug("writing %d arrays to %s", len(tensors), arrays)
    writing = _Writing(folder, tensors, records, writer, advance, deliver, give_up)
    with _sent_to_disk_meanwhile(folder, writer), writer:
        writing.run(share)
        with _explained(folder):
            for path, value in (scalars or {}).items():
                writer.put(path, (), np.array(value, np.int64))
            written = writing.written
            for theirs in others.gather() if others else ():
                written.add(theirs)
            writer.finish()
    complete = {path: replace(records[path], checksum=_checksum(path, records, written)) for path in tensors}
    with _explained(folder):
        write_orbax_files(arrays, complete, scalars or {}, storage, metadata or {})
        if item:
            write_composite_file(folder, item, metadata or {})
        if isinstance(folder, Path):
            _synchronise(folder)
        else:
            for each in dict.fromkeys([arrays, folder]):
                write_commit_file(each)
    _tell_overflows({path: sum(counts.values()) for path, counts in written.overflowed.items()}, tensors)
    return {path: record.as_dict() for path, record in complete.items()}


def write_share(
    folder: Folder,
    tensors: Mapping[str, LazyTensor],
    storage: Storage,
    share: Share,
    *,
    item: str = "",
    advance: Advance = lambda nbytes: None,
    give_up: Callable[[BaseException], None] = lambda error: None,
) -> Written:
    """Writes a share of a checkpoint that another process has begun with `write`, and will complete.

    Args:
        folder: That of the checkpoint.
        tensors: All its arrays, as in `write`, here and below.
        storage: How to store them.
        share: Which share.
        item: The name of the composite checkpoint's item.
        advance: Called with the number of bytes of every chunk.
        give_up: Called with what has gone wrong.

    Returns:
        What the other process needs to know of it.

    Raises:
        CacheError: The disk is full or cannot be written to, or the bucket cannot, or what was written has been removed
            or changed meanwhile.
    """
    if not share.chunks:
        return Written()
    own = {path: share.records[path] for path in sorted({path for path, _ in share.chunks})}
    with _explained(folder):
        writer = _writer(folder / item, own, storage, share.index)
    writing = _Writing(folder, tensors, share.records, writer, advance, lambda path, box, values: None, give_up)
    with _gone_if_empty(folder / item, folder), _sent_to_disk_meanwhile(folder, writer), writer:
        writing.run(share)
        with _explained(folder):
            writer.require_written()
    with _explained(folder):
        for path in writer.worth_synchronising(0) if not isinstance(writer, ObjectWriter) else ():
            # Others' files lie beside those of this process, and may have another name until they are complete.
            with contextlib.suppress(FileNotFoundError):
                _synchronise_one(path)
    return writing.written


def shares(
    tensors: Mapping[str, LazyTensor],
    storage: Storage,
    count: int,
    *,
    scalars: Mapping[str, int] | None = None,
    in_bucket: bool,
    stored_bytes: Callable[[str], int] | None = None,
) -> list[Share]:
    """What each of several processes writes of a checkpoint; to be asked for before anything of the source arrives.

    Args:
        tensors: All its arrays, as in `write`, here and below.
        storage: How to store them.
        count: How many processes there are.
        scalars: Whole numbers stored beside the arrays.
        in_bucket: Whether the checkpoint is written to a bucket.
        stored_bytes: Of a source that is far away, what its tensors take; see `lazyload.checkpoint.dealing.dealt`.
    """
    records = _records(tensors, scalars or {}, storage, in_bucket=in_bucket)
    return dealt(tensors, records, storage, count, in_bucket=in_bucket, stored_bytes=stored_bytes)


def _records(
    tensors: Mapping[str, LazyTensor], scalars: Mapping[str, int], storage: Storage, *, in_bucket: bool
) -> dict[str, ArrayRecord]:
    """The arrays that are to be written, with the places of their chunks where those are known beforehand."""
    records = {path: new_record(lazy.shape, lazy.dtype, storage, lazy.split_order) for path, lazy in tensors.items()}
    records |= {path: new_record((), np.dtype(np.int64), storage) for path in scalars}
    if not are_ranges(storage):
        return records
    if not in_bucket:
        return placed(records, storage)
    arriving = [path for path, _, _ in _work(tensors, records)]
    found = placed_in_objects({path: records[path] for path in dict.fromkeys([*arriving, *records])}, storage)
    return {path: found[path] for path in records}


def _work(
    tensors: Mapping[str, LazyTensor],
    records: Mapping[str, ArrayRecord],
    own: Collection[tuple[str, int]] | None = None,
) -> list[tuple[str, int, Box]]:
    """The chunks to be written, all or those of a share, in the order in which what they are made of arrives."""
    return in_order_of_arrival(
        (
            (path, number, box)
            for path, lazy in tensors.items()
            for number, box in enumerate(boxes(lazy.shape, records[path].chunks))
            if own is None or (path, number) in own
        ),
        tensors,
    )


def _checksum(path: str, records: Mapping[str, ArrayRecord], written: Written) -> str:
    """The checksum of an array whose chunks are all written.

    Raises:
        CacheError: One is not.
    """
    checksums = written.checksums.get(path, {})
    count = math.prod(records[path].grid)
    if len(checksums) != count:
        raise CacheError(f"{path}: {count - len(checksums)} of its {count} chunks have not been written; call again")
    return combined(checksums[number] for number in sorted(checksums))


class _Writing:
    """Chunks that are being written."""

    def __init__(
        self,
        folder: Folder,
        tensors: Mapping[str, LazyTensor],
        records: Mapping[str, ArrayRecord],
        writer: "UncompressedWriter | ObjectWriter | CompressedWriter",
        advance: Advance,
        deliver: Deliver,
        give_up: Callable[[BaseException], None],
    ):
        self.written = Written()
        self._folder = folder
        self._tensors = tensors
        self._records = records
        self._writer = writer
        self._advance = advance
        self._deliver = deliver
        self._give_up = give_up

    def run(self, share: Share | None) -> None:
        """Writes all chunks, or those of a share."""
        own = share.chunks if share else None
        threads = _THREADS if isinstance(self._folder, Path) else _THREADS_TO_A_BUCKET
        _run(self._write_chunk, iter(_work(self._tensors, self._records, own)), self._give_up, threads)

    def _write_chunk(self, path: str, number: int, box: Box) -> None:
        lazy = self._tensors[path]
        chunk = self._writer.array([cut.stop - cut.start for cut in box], lazy.dtype)
        overflowed = lazy.read_into(chunk, box)
        self.written.note(path, number, chunk_checksum(chunk), overflowed)
        self._deliver(path, box, chunk)
        with _explained(self._folder):
            self._writer.put(path, box, chunk)
        self._advance(chunk.nbytes)


def _writer(
    folder: Folder, records: Mapping[str, ArrayRecord], storage: Storage, share: int = 0
) -> "UncompressedWriter | ObjectWriter | CompressedWriter":
    """What writes chunks; that of another share than the first joins what the first one has made."""
    if are_ranges(storage):
        return (
            UncompressedWriter(folder, records, storage, joins=share > 0)
            if isinstance(folder, Path)
            else ObjectWriter(folder, records, storage, joins=share > 0)
        )
    # TensorStore takes a while to import, and nothing else here needs it.
    from lazyload.checkpoint.compressed import CompressedWriter

    return CompressedWriter(folder, records, storage, share)


def _tell_overflows(counts: Mapping[str, int], tensors: Mapping[str, LazyTensor]) -> None:
    """Warns of values that are infinite in float16 and were not before."""
    some = [f"{count} of {path} ({', '.join(tensors[path].sources[:2])})" for path, count in counts.items() if count]
    if some:
        shown = ", ".join(some[:20]) + (f" and of {len(some) - 20} more arrays" if len(some) > 20 else "")
        logger.warning("values too large for float16 have become infinite: %s; use dtype='bfloat16'", shown)


def _run(
    task: Callable[..., None], work: Iterator[tuple[Any, ...]], give_up: Callable[[BaseException], None], threads: int
) -> None:
    """Calls the task with every piece of work, a few at a time; stops at the first error."""
    lock, stopped = threading.Lock(), threading.Event()

    def work_off() -> None:
        # Each thread takes its next piece itself: one that gives pieces out would have to be waited for.
        while not stopped.is_set():
            with lock:
                arguments = next(work, None)
            if arguments is None:
                return
            task(*arguments)

    with ThreadPoolExecutor(threads, thread_name_prefix="lazyload") as pool:
        try:
            for done in as_completed([pool.submit(work_off) for _ in range(threads)]):
                done.result()
        except BaseException as error:
            stopped.set()
            give_up(error)
            raise


@contextlib.contextmanager
def _explained(folder: Folder) -> Iterator[None]:
    """Turns what TensorStore or the operating system say of a folder that the body writes to into an error of ours."""
    try:
        yield
    except LazyLoadError:
        raise
    # TensorStore's errors are ValueErrors, or NotImplementedErrors of its own choosing.
    except (OSError, ValueError, NotImplementedError) as error:
        raise _write_error(folder, error) from error


@contextlib.contextmanager
def _gone_if_empty(*folders: Folder) -> Iterator[None]:
    """After an error, removes folders that are empty: TensorStore makes them again where another has removed them."""
    try:
        yield
    except BaseException:
        for folder in folders:
            if isinstance(folder, Path):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        raise


def _write_error(folder: Folder, error: BaseException) -> CacheError:
    """What TensorStore or the operating system say about a folder that cannot be written to, with what to do."""
    if any(words in str(error) for words in _DISK_FULL):
        return CacheError(
            f"{folder}: the disk is full; make space (`lazyload cache ls`, `lazyload cache rm`) or give another "
            "cache_dir"
        )
    return CacheError(f"{folder} cannot be written to: {said_by(error)}; give another cache_dir")


@contextlib.contextmanager
def _sent_to_disk_meanwhile(
    folder: Folder, writer: "UncompressedWriter | ObjectWriter | CompressedWriter"
) -> Iterator[None]:
    """Synchronises files as they grow while the body writes more of them, so that little is left for the end.

    Every file is synchronised once more at the end; but what goes wrong is told only once, so it is raised here, too.
    """
    if not isinstance(folder, Path) or isinstance(writer, ObjectWriter):
        yield
        return
    finished = threading.Event()

    def follow() -> None:
        while not finished.wait(_SECONDS_BETWEEN_LOOKS):
            # What has been named once is named to nobody else.
            for path in writer.worth_synchronising(_LARGE_BYTES):
                with contextlib.suppress(FileNotFoundError):
                    _synchronise_one(path)

    with ThreadPoolExecutor(1, thread_name_prefix="lazyload-sync") as pool:
        try:
            # An interrupt may come while the thread begins, which would go on for ever.
            following = pool.submit(follow)
            yield
        finally:
            finished.set()
        with _explained(folder):
            following.result()


def _synchronise(folder: Path) -> None:
    """Makes sure that everything below a folder is on the disk, before a manifest says that it is."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="lazyload-sync") as pool:
        collections.deque(pool.map(_synchronise_one, _files_below(folder)), maxlen=0)
    for parent, _, _ in os.walk(folder):
        _synchronise_one(parent)


def _files_below(folder: Path) -> Iterator[str]:
    return (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _synchronise_one(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)
