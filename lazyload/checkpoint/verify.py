"""Verifying: every array of a checkpoint is read again and compared with its checksum."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorstore as ts

from lazyload.bucket.path import Folder
from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.records import ArrayRecord, Records, chunk_checksum, combined
from lazyload.checkpoint.store import array_spec, context
from lazyload.errors import CacheError
from lazyload.storage import Storage

_OUT_OF_REACH = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
"""How TensorStore begins to say that a store does not answer, or not this user; nothing is known of the array then."""


def find_damage(folder: Folder, arrays: Records, storage: Storage) -> list[str]:
    """Compares every array with what was written, a chunk at a time.

    Args:
        folder: The checkpoint.
        arrays: What the manifest says of its arrays.
        storage: How they are stored.

    Returns:
        What is wrong, a sentence each.

    Raises:
        CacheError: It is in a bucket that is out of reach.
    """
    shared = context()
    problems = []
    for path, values in arrays.items():
        try:
            found, written = _compared(folder, path, values, storage, shared)
        except (ValueError, OSError) as error:
            if not isinstance(folder, Path) and str(error).startswith(_OUT_OF_REACH):
                raise CacheError(f"{folder} cannot be read now: {str(error).splitlines()[0][:200]}") from error
            problems.append(f"{path}: cannot be read: {str(error).splitlines()[0][:200]}")
            continue
        if found != written:
            problems.append(f"{path}: is {found}, was written as {written}")
    return problems


def _compared(
    folder: Folder, path: str, values: Mapping[str, Any], storage: Storage, shared: ts.Context
) -> tuple[str, str]:
    """What an array is, and what it was written as: its form where that differs, else its checksum."""
    record = ArrayRecord.from_dict(values)
    store = ts.open(array_spec(folder, path, storage), context=shared, read=True, open=True).result()
    found = _form(store.shape, store.dtype.name, store.chunk_layout.read_chunk.shape or ())
    written = _form(record.shape, record.dtype, record.chunks)
    if found != written:
        return found, written
    return combined(
        chunk_checksum(store[box].read().result()) for box in boxes(record.shape, record.chunks)
    ), record.checksum


def _form(shape: Sequence[int], dtype: str, chunks: Sequence[int | None]) -> str:
    return f"{dtype}{list(shape)} in chunks of {list(chunks)}"
