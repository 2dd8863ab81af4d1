"""Shares: a checkpoint that several processes have written is the one that one of them writes alone."""

import contextlib
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
from lazyload.checkpoint import write as writing
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


def written_by(count: int, folder: Folder, storage: Storage) -> dict[str, dict[str, object]]:
    """What each of some processes does, one after the other."""
    tensors, in_bucket = lazy(ARRAYS), not isinstance(folder, Path)
    dealt = shares(tensors, storage, count, scalars=SCALARS, in_bucket=in_bucket)

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
    records = written_by(3, folder, storage)
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


@pytest.mark.parametrize("storage", [storage for storage in STORAGES if storage.zarr3], ids=str)
def test_there_may_be_more_processes_than_chunks(tmp_path: Path, storage: Storage) -> None:
    records = written_by(100, tmp_path, storage)
    places = dict.fromkeys(ARRAYS, NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec()))
    for path, array in read(tmp_path, records, places, storage, verify=True).items():
        np.testing.assert_array_equal(array, ARRAYS[path], err_msg=path)


@pytest.mark.parametrize("ocdbt", [False, True], ids=["", "ocdbt"])
def test_each_synchronises_compressed_files_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ocdbt: bool
) -> None:
    tensors, storage = lazy(ARRAYS), Storage(ocdbt, zarr3=True, compression="zstd", chunk_bytes=4096)
    first, *rest = shares(tensors, storage, 3, in_bucket=False)
    synchronised: list[str] = []
    monkeypatch.setattr(writing, "_synchronise_one", synchronised.append)

    def gather() -> list[Written]:
        written = [write_share(tmp_path, tensors, storage, share) for share in rest]
        assert len(synchronised) == len({*synchronised})
        if not ocdbt:
            assert len(synchronised) == sum(len(share.chunks) for share in rest)
        assert synchronised
        return written

    write(tmp_path, tensors, storage, share=first, others=Others(lambda: None, gather))


@pytest.mark.parametrize("storage", [storage for storage in STORAGES if storage.zarr3], ids=str)
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_who_fails_once_the_first_has_given_up_leaves_nothing(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, storage: Storage
) -> None:
    monkeypatch.setattr(ranges, "_OBJECT_BYTES", 4096)
    cloud: CloudStorage | None = request.getfixturevalue("cloud") if place == "bucket" else None
    folder: Folder = bucket_path("gs://bucket/x") if cloud else tmp_path / "x"
    tensors = lazy(ARRAYS)
    first, last = shares(tensors, storage, 2, in_bucket=cloud is not None)
    done = 0

    def give_up() -> list[Written]:
        raise CacheError("given up")

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if done > last.nbytes // 2:
            if isinstance(folder, Path):
                # At once, while files are written there.
                with contextlib.suppress(OSError):
                    folder.rename(tmp_path / "removed")
            raise CacheError("enough")

    if isinstance(folder, Path):
        folder.mkdir()
    with pytest.raises(CacheError, match="given up"):
        write(folder, tensors, storage, share=first, others=Others(lambda: None, give_up))
    written = {*cloud.objects} if cloud else set()
    with pytest.raises(CacheError, match=r"enough|written"):
        write_share(folder, tensors, storage, last, advance=advance)
    assert done
    assert {*cloud.objects} == written if cloud else not folder.exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"removed"}
