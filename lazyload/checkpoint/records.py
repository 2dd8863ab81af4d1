"""What is known of every array of a checkpoint, and the checksum that tells whether it is still what was written."""

import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


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

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"shape": list(self.shape), "chunks": list(self.chunks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ArrayRecord":
        """The record that `as_dict` wrote.

        Raises:
            ValueError: A field is missing or malformed.
        """
        try:
            shape, chunks = (tuple(int(size) for size in values[name]) for name in ("shape", "chunks"))
            return cls(shape, str(values["dtype"]), chunks, int(values["nbytes"]), str(values["checksum"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the record of an array: {values}") from error


def chunk_checksum(chunk: np.ndarray) -> int:
    """The CRC-32 of a C-contiguous chunk's bytes, without padding at the array's edge."""
    return zlib.crc32(chunk.reshape(-1).view(np.uint8).data) if chunk.size else 0


def combined(checksums: Iterable[int]) -> str:
    """The checksum of an array: the CRC-32 of its chunks' CRC-32 in row-major order, each as 4 little-endian bytes."""
    packed = b"".join(struct.pack("<I", checksum) for checksum in checksums)
    return f"crc32:{zlib.crc32(packed):08x}"
