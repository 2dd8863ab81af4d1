"""Arrays of a checkpoint folder as TensorStore opens them: zarr's second or third format, in folders or in OCDBT.

The formats are those that Orbax writes: array `a.b.c` of the tree has the prefix `a.b.c/`, in the folder itself or in
the OCDBT database whose root is the folder (https://google.github.io/tensorstore/kvstore/ocdbt).
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from lazyload.bucket.path import Folder, kvstore
from lazyload.checkpoint.zarr import metadata
from lazyload.errors import CacheError
from lazyload.storage import Storage

_user: int | None = None
"""The process that has used TensorStore, and with it whatever is forked from it."""

# A bucket that does not answer is asked for about a minute, as `lazyload.bucket` does; of itself TensorStore goes on
# for a quarter of an hour.
_RETRIES = {"max_retries": 6, "initial_delay": "1s", "max_delay": "32s"}

# Files are synchronised once, when a checkpoint is complete; chunks are read once, so that caching them is in vain.
_CONTEXT = {
    "file_io_sync": False,
    "cache_pool": {"total_bytes_limit": 0},
    "file_io_concurrency": {"limit": 16},
    "data_copy_concurrency": {"limit": 4},
    "gcs_request_retries": _RETRIES,
    "s3_request_retries": _RETRIES,
}
_OCDBT = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 1 << 24, "version_tree_arity_log2": 4}


def context() -> ts.Context:
    """The resources that the arrays of one checkpoint share."""
    return ts.Context(_CONTEXT)


def array_spec(folder: Folder, path: str, storage: Storage) -> dict[str, Any]:
    """How to open an array that exists; a chunk that is not there is an error, not zeros.

    Raises:
        CacheError: This process has been forked from one that used TensorStore, which ends a process that then uses it.
    """
    _require_no_fork()
    if storage.ocdbt:
        place: dict[str, Any] = {"driver": "ocdbt", "base": kvstore(folder), "path": f"{path}/"}
    else:
        place = kvstore(folder / path)
    return {"driver": "zarr3" if storage.zarr3 else "zarr", "kvstore": place, "fill_missing_data_reads": False}


def new_array_spec(
    folder: Folder, path: str, storage: Storage, *, shape: Sequence[int], dtype: np.dtype, chunks: Sequence[int]
) -> dict[str, Any]:
    """How to create an array."""
    spec = array_spec(folder, path, storage)
    if storage.ocdbt:
        spec["kvstore"]["config"] = _OCDBT
    return spec | {
        "metadata": metadata(shape, dtype, chunks, storage),
        "create": True,
        "store_data_equal_to_fill_value": True,
    }


def _require_no_fork() -> None:
    global _user  # noqa: PLW0603 - what a process has done is a fact about the process
    if _user not in (None, os.getpid()):
        raise CacheError(
            "this process was forked from one that had loaded or converted a model, and TensorStore does not work in "
            "it; start it by multiprocessing.get_context('spawn'), or fork before the first load"
        )
    _user = os.getpid()
