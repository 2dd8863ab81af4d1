"""Completeness: whether all that was written is still there, as it was, when its writer is done.

Others reach the folder while it is written, and TensorStore does not look back at what it has written.
"""

import contextlib
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorstore as ts

from lazyload.bucket.path import BucketPath, Folder, kvstore
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.store import context
from lazyload.errors import CacheError
from lazyload.storage import Storage

# The name of a chunk in either zarr format; what is not complete yet has another ending.
_CHUNK = re.compile(r"[0-9]+(\.[0-9]+)*")


class WrittenFiles:
    """The files of a checkpoint that is being written, with the sizes that they had when they were complete."""

    def __init__(self, folder: Folder, storage: Storage):
        """`folder` is that of the arrays."""
        self._folder = folder
        self._ocdbt = storage.ocdbt
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def note(self, path: str) -> None:
        """Takes note of new files, once a chunk of an array is committed; from any thread.

        An OCDBT database says itself what it needs of its files; and objects in a bucket are whole, or not there.
        """
        if self._ocdbt or not isinstance(self._folder, Path):
            return
        for file in files_below(self._folder / path):
            if file not in self._sizes and _CHUNK.fullmatch(os.path.basename(file)):
                with contextlib.suppress(OSError):
                    size = os.path.getsize(file)
                    with self._lock:
                        self._sizes.setdefault(file, size)

    def require_complete(self, stores: Mapping[str, ts.TensorStore], records: Mapping[str, ArrayRecord]) -> None:
        """Makes sure that every chunk and every file is still what was written.

        Raises:
            CacheError: One is not.
        """
        for path, record in records.items():
            keys = stores[path].kvstore
            there = len(keys.list().result()) if keys else 0
            chunks = math.prod(-(-size // chunk) for size, chunk in zip(record.shape, record.chunks, strict=True))
            # Beside the array's metadata.
            if there < chunks + 1:
                raise self._changed(f"{chunks + 1 - there} of the chunks of {path} have been removed")
        self._require_files(_data_files(self._folder) if self._ocdbt and records else {})

    def require_unchanged(self) -> None:
        """Makes sure that the files of the chunks, or of the database, are still what was written.

        Raises:
            CacheError: One is not.
        """
        self._require_files(_data_files(self._folder) if self._ocdbt else {})

    def _require_files(self, needed: Mapping[str, int]) -> None:
        """Makes sure of the files that were noted, and of further ones, which must have so many bytes at least."""
        with self._lock:
            sizes = dict(self._sizes)
        there_are = {} if isinstance(self._folder, Path) else _sizes_below(self._folder)
        for file in sizes.keys() | needed.keys():
            found = _size(file) if isinstance(self._folder, Path) else there_are.get(file)
            if found is None:
                raise self._changed(f"{file} has been removed")
            if found < needed.get(file, 0) or found != sizes.get(file, found):
                raise self._changed(f"{file} has {found} bytes, was written with {sizes.get(file, needed.get(file))}")

    def _changed(self, what: str) -> CacheError:
        return CacheError(
            f"{self._folder} was changed while it was written ({what}); call again, and see who removes files there"
        )


def files_below(folder: Path) -> Iterator[str]:
    """The paths of all files below a folder."""
    return (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _size(file: str) -> int | None:
    try:
        return os.path.getsize(file)
    except FileNotFoundError:
        return None


def _sizes_below(folder: BucketPath) -> dict[str, int]:
    """The sizes of all objects in a folder of a bucket."""
    return {f"{folder}/{name}": stored.size for name, stored in folder.bucket.below(f"{folder.key}/").items()}


def _data_files(folder: Folder) -> dict[str, int]:
    """The data files that an OCDBT database refers to, with the least number of bytes that each must have.

    TensorStore lists keys without looking at the files that hold their values
    (https://google.github.io/tensorstore/kvstore/ocdbt).
    """
    base = ts.KvStore.open(kvstore(folder), context=context()).result()
    sizes: dict[str, int] = {}
    newest = ts.ocdbt.dump(base).result()["versions"][-1]["root"]
    nodes = [newest["location"]] if "location" in newest else []
    while nodes:
        node = nodes.pop()
        entries = ts.ocdbt.dump(base, node).result()["entries"]
        inner = [entry["location"] for entry in entries if "location" in entry]
        nodes += inner
        for location in (node, *(entry["indirect_value"] for entry in entries if "indirect_value" in entry)):
            # "<type>:<base>:<file>:<offset>:<length>", both paths relative to the database.
            _, base_path, name, offset, length = location.split(":")
            file = f"{folder}/{base_path}{name}"
            sizes[file] = max(sizes.get(file, 0), int(offset) + int(length))
    return sizes
