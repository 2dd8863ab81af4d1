"""Shares: a checkpoint that several processes have written is the one that one of them writes alone."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.cloud_storage import CloudStorage
from support.in_memory import STORAGES, lazy

from lazyload.bucket.path import Folder, bucket_path
from lazyload.checkpoint import ranges
from lazyload.checkpoint.read import read
from lazyload.checkpoint.sharing import Others, Written
from lazyload.checkpoint.write import shares, write, write_share
from lazyload.errors import CacheError
from lazyload.storage import Storage

ARRAYS = {
    "a.matrix": np.arange(64 * 96, dtype=np.float32).reshape(64, 96),
    "a.odd": np.arange(37 * 3 * 29, dtype=np.float32).reshape(37, 3, 29),
    **{f"b.scale{number}": np.arange(10, dtype=np.float32) + number for number in range(5)},
}
SCALARS = {"step": 7}


def written_by_three(folder: Folder, storage: Storage) -> dict[str, dict[str, object]]:
    """What each of three processes does, one after the other."""
    tensors, in_bucket = lazy(ARRAYS), not isinstance(folder, Path)
    dealt = shares(tensors, storage, 3, scalars=SCALARS, in_bucket=in_bucket, is_far=False)

    def gather() -> list[Written]:
        written = [write_share(folder, tensors, storage, share) for share in dealt[1:]]
        return [Written.from_json(each.as_json()) for each in written]

    others = Others(lambda: None, gather)
    return write(folder, tensors, storage, scalars=SCALARS, share=dealt[0], others=others)


@pytest.mark.parametrize("storage", [storage for storage in STORAGES if storage.zarr3], ids=str)
def test_what_three_have_written_is_what_one_writes(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Storage
) -> None:
    monkeypatch.setattr(ranges, "_OBJECT_BYTES", 4096)
    folder: Folder = bucket_path(f"{root}/x") if "://" in root else tmp_path / "x"
    if isinstance(folder, Path):
        folder.mkdir()
    records = written_by_three(folder, storage)
    alone = tmp_path / "alone"
    alone.mkdir()
    expected = write(alone, lazy(ARRAYS), storage, scalars=SCALARS)
    for path, record in records.items():
        assert record["checksum"] == expected[path]["checksum"]
    places = dict.fromkeys(ARRAYS, NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec()))
    for path, array in read(folder, records, places, storage, verify=True).items():
        np.testing.assert_array_equal(array, ARRAYS[path], err_msg=path)
    if root.startswith("s3"):
        return
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(str(folder))
    assert tree["step"] == 7
    np.testing.assert_array_equal(tree["a"]["odd"], ARRAYS["a.odd"])


def test_who_fails_leaves_nothing_in_a_bucket(cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = replace(STORAGES[0], ocdbt=False)
    folder, tensors = bucket_path("gs://bucket/x"), lazy(ARRAYS)
    *_, last = shares(tensors, storage, 2, in_bucket=True, is_far=False)
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if done > last.nbytes // 2:
            raise CacheError("enough")

    with pytest.raises(CacheError, match="enough"):
        write_share(folder, tensors, storage, last, advance=advance)
    assert done
    assert cloud.objects == {}
