"""Verifying: every array of a checkpoint is read again and compared with its checksum."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorstore as ts

from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.records import ArrayRecord, chunk_checksum, combined
from lazyload.checkpoint.store import array_spec, context
from lazyload.storage import Storage


def verify(folder: Path, arrays: Mapping[str, Mapping[str, Any]], storage: Storage) -> list[str]:
    """Compares every array with its checksum, a chunk at a time.

    Args:
        folder: The checkpoint.
        arrays: What the manifest says of its arrays (`ArrayRecord.as_dict`).
        storage: How they are stored.

    Returns:
        What is wrong, a sentence each.
    """
    shared = context()
    problems = []
    for path, values in arrays.items():
        try:
            record = ArrayRecord.from_dict(values)
            store = ts.open(array_spec(folder, path, storage), context=shared, read=True, open=True).result()
            found = combined(chunk_checksum(store[box].read().result()) for box in boxes(record.shape, record.chunks))
        except (ValueError, OSError) as error:
            problems.append(f"{path}: cannot be read: {str(error).splitlines()[0][:200]}")
            continue
        if found != record.checksum:
            problems.append(f"{path}: is {found}, was written as {record.checksum}")
    return problems
