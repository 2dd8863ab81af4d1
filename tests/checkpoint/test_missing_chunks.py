"""A chunk that is not there is an error to every reader: never zeros."""

import gc
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from jax.sharding import SingleDeviceSharding
from support.in_memory import STORAGES, lazy

from lazyload.checkpoint.read import read, through_orbax
from lazyload.checkpoint.verify import find_damage
from lazyload.checkpoint.write import write
from lazyload.errors import CacheError
from lazyload.storage import Storage


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


# Orbax leaves reads behind that nobody waits for; they are to be gone before the next test.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_missing_chunk_is_an_error(storage: Storage, tmp_path: Path) -> None:
    arrays = {"a": np.arange(48 * 80, dtype=np.float32).reshape(48, 80), "b": np.ones(24, np.float32)}
    records = write(tmp_path, lazy(arrays), storage)
    remove_a_chunk(tmp_path, "a", storage)
    places = dict.fromkeys(arrays, SingleDeviceSharding(jax.devices()[0]))
    for reader in (lambda: read(tmp_path, records, places, storage), lambda: through_orbax(tmp_path, records, places)):
        with pytest.raises(CacheError, match="cannot be read"):
            reader()
    assert [problem.split(":")[0] for problem in find_damage(tmp_path, records, storage)] == ["a"]
    with ocp.PyTreeCheckpointer() as checkpointer, pytest.raises(Exception, match=r"(?i)missing|not.found"):
        checkpointer.restore(tmp_path)
    gc.collect()


@pytest.mark.parametrize("storage", [storage for storage in STORAGES if not storage.ocdbt], ids=str)
def test_a_chunk_that_is_removed_while_others_are_written_is_an_error(storage: Storage, tmp_path: Path) -> None:
    arrays = {path: np.ones((64, 1024), np.float32) for path in ("a", "b")}

    def advance(nbytes: int) -> None:
        for file in (tmp_path / "a").rglob("*"):
            if file.is_file() and file.name not in ("zarr.json", ".zarray") and not file.name.endswith("lock"):
                file.unlink(missing_ok=True)

    with pytest.raises(CacheError, match="chunks of a have been removed"):
        write(tmp_path, lazy(arrays), storage, advance=advance)
