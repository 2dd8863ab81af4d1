"""Uncompressed chunks as ranges of bytes: in which file each lies, and where in it.

Without OCDBT every chunk is the content of a file. With it, an array's chunks lie one after another in a data file,
which holds the arrays in their order: so a load reads long stretches, and the record of an array tells in two numbers
where all of it lies.

In a bucket, where nothing can be written into the middle of an object, data files are small: one is written as soon as
its chunks are there, from memory and in one request, and nothing is staged on a disk.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from lazyload.checkpoint.ocdbt import data_file, data_file_after
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.zarr import chunk_key
from lazyload.layouts.source import Box
from lazyload.storage import Storage

_DATA_FILE_BYTES = 2 << 30
"""How large a data file becomes, unless a single array is larger; Orbax's own default on a disk."""

_OBJECT_BYTES = 16 << 20
"""How large a data file in a bucket becomes, unless a single chunk is larger: what is read in one request."""

_ALIGNMENT = 64
"""Of an array in a data file: as in memory, so that neighbours there are neighbours here."""


def are_ranges(storage: Storage) -> bool:
    """Whether chunks are stored as the bytes that they are."""
    return storage.compression == "none"


def are_placed(storage: Storage) -> bool:
    """Whether they lie in data files, which hold many of them."""
    return are_ranges(storage) and bool(storage.ocdbt)


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
    return file_of(record, number)


def placed_in_objects(records: Mapping[str, ArrayRecord], storage: Storage) -> dict[str, ArrayRecord]:
    """The same in a bucket: large arrays in data files of their own, small ones together.

    Args:
        records: In the order in which the arrays arrive, so that those that share a data file arrive together.
        storage: How they are stored.
    """
    if not storage.ocdbt:
        return dict(records)
    found, number, end = {}, 0, _OBJECT_BYTES
    largest = 1 + len(records)
    for path, record in records.items():
        size = _stored_bytes(record)
        if size > _OBJECT_BYTES:
            per_file = max(1, _OBJECT_BYTES // record.chunk_nbytes)
            found[path] = replace(record, file=data_file(largest), per_file=per_file)
            largest += -(-math.prod(record.grid) // per_file)
            continue
        if end + size > _OBJECT_BYTES:
            number, end = number + 1, 0
        found[path] = replace(record, file=data_file(number), offset=end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return found


def file_of(record: ArrayRecord, number: int) -> tuple[str, int]:
    """The data file in which a chunk of an array lies, and where in it.

    Args:
        record: What is known of the array.
        number: Of the chunk, in row-major order.
    """
    if not record.per_file:
        return record.file, record.offset + number * record.chunk_nbytes
    after, number = divmod(number, record.per_file)
    return data_file_after(record.file, after), number * record.chunk_nbytes


def data_file_sizes(records: Mapping[str, ArrayRecord]) -> dict[str, int]:
    """How large the data files become that hold the chunks of arrays."""
    sizes: dict[str, int] = {}
    for record in records.values():
        for number in range(math.prod(record.grid)):
            file, offset = file_of(record, number)
            sizes[file] = max(sizes.get(file, 0), offset + record.chunk_nbytes)
    return sizes


def _stored_bytes(record: ArrayRecord) -> int:
    return math.prod(record.grid) * record.chunk_nbytes
