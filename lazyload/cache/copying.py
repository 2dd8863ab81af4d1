"""Copying an entry from a bucket to a disk in front of it, where later loads find it."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lazyload.bucket.bucket import MOST_AT_ONCE
from lazyload.bucket.path import BucketPath
from lazyload.cache.disk import explained
from lazyload.cache.entry import Entry, read_entry
from lazyload.cache.files import damaged_files
from lazyload.cache.key import Key
from lazyload.cache.manifest import UnreadableManifestError
from lazyload.cache.root import Root
from lazyload.errors import CacheError
from lazyload.progress import Advance

_RANGE_BYTES = 16 << 20
"""Of an object that is read in one request."""


def copy_entry(entry: Entry, root: Root, folder: str, advance: Advance, timeout: float | None) -> Entry:
    """The same entry in another root, copied there unless somebody else has done it.

    Args:
        entry: An entry in a bucket.
        root: A root on a disk.
        folder: The name of the model's folder.
        advance: Called with the numbers of bytes that have been copied, from any thread.
        timeout: Seconds to wait at most for somebody who copies it; None for as long as it takes.

    Raises:
        CacheError: It cannot be read, is not what was written, or cannot be written there.
        LockTimeoutError: Somebody else was copying it for `timeout` seconds.
    """
    manifest, key = entry.manifest, Key(entry.manifest.fields)
    nbytes = sum(file["size"] for file in manifest.files.values())
    with root.lock(key.digest, timeout):
        for found in root.folders(folder, key.digest):
            with contextlib.suppress(UnreadableManifestError):
                there = read_entry(found)
                if not there.lost_files():
                    return there
        with entry.in_use(), root.staging(key, entry.model, folder, nbytes) as staging:
            _copy_files(entry, staging.path, advance)
            with explained(staging.path):
                problems = damaged_files(staging.path, manifest.files)
            if problems:
                raise CacheError(f"{entry.data} is damaged: {problems[0]}; see `lazyload cache verify --repair`")
            return staging.publish(
                arrays=manifest.arrays,
                nbytes=manifest.nbytes,
                item=manifest.item,
                source=manifest.source,
                config=manifest.config,
                seconds=manifest.seconds,
                made={"created": manifest.created, "versions": manifest.versions, "writer": manifest.writer},
            )


def _copy_files(entry: Entry, folder: Path, advance: Advance) -> None:
    """Copies all files that the manifest lists, range by range, many at a time."""
    data, lock = entry.data, threading.Lock()
    if not isinstance(data, BucketPath):
        raise CacheError(f"{data} is in no bucket")

    def copy(name: str, start: int, stop: int) -> None:
        content = data.bucket.read(f"{data.key}/{name}", start, stop) if stop > start else b""
        with explained(folder), (folder / name).open("r+b") as file:
            file.seek(start)
            file.write(content)
        with lock:
            advance(len(content))

    with ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="lazyload-bucket") as pool:
        copies = []
        for name, listed in entry.manifest.files.items():
            with explained(folder):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
            size = listed["size"]
            copies += [
                pool.submit(copy, name, start, min(start + _RANGE_BYTES, size))
                for start in range(0, max(1, size), _RANGE_BYTES)
            ]
        try:
            for copied in copies:
                copied.result()
        except BaseException as error:
            pool.shutdown(cancel_futures=True)
            if isinstance(error, FileNotFoundError | ValueError):
                raise CacheError(f"{entry.data} cannot be copied: {error}") from error
            raise
