"""Checkpoints in buckets: converted into them, and restored by this library and by Orbax; and what that costs."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from support import checkpoints
from support.cloud_storage import CloudStorage, Fault
from support.command import command

import lazyload
from lazyload.checkpoint import ranges
from lazyload.errors import CacheError, LayoutError
from lazyload.storage import Storage

ROOT = "gs://bucket/cache"
OCDBT, FILES = Storage(ocdbt=True, zarr3=True), Storage(ocdbt=False, zarr3=False)
STORAGES = [OCDBT, FILES, replace(OCDBT, compression="zstd"), Storage(False, True, "zstd")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def wanted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What a load from a disk gives."""
    return leaves(lazyload.from_pretrained(model, cache_dir=tmp_path_factory.mktemp("cache")))


def leaves(module: nnx.Module) -> dict[str, np.ndarray]:
    return by_path(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


def by_path(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): np.asarray(array) for path, array in flatten_dict(tree).items()}


def require_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """The root of an empty cache in a bucket, of each kind."""
    if request.param == "gs":
        request.getfixturevalue("cloud")
        yield ROOT
    else:
        yield str(request.getfixturevalue("s3_root"))


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_a_bucket_gives_what_a_disk_gives(
    model: Path, wanted: dict[str, np.ndarray], bucket: str, storage: Storage
) -> None:
    require_equal(leaves(lazyload.from_pretrained(model, cache_dir=bucket, storage=storage)), wanted)
    assert not lazyload.last_report().hit
    for mesh in (jax.make_mesh((8,), ("fsdp",)), jax.make_mesh((2, 4), ("fsdp", "tp"))):
        require_equal(leaves(lazyload.from_pretrained(model, mesh=mesh, cache_dir=bucket, storage=storage)), wanted)
        assert lazyload.last_report().hit
    require_equal(leaves(lazyload.from_pretrained(model, cache_dir=bucket, storage=storage, verify=True)), wanted)
    assert str(lazyload.last_report().path).startswith(f"{bucket}/models--")
    assert [found.problems for found in lazyload.verify(cache_dir=bucket)] == [()]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_plain_orbax_restores_an_entry_at_google(
    model: Path, wanted: dict[str, np.ndarray], cloud: CloudStorage, storage: Storage
) -> None:
    converted = lazyload.convert(model, cache_dir=ROOT, storage=storage)
    require_equal(by_path(ocp.PyTreeCheckpointer().restore(os.fspath(converted.path))), wanted)


def test_plain_orbax_restores_what_is_for_maxtext(model: Path, cloud: CloudStorage) -> None:
    try:
        converted = lazyload.convert(model, cache_dir=ROOT, layout=lazyload.MaxText())
    except LayoutError as error:
        pytest.fail(str(error))
    assert converted.path.name == "items"
    restored = ocp.PyTreeCheckpointer().restore(os.fspath(converted.path))
    assert "params" in restored
    with converted.in_use():
        assert [name for name in cloud.objects if ".lease-" in name]


@pytest.mark.parametrize("chunk_bytes", [4096, 16384, 1 << 20])
def test_objects_hold_whole_chunks_up_to_the_size_of_a_request(
    model: Path, wanted: dict[str, np.ndarray], cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr(ranges, "_OBJECT_BYTES", 16384)
    storage = replace(OCDBT, chunk_bytes=chunk_bytes)
    converted = lazyload.convert(model, cache_dir=ROOT, storage=storage)
    records = converted.manifest.arrays
    assert {bool(record.get("per_file")) for record in records.values()} == {True, False}
    largest = max(16384, *(np.prod(record["chunks"]) * 2 for record in records.values()))
    sizes = {name: len(stored.content) for name, stored in cloud.objects.items() if "/d/" in name}
    assert len(sizes) > 10
    assert max(sizes.values()) <= largest
    require_equal(leaves(lazyload.from_pretrained(model, cache_dir=ROOT, storage=storage)), wanted)
    require_equal(by_path(ocp.PyTreeCheckpointer().restore(os.fspath(converted.path))), wanted)


def test_such_objects_are_read_on_a_disk_in_front_as_well(
    model: Path,
    wanted: dict[str, np.ndarray],
    cloud: CloudStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranges, "_OBJECT_BYTES", 16384)
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    assert str(lazyload.convert(model).path).startswith(ROOT)
    require_equal(leaves(lazyload.from_pretrained(model)), wanted)
    assert lazyload.last_report().path.is_relative_to(tmp_path)
    assert lazyload.last_report().hit
    cloud.forget_counts()
    require_equal(leaves(lazyload.from_pretrained(model)), wanted)
    assert cloud.bytes_out == 0, "everything is here now"


def test_a_hit_costs_few_requests_and_reads_what_it_needs_once(model: Path, cloud: CloudStorage) -> None:
    converted = lazyload.convert(model, cache_dir=ROOT)
    manifest = next(stored for name, stored in cloud.objects.items() if name.endswith("manifest.json"))
    cloud.forget_counts()
    lazyload.from_pretrained(model, cache_dir=ROOT)
    assert dict(cloud.requests) == {"GET list": 5, "GET content": 2, "POST": 1, "DELETE": 1}
    assert cloud.bytes_out <= 1.2 * converted.manifest.nbytes + len(manifest.content)


def test_the_environment_and_the_command_may_name_a_bucket(model: Path, cloud: CloudStorage) -> None:
    ended = command("convert", model, "--cache-dir", ROOT, "--quiet", cache=Path("/nowhere"))
    assert ended.stdout.startswith(f"{ROOT}/models--")
    assert "is in the cache" in command("convert", model, "--dry-run", cache=ROOT).stdout
    assert "hit: this call" in command("explain", model, cache=ROOT).stdout
    assert "miss: this call" in command("explain", model, "--dtype", "float32", cache=ROOT).stdout
    assert ": ok" in command("cache", "verify", "--verbose", cache=ROOT).stdout
    assert '"entries": 1' in command("env", "--json", "--timeout", "0", cache=ROOT).stdout
    assert "freed" in command("cache", "rm", str(model), "--yes", cache=ROOT).stdout
    assert cloud.objects == {}


def test_who_asks_for_the_same_waits_for_it(model: Path, cloud: CloudStorage) -> None:
    with ThreadPoolExecutor(3) as pool:
        converted = list(pool.map(lambda _: lazyload.convert(model, cache_dir=ROOT), range(3)))
    assert sorted(each.converted for each in converted) == [False, False, True]
    assert len({each.path for each in converted}) == 1


def test_converting_again_replaces_the_entry(model: Path, wanted: dict[str, np.ndarray], cloud: CloudStorage) -> None:
    first = lazyload.convert(model, cache_dir=ROOT)
    again = lazyload.convert(model, cache_dir=ROOT, force_convert=True)
    assert again.converted
    assert again.path != first.path
    require_equal(leaves(lazyload.from_pretrained(model, cache_dir=ROOT)), wanted)
    assert lazyload.last_report().path == again.path


@pytest.mark.parametrize("storage", [OCDBT, FILES], ids=str)
def test_damage_is_found_and_repaired(
    model: Path, wanted: dict[str, np.ndarray], cloud: CloudStorage, storage: Storage
) -> None:
    lazyload.convert(model, cache_dir=ROOT, storage=storage)
    name = max((name for name in cloud.objects if "/data-" in name), key=lambda name: len(cloud.objects[name].content))
    stored = cloud.objects[name]
    cloud.objects[name] = replace(stored, content=stored.content[:-5000] + bytes(1000) + stored.content[-4000:])
    (found,) = lazyload.verify(cache_dir=ROOT)
    assert found.problems
    with pytest.raises(CacheError, match="force_convert=True"):
        lazyload.from_pretrained(model, cache_dir=ROOT, storage=storage, verify=True)
    (repaired,) = lazyload.repair(cache_dir=ROOT)
    assert repaired.outcome == "converted"
    require_equal(leaves(lazyload.from_pretrained(model, cache_dir=ROOT, storage=storage)), wanted)
    assert lazyload.last_report().hit


def test_a_damaged_copy_on_a_disk_in_front_is_found_and_removed(
    model: Path, cloud: CloudStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAZYLOAD_CACHE", f"{tmp_path}:{ROOT}")
    lazyload.convert(model)
    lazyload.from_pretrained(model)
    assert [found.problems for found in lazyload.verify()] == [(), ()]
    copy = next(tmp_path.rglob("manifest.json")).parent
    damaged = max((path for path in copy.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damaged.write_bytes(bytes(damaged.stat().st_size))
    behind, found = lazyload.verify()
    assert (behind.problems, found.folder, bool(found.problems)) == ((), copy, True)
    shown = command("cache", "verify", cache=Path(f"{tmp_path}:{ROOT}"), code=1).stdout
    assert f"in {ROOT}: ok" in shown
    assert f"in {tmp_path}: " in shown
    assert [repair.outcome for repair in lazyload.repair(dry_run=True)] == ["sound", "removed"]
    assert copy.exists()
    sound, repaired = lazyload.repair()
    assert (sound.outcome, repaired.outcome) == ("sound", "removed")
    assert "the next load makes again" in repaired.reason
    assert not copy.exists()
    lazyload.from_pretrained(model, verify=True)
    assert [found.problems for found in lazyload.verify()] == [(), ()]


def test_what_is_lost_is_converted_again(model: Path, wanted: dict[str, np.ndarray], cloud: CloudStorage) -> None:
    lazyload.convert(model, cache_dir=ROOT)
    del cloud.objects[next(name for name in cloud.objects if "/d/" in name)]
    require_equal(leaves(lazyload.from_pretrained(model, cache_dir=ROOT)), wanted)
    assert not lazyload.last_report().hit


@pytest.mark.parametrize("kind", [429, 503, "reset", "truncated", "slow"])
def test_loads_go_on_through_faults(
    model: Path, wanted: dict[str, np.ndarray], cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch, kind: int | str
) -> None:
    monkeypatch.setattr("gcsfs.retry.random.random", lambda: -0.9)
    cloud.faults = [Fault(kind, "POST"), Fault(kind, "GET"), Fault(kind, name=".*/d/.*")]
    lazyload.convert(model, cache_dir=ROOT)
    cloud.faults = [Fault(kind, name=".*/d/.*", times=2)]
    require_equal(leaves(lazyload.from_pretrained(model, cache_dir=ROOT)), wanted)
    assert lazyload.last_report().hit


def test_an_object_that_is_removed_while_others_are_written_is_missed(
    model: Path, cloud: CloudStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "_OBJECT_BYTES", 16384)
    put = cloud.put

    def put_and_remove(bucket: str, name: str, *rest: Any) -> Any:
        if name.endswith("manifest.ocdbt"):
            del cloud.objects[next(name for name in cloud.objects if "/d/" in name)]
        return put(bucket, name, *rest)

    monkeypatch.setattr(cloud, "put", put_and_remove)
    with pytest.raises(CacheError, match=r"was changed while it was written \(d/\w+ has been removed\)"):
        lazyload.convert(model, cache_dir=ROOT)


def test_a_conversion_that_cannot_write_says_what_and_leaves_nothing(model: Path, cloud: CloudStorage) -> None:
    cloud.faults = [Fault(403, "POST", ".*/d/.*", times=1000)]
    with pytest.raises(CacheError, match=r"gs://bucket/cache/.*/d/.*access is denied"):
        lazyload.convert(model, cache_dir=ROOT)
    assert cloud.objects == {}
