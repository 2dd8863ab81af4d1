"""A chunk that is not there is an error to every reader: never zeros."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorstore as ts
from jax.sharding import SingleDeviceSharding
from support.in_memory import STORAGES, lazy

from lazyload.checkpoint.read import read
from lazyload.checkpoint.records import Records
from lazyload.checkpoint.verify import find_damage
from lazyload.checkpoint.write import write
from lazyload.errors import CacheError
from lazyload.storage import Storage

A = np.arange(48 * 80, dtype=np.float32).reshape(48, 80)


def remove_a_chunk(folder: Path, path: str, storage: Storage) -> None:
    """Deletes one chunk of an array, as a deleted file or a key that is gone."""
    if storage.ocdbt:
        store = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/"}).result()
        chunks = [key for key in store.list().result() if key.startswith(f"{path}/".encode()) and b".z" not in key]
        key = next(key for key in sorted(chunks, reverse=True) if b"json" not in key)
        store.delete_range(ts.KvStore.KeyRange(key, key + b"\x00")).result()
    else:
        files = [
            file for file in (folder / path).rglob("*") if file.is_file() and file.name not in ("zarr.json", ".zarray")
        ]
        max(files).unlink()


def with_a_hole(folder: Path, storage: Storage) -> Records:
    arrays = {"a": A, "b": np.ones(24, np.float32)}
    records = write(folder, lazy(arrays), storage)
    remove_a_chunk(folder, "a", storage)
    return records


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_missing_chunk_is_an_error(storage: Storage, tmp_path: Path) -> None:
    records = with_a_hole(tmp_path, storage)
    places = dict.fromkeys(records, SingleDeviceSharding(jax.devices()[0]))
    if storage.ocdbt and storage.compression == "none":
        # Only its key is gone, which a load does not ask for.
        np.testing.assert_array_equal(read(tmp_path, records, places, storage)["a"], A)
    else:
        with pytest.raises(CacheError, match="cannot be read"):
            read(tmp_path, records, places, storage)
    assert [problem.split(":")[0] for problem in find_damage(tmp_path, records, storage)] == ["a"]


# Orbax waits for none of its other reads when one fails, and they fail later, wherever that may be: it has a process
# of its own here.
ORBAX = """
import json, re, sys
from pathlib import Path
import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding
from lazyload.checkpoint.read import through_orbax
from lazyload.errors import CacheError

for folder, records in json.loads(sys.argv[1]).items():
    places = dict.fromkeys(records, SingleDeviceSharding(jax.devices()[0]))
    try:
        through_orbax(Path(folder), records, places)
    except CacheError as error:
        print("cannot be read" in str(error), end=" ")
    try:
        ocp.PyTreeCheckpointer().restore(folder)
    except Exception as error:
        print(re.search("(?i)missing|not.found", str(error)) is not None)
"""


def test_a_missing_chunk_is_an_error_to_orbax(tmp_path: Path) -> None:
    holed = {}
    for n, storage in enumerate(STORAGES):
        holed[str(tmp_path / str(n))] = with_a_hole(tmp_path / str(n), storage)
    command = [sys.executable, "-c", ORBAX, json.dumps(holed)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.stdout.splitlines() == ["True True"] * len(STORAGES), found.stderr


@pytest.mark.parametrize("storage", [storage for storage in STORAGES if not storage.ocdbt], ids=str)
def test_a_chunk_that_is_removed_while_others_are_written_is_an_error(storage: Storage, tmp_path: Path) -> None:
    arrays = {path: np.ones((64, 1024), np.float32) for path in ("a", "b")}

    def advance(nbytes: int) -> None:
        for file in (tmp_path / "a").rglob("*"):
            if file.is_file() and file.name not in ("zarr.json", ".zarray") and not file.name.endswith("lock"):
                file.unlink(missing_ok=True)

    with pytest.raises(CacheError, match="chunks of a have been removed"):
        write(tmp_path, lazy(arrays), storage, advance=advance)
