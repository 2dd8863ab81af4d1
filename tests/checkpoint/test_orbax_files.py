"""The files that Orbax finds a checkpoint by are those that the Orbax installed here writes itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest

from lazyload.checkpoint.orbax_files import write_composite_file, write_orbax_files
from lazyload.checkpoint.records import ArrayRecord
from lazyload.storage import Storage

TREE = {"a": {"matrix": np.ones((2, 3), np.float32), "0": np.ones(4, np.float32)}, "step": 7}
RECORDS = {
    "a.matrix": ArrayRecord((2, 3), "float32", (2, 3), 24, "crc32:00000000"),
    "a.0": ArrayRecord((4,), "float32", (4,), 16, "crc32:00000000"),
}


def content(path: Path) -> dict[str, Any]:
    """A file's content, without what no two checkpoints have in common."""
    found = json.loads(path.read_text())
    for name in ("init_timestamp_nsecs", "commit_timestamp_nsecs"):
        assert isinstance(found.pop(name, 0), int)
    for leaf in found.get("tree_metadata", {}).values():
        leaf["value_metadata"].pop("write_shape", None)
    return found


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_a_checkpoint_s_files_are_those_of_orbax(tmp_path: Path, ocdbt: bool, zarr3: bool) -> None:
    with ocp.PyTreeCheckpointer(use_ocdbt=ocdbt, use_zarr3=zarr3) as checkpointer:
        checkpointer.save(tmp_path / "orbax", TREE, custom_metadata={"scan_layers": True})
    (tmp_path / "ours").mkdir()
    write_orbax_files(tmp_path / "ours", RECORDS, {"step": 7}, Storage(ocdbt, zarr3), {"scan_layers": True})
    orbax = content(tmp_path / "orbax" / "_METADATA")
    # Orbax 0.11 leaves it out.
    assert content(tmp_path / "ours" / "_METADATA") == {"use_ocdbt": ocdbt, **orbax}
    assert content(tmp_path / "ours" / "_CHECKPOINT_METADATA") == content(tmp_path / "orbax" / "_CHECKPOINT_METADATA")


def test_a_composite_checkpoint_s_file_is_that_of_orbax(tmp_path: Path) -> None:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "orbax", ocp.args.Composite(items=ocp.args.PyTreeSave(TREE)))
    (tmp_path / "ours").mkdir()
    write_composite_file(tmp_path / "ours", "items", {})
    assert content(tmp_path / "ours" / "_CHECKPOINT_METADATA") == content(tmp_path / "orbax" / "_CHECKPOINT_METADATA")


def test_the_handler_s_private_name_is_that_of_the_public_class(tmp_path: Path) -> None:
    write_orbax_files(tmp_path, RECORDS, {}, Storage(True, True), {})
    handler = ocp.PyTreeCheckpointHandler
    assert content(tmp_path / "_CHECKPOINT_METADATA")["item_handlers"] == f"{handler.__module__}.{handler.__qualname__}"
