"""The files that make a folder of arrays a checkpoint to Orbax.

`_METADATA` names every leaf of the tree, how its key is made up, and how arrays are stored; `_CHECKPOINT_METADATA`
names the handler and carries the custom metadata. Orbax documents neither: both are as orbax-checkpoint 0.11.30 to
0.12.8 write them (`orbax/checkpoint/_src/metadata/tree.py`, `checkpoint.py`).
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from lazyload.bucket.path import Folder
from lazyload.checkpoint.records import ArrayRecord
from lazyload.storage import Storage

_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"
"""The private name of `orbax.checkpoint.PyTreeCheckpointHandler`, by which Orbax finds it again."""

_DICT_KEY = 2
"""The kind of a key that a dictionary has, as opposed to a sequence or a named tuple."""


def write_orbax_files(
    folder: Folder,
    arrays: Mapping[str, ArrayRecord],
    scalars: Mapping[str, int],
    storage: Storage,
    metadata: Mapping[str, Any],
) -> None:
    """Writes the metadata of a checkpoint.

    Args:
        folder: The checkpoint.
        arrays: Its arrays, by dotted path.
        scalars: Its whole numbers, by dotted path.
        storage: How they are stored.
        metadata: Orbax's custom metadata.
    """
    leaves: dict[str, dict[str, Any]] = {
        path: {"value_type": "np.ndarray", "write_shape": list(array.shape)} for path, array in arrays.items()
    }
    leaves |= {path: {"value_type": "scalar"} for path in scalars}
    tree: dict[str, Any] = {
        str(tuple(path.split("."))): {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in path.split(".")],
            "value_metadata": value | {"skip_deserialize": False},
        }
        for path, value in leaves.items()
    }
    files: dict[str, dict[str, Any]] = {
        "_METADATA": {
            "tree_metadata": tree,
            "use_ocdbt": storage.ocdbt,
            "use_zarr3": storage.zarr3,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        },
        "_CHECKPOINT_METADATA": _checkpoint_metadata(_HANDLER, metadata),
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


def write_composite_file(folder: Folder, item: str, metadata: Mapping[str, Any]) -> None:
    """Writes what makes a folder a checkpoint of one item, which is the folder of that name in it.

    Args:
        folder: The checkpoint.
        item: The item's name.
        metadata: Orbax's custom metadata.
    """
    content = _checkpoint_metadata({item: _HANDLER}, metadata)
    (folder / "_CHECKPOINT_METADATA").write_text(json.dumps(content))


def write_commit_file(folder: Folder) -> None:
    """Writes what Orbax looks for in Google's buckets, where no folder is renamed when a checkpoint is complete."""
    (folder / "commit_success.txt").write_text(f"Checkpoint commit was successful to {folder}")


def _checkpoint_metadata(handlers: str | dict[str, str], metadata: Mapping[str, Any]) -> dict[str, Any]:
    now = time.time_ns()
    return {
        "item_handlers": handlers,
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": dict(metadata),
    }
