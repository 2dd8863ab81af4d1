"""Uncompressed chunks as ranges of bytes: in which file each lies, and where in it.

Without OCDBT every chunk is the content of a file. With it, an array's chunks lie one after another in a data file,
which holds the arrays in their order: so a load reads long stretches, and the record of an array tells in two numbers
where all of it lies.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lazyload.checkpoint.ocdbt import data_file
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.zarr import chunk_key
from lazyload.layouts.source import Box
from lazyload.storage import Storage

_DATA_FILE_BYTES = 2 << 30
"""How large a data file becomes, unless a single array is larger; Orbax's own default on a disk."""

_ALIGNMENT = 64
"""Of an array in a data file: as in memory, so that neighbours there are neighbours here."""

_MOST_AT_ONCE = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16


def are_ranges(storage: Storage) -> bool:
    """Whether chunks are stored as the bytes that they are."""
    return storage.compression == "none"


def placed(records: Mapping[str, ArrayRecord], storage: Storage) -> dict[str, ArrayRecord]:
    """The records of arrays that are to be written, with the places of their chunks in data files."""
    if not storage.ocdbt:
        return dict(records)
    found, number, end = {}, 1, 0
    for path, record in records.items():
        size = _stored_bytes(record)
        if end and end + size > _DATA_FILE_BYTES:
            number, end = number + 1, 0
        found[path] = replace(record, file=data_file(number), offset=end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return found


def range_of(path: str, record: ArrayRecord, box: Box, storage: Storage) -> tuple[str, int]:
    """The file in which a chunk lies, and where in it.

    Args:
        path: The array's.
        record: What is known of it.
        box: Which part of it the chunk is.
        storage: How it is stored.
    """
    numbers = [cut.start // chunk for cut, chunk in zip(box, record.chunks, strict=True)]
    if not storage.ocdbt:
        return f"{path}/{chunk_key(numbers, storage)}", 0
    number = 0
    for own, count in zip(numbers, record.grid, strict=True):
        number = number * count + own
    return record.file, record.offset + number * record.chunk_nbytes


def _stored_bytes(record: ArrayRecord) -> int:
    count = 1
    for along in record.grid:
        count *= along
    return count * record.chunk_nbytes


class OpenFiles:
    """The files of a checkpoint, each opened once; threads share them."""

    def __init__(self, folder: Path, flags: int = os.O_RDONLY):
        """`flags` are those of `os.open`."""
        self._folder = folder
        self._flags = flags | os.O_CLOEXEC
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, file: str) -> int:
        """An open file's descriptor.

        Raises:
            OSError: It cannot be opened.
        """
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self._folder / file, self._flags, 0o666)
            return self._descriptors[file]

    def close(self) -> None:
        """Closes them."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])


def read_at(descriptor: int, offset: int, parts: Sequence[memoryview]) -> None:
    """Fills memory from a position of a file on, one part after another.

    Raises:
        ValueError: The file ends before.
        OSError: It cannot be read.
    """
    waiting = [part for part in parts if len(part)]
    while waiting:
        count = os.preadv(descriptor, waiting[:_MOST_AT_ONCE], offset)
        if count == 0:
            raise ValueError(f"a file ends at byte {offset}, {sum(map(len, waiting))} bytes too early")
        offset += count
        waiting = _after(waiting, count)


def write_at(descriptor: int, offset: int, content: memoryview) -> None:
    """Writes bytes at a position of a file.

    Raises:
        OSError: It cannot be written to.
    """
    while len(content):
        count = os.pwrite(descriptor, content, offset)
        offset += count
        content = content[count:]


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of memory when so many bytes of it are filled."""
    for number, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[number + 1 :]]
        count -= len(part)
    return []
