"""What is known of every array of a checkpoint, and the checksum that tells whether it is still what was written."""

import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

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
    """

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    nbytes: int
    checksum: str

    @property
    def numpy_dtype(self) -> np.dtype:
        """Its dtype.

        Raises:
            ValueError: There is no such dtype.
        """
        try:
            dtype = np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))
        except TypeError:
            dtype = None
        if dtype is None or dtype.name != self.dtype or dtype.hasobject:
            raise ValueError(f"there is no dtype {self.dtype!r}")
        return dtype

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"shape": list(self.shape), "chunks": list(self.chunks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ArrayRecord":
        """The record that `as_dict` wrote.

        Raises:
            ValueError: A field is missing or malformed, or one contradicts another.
        """
        match values:
            case {"shape": list(shape), "dtype": str(dtype), "chunks": list(chunks), "nbytes": int(nbytes),
                  "checksum": str(checksum)} if len(shape) == len(chunks):  # fmt: skip
                record = cls(tuple(shape), dtype, tuple(chunks), nbytes, checksum)
            case _:
                raise ValueError(f"not the record of an array: {_shown(values)}")
        sizes = all(_is_size(size) for size in shape) and all(_is_size(size) and size > 0 for size in chunks)
        if not sizes or nbytes != math.prod(shape) * record.numpy_dtype.itemsize:
            raise ValueError(f"not the sizes of an array: {_shown(values)}")
        return record


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _shown(values: Any) -> str:
    return str(values)[:200]


def chunk_checksum(chunk: np.ndarray) -> int:
    """The CRC-32 of a C-contiguous chunk's bytes, without padding at the array's edge."""
    return zlib.crc32(chunk.reshape(-1).view(np.uint8).data)


def combined(checksums: Iterable[int]) -> str:
    """The checksum of an array: the CRC-32 of its chunks' CRC-32 in row-major order, each as 4 little-endian bytes."""
    packed = b"".join(struct.pack("<I", checksum) for checksum in checksums)
    return f"crc32:{zlib.crc32(packed):08x}"
