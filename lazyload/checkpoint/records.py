"""What is known of every array of a checkpoint, and the checksum that tells whether it is still what was written."""

import functools
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np

from lazyload.checkpoint.chunks import choose_chunks
from lazyload.storage import Storage

Records = Mapping[str, Mapping[str, Any]]
"""What a manifest says of a checkpoint's arrays, by dotted path (`ArrayRecord.as_dict`)."""


@dataclass(frozen=True)
class ArrayRecord:
    """One array.

    Attributes:
        shape: Its shape.
        dtype: The name of its dtype.
        chunks: The shape of its chunks.
        nbytes: Its size, uncompressed.
        checksum: See `combined`.
        file: Where its chunks lie as bytes, in row-major order one after another, each of the full size: a file of the
            checkpoint. Empty where each chunk has a file of its own name, or they are compressed.
        offset: Where in that file the first one begins.
        per_file: How many chunks lie in that file, and in each of the next numbers, which hold nothing else; 0 for all.
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    nbytes: int
    checksum: str
    file: str = ""
    offset: int = 0
    per_file: int = 0

    @property
    def chunk_nbytes(self) -> int:
        """The size of every chunk as it is stored, uncompressed: at the array's edge with padding."""
        return math.prod(self.chunks) * self.numpy_dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each dimension."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def numpy_dtype(self) -> np.dtype:
        """Its dtype.

        Raises:
            ValueError: There is no such dtype.
        """
        return _numpy_dtype(self.dtype)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self) | {"shape": list(self.shape), "chunks": list(self.chunks)}
        unplaced = () if self.per_file else ("per_file",) if self.file else ("file", "offset", "per_file")
        return {name: value for name, value in values.items() if name not in unplaced}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ArrayRecord":
        """The record that `as_dict` wrote.

        Raises:
            ValueError: A field is missing or malformed, or one contradicts another.
        """
        match values:
            case {"shape": list(shape), "dtype": str(dtype), "chunks": list(chunks), "nbytes": int(nbytes),
                  "checksum": str(checksum)} if len(shape) == len(chunks):  # fmt: skip
                record = cls(tuple(shape), dtype, tuple(chunks), nbytes, checksum, *_place_of(values))
            case _:
                raise ValueError(f"not the record of an array: {_shown(values)}")
        sizes = all(_is_size(size) for size in shape) and all(_is_size(size) and size > 0 for size in chunks)
        if not sizes or nbytes != math.prod(shape) * record.numpy_dtype.itemsize:
            raise ValueError(f"not the sizes of an array: {_shown(values)}")
        return record


def new_record(
    shape: tuple[int, ...], dtype: np.dtype, storage: Storage, split_order: Sequence[int] = ()
) -> ArrayRecord:
    """An array that is to be written.

    Args:
        shape: Its shape.
        dtype: Its dtype.
        storage: How it is stored; every flag concrete.
        split_order: The dimensions in the order in which to cut them into chunks.
    """
    chunks = choose_chunks(shape, dtype.itemsize, split_order, storage.chunk_bytes or 1)
    return ArrayRecord(shape, dtype.name, chunks, math.prod(shape) * dtype.itemsize, checksum="")


@functools.lru_cache(maxsize=64)
def _numpy_dtype(name: str) -> np.dtype:
    try:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        dtype = None
    if dtype is None or dtype.name != name or dtype.hasobject:
        raise ValueError(f"there is no dtype {name!r}")
    return dtype


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _shown(values: Any) -> str:
    return str(values)[:200]


def _place_of(values: Mapping[str, Any]) -> tuple[str, int, int]:
    """Where the chunks of a record lie."""
    file, offset, per_file = values.get("file", ""), values.get("offset", 0), values.get("per_file", 0)
    is_place = isinstance(file, str) and _is_size(offset) and _is_size(per_file)
    if not is_place or ".." in file.split("/") or file.startswith("/"):
        raise ValueError(f"not the place of an array: {_shown(values)}")
    return file, offset, per_file


def chunk_checksum(chunk: np.ndarray, before: int = 0) -> int:
    """The CRC-32C of a C-contiguous chunk's bytes, without padding at the array's edge; of a part, after another."""
    checksum: int = google_crc32c.extend(before, chunk.reshape(-1).view(np.uint8))
    return checksum


def combined(checksums: Iterable[int]) -> str:
    """The checksum of an array: the CRC-32C of its chunks' in row-major order, each as 4 little-endian bytes."""
    packed = b"".join(struct.pack("<I", checksum) for checksum in checksums)
    return f"crc32c:{google_crc32c.value(packed):08x}"
