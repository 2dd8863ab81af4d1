"""zarr's second and third format: an array's metadata, and under which key each of its chunks is stored.

See https://zarr-specs.readthedocs.io. What the formats leave open is as TensorStore, and so Orbax, writes it.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lazyload.storage import Storage


def metadata_key(storage: Storage) -> str:
    """Where an array's metadata lie."""
    return "zarr.json" if storage.zarr3 else ".zarray"


def chunk_key(numbers: Sequence[int], storage: Storage) -> str:
    """Where a chunk lies, by its number along each dimension.

    Example:
        >>> chunk_key((3, 0), Storage(zarr3=True)), chunk_key((3, 0), Storage(zarr3=False))
        ('c/3/0', '3.0')
    """
    if storage.zarr3:
        return "/".join(["c", *map(str, numbers)])
    return ".".join(map(str, numbers)) or "0"


def metadata(shape: Sequence[int], dtype: np.dtype, chunks: Sequence[int], storage: Storage) -> dict[str, Any]:
    """An array's metadata, as JSON values."""
    if storage.zarr3:
        codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        if storage.compression == "zstd":
            codecs.append({"name": "zstd", "configuration": {"level": 3}})
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
            "chunk_key_encoding": {"name": "default"},
            "codecs": codecs,
            "fill_value": _zero(dtype),
        }
    return {
        "zarr_format": 2,
        "shape": list(shape),
        "dtype": dtype.newbyteorder("<").str if dtype.kind in "iufb" else dtype.name,
        "chunks": list(chunks),
        "compressor": {"id": "zstd", "level": 1} if storage.compression == "zstd" else None,
        "dimension_separator": ".",
        "fill_value": None,
        "filters": None,
        "order": "C",
    }


def encoded_metadata(shape: Sequence[int], dtype: np.dtype, chunks: Sequence[int], storage: Storage) -> bytes:
    """An array's metadata, as they are stored."""
    return json.dumps(metadata(shape, dtype, chunks, storage), separators=(",", ":")).encode()


def _zero(dtype: np.dtype) -> bool | int | float:
    if dtype.kind == "b":
        return False
    return 0 if dtype.kind in "iu" else 0.0
