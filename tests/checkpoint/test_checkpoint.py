"""Checkpoints written and read: every storage, any mesh, what plain Orbax sees, and damage."""

import json
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from support.in_memory import STORAGES, lazy

from lazyload.checkpoint import compressed, files
from lazyload.checkpoint import read as reading
from lazyload.checkpoint.assembly import Assembly
from lazyload.checkpoint.chunks import boxes, choose_chunks
from lazyload.checkpoint.read import read, through_orbax
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.verify import find_damage
from lazyload.checkpoint.write import write
from lazyload.errors import CacheError, CorruptSourceError
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box
from lazyload.storage import Storage

SHAPES = {"a.matrix": (48, 80), "a.odd": (37, 3, 29), "b.vector": (24,), "b.scalar": (), "c.wide": (8, 1024)}


def values(dtype: np.dtype) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {path: random.standard_normal(shape).astype(dtype) for path, shape in SHAPES.items()}


def spread(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Over as many dimensions as the mesh has axes, where they divide."""
    spec = [axis if size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, mesh.axis_names, strict=False)]
    return NamedSharding(mesh, PartitionSpec(*spec))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_what_is_written_is_read_on_any_mesh(storage: Storage, dtype: type, tmp_path: Path) -> None:
    arrays = values(np.dtype(dtype))
    records = write(tmp_path, lazy(arrays), storage)
    for sizes, names in (((1,), ("x",)), ((8,), ("x",)), ((4, 2), ("x", "y")), ((2, 4), ("y", "x"))):
        mesh = jax.make_mesh(sizes, names, devices=jax.devices()[: np.prod(sizes)])
        places = {path: spread(mesh, shape) for path, shape in SHAPES.items()}
        for found in (read(tmp_path, records, places, storage), through_orbax(tmp_path, records, places)):
            for path, array in arrays.items():
                assert found[path].sharding == places[path]
                assert found[path].dtype == array.dtype
                np.testing.assert_array_equal(np.asarray(found[path]), array, err_msg=path)


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    arrays = values(np.dtype(np.float32))
    records = write(tmp_path, lazy(arrays), STORAGES[0])
    places = {path: spread(jax.make_mesh((8,), ("x",)), SHAPES[path]) for path in ("c.wide", "a.odd")}
    for found in (read(tmp_path, records, places, STORAGES[0]), through_orbax(tmp_path, records, places)):
        assert found.keys() == places.keys()
        np.testing.assert_array_equal(found["a.odd"], arrays["a.odd"])
    with pytest.raises(CacheError, match=r"a\.matrix cannot be read .*force_convert=True"):
        read(tmp_path, {"a.odd": records["a.odd"]}, {"a.matrix": places["a.odd"]}, STORAGES[0])


def test_under_pathways_orbax_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = values(np.dtype(np.float32))
    storage = Storage(False, False, "none", 4096)
    records = write(tmp_path, lazy(arrays), storage)
    places = {path: spread(jax.make_mesh((8,), ("x",)), shape) for path, shape in SHAPES.items()}
    monkeypatch.setenv("USE_PATHWAYS", "1")
    monkeypatch.setattr(reading, "_Reading", None)
    for path, array in read(tmp_path, records, places, storage).items():
        np.testing.assert_array_equal(array, arrays[path])


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_plain_orbax_reads_tree_metadata_and_scalars(storage: Storage, tmp_path: Path) -> None:
    arrays = values(np.dtype(np.float32))
    write(tmp_path, lazy(arrays), storage, metadata={"scan_layers": True}, scalars={"step": 7})
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path)
        metadata = checkpointer.metadata(tmp_path)
    assert tree["step"] == 7
    assert metadata.custom_metadata["scan_layers"] is True
    assert metadata.item_metadata.tree["a"]["odd"].shape == (37, 3, 29)
    for path, array in arrays.items():
        first, second = path.split(".")
        np.testing.assert_array_equal(tree[first][second], array)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_the_flags_are_what_is_on_disk(storage: Storage, tmp_path: Path) -> None:
    write(tmp_path, lazy(values(np.dtype(np.float32))), storage)
    names = {path.name for path in tmp_path.rglob("*")}
    assert ("manifest.ocdbt" in names) == storage.ocdbt
    assert (".zarray" in names) == (not storage.ocdbt and not storage.zarr3)
    assert ("zarr.json" in names) == (not storage.ocdbt and bool(storage.zarr3))


@pytest.mark.parametrize("storage", [s for s in STORAGES if not s.ocdbt and s.compression == "none"], ids=str)
@pytest.mark.parametrize("damage", ["shorter", "longer", "gone"])
def test_a_damaged_chunk_is_an_error_that_names_the_array(storage: Storage, damage: str, tmp_path: Path) -> None:
    records = write(tmp_path, lazy(values(np.dtype(np.float32))), storage)
    chunk = max((path for path in (tmp_path / "a.matrix").rglob("*") if path.name[-1].isdigit()), key=str)
    content = chunk.read_bytes()
    chunk.unlink()
    if damage != "gone":
        chunk.write_bytes(content[:-1] if damage == "shorter" else content + b"x")
    places = {path: spread(jax.make_mesh((8,), ("x",)), shape) for path, shape in SHAPES.items()}
    with pytest.raises(CacheError, match=r"a\.matrix cannot be read .*force_convert=True"):
        read(tmp_path, records, places, storage)


@pytest.mark.parametrize("zarr3", [True, False])
def test_a_data_file_that_is_too_short_is_an_error_that_names_the_array(zarr3: bool, tmp_path: Path) -> None:
    storage = Storage(True, zarr3, "none", 4096)
    records = write(tmp_path, lazy(values(np.dtype(np.float32))), storage)
    place = records["c.wide"]
    os.truncate(tmp_path / place["file"], place["offset"] + 5000)
    places = {path: spread(jax.make_mesh((8,), ("x",)), shape) for path, shape in SHAPES.items()}
    with pytest.raises(CacheError, match=r"c\.wide cannot be read .* too early.*force_convert=True"):
        read(tmp_path, records, places, storage)
    before = {path: place for path, place in places.items() if records[path]["offset"] < records["c.wide"]["offset"]}
    assert read(tmp_path, records, before, storage).keys() == before.keys() > set()


@pytest.mark.parametrize(
    "storage", [Storage(True, True, "none", 16384), Storage(False, False, "none", 1 << 20)], ids=str
)
def test_a_process_reads_only_what_its_devices_hold(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"rows": np.arange(64 * 1024, dtype=np.float32).reshape(64, 1024)}
    records = write(tmp_path, lazy(arrays), storage)
    mesh = jax.make_mesh((8,), ("x",))
    own = {device for device in mesh.devices.flat if device.id < 2}
    read_bytes: list[int] = []
    fill = files.read_at

    def read_at(descriptor: int, offset: int, parts: Sequence[memoryview]) -> None:
        read_bytes.append(sum(map(len, parts)))
        fill(descriptor, offset, parts)

    def indices_of_own(self: NamedSharding, shape: tuple[int, ...]) -> dict[jax.Device, Any]:
        return {device: index for device, index in self.devices_indices_map(shape).items() if device in own}

    monkeypatch.setattr(files, "read_at", read_at)
    monkeypatch.setattr(NamedSharding, "addressable_devices_indices_map", indices_of_own)
    monkeypatch.setattr(Assembly, "array", lambda self: jax.numpy.zeros(1))
    read(tmp_path, records, {"rows": NamedSharding(mesh, PartitionSpec("x"))}, storage)
    assert sum(read_bytes) == arrays["rows"].nbytes // 4


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_verifying_finds_a_flipped_bit(storage: Storage, tmp_path: Path) -> None:
    arrays = {"big": np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32)}
    manifest = write(tmp_path, lazy(arrays), storage)
    assert find_damage(tmp_path, manifest, storage) == []
    data = [path for path in tmp_path.rglob("*") if path.is_file() and re.fullmatch(r"[0-9a-f]{32}|[0-9.]+", path.name)]
    for path in data:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    (problem,) = find_damage(tmp_path, manifest, storage)
    assert problem.startswith("big: ")


RECORD = ArrayRecord((3, 4), "bfloat16", (3, 2), 24, "crc32c:00000000", "d/0f", 64)


def test_records_survive_json() -> None:
    for record in (RECORD, ArrayRecord((), "int64", (), 8, ""), ArrayRecord((0, 4), "float32", (1, 4), 0, "")):
        assert ArrayRecord.from_dict(json.loads(json.dumps(record.as_dict()))) == record


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "shape": [None, 12, [3], [3, 4, 1], [3.0, 4], ["3", 4], [-3, -4], [True, 12], [3, 5]],
        "dtype": [None, 7, "bfloat17", "object", "finfo", "float32", "<f2"],
        "chunks": [None, 6, [3], [3, 0], [3, -2], [3, 2.0], [3, True], [3, 1 << 63]],
        "nbytes": [None, "24", 24.0, 25, 10**400],
        "checksum": [None, 0],
        "file": [None, 0, "../d/0f", "/d/0f"],
        "offset": [None, -1, 0.0, "0", 1 << 63],
    }.items(),
)
def test_a_record_that_is_none_is_refused(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=r"not the (record|sizes|place) of an array|there is no dtype"):
            ArrayRecord.from_dict({**RECORD.as_dict(), field: value})
    if field not in ("file", "offset"):
        with pytest.raises(ValueError, match=r"not the record of an array: \{'"):
            ArrayRecord.from_dict({name: value for name, value in RECORD.as_dict().items() if name != field})


@given(
    shape=st.lists(st.integers(0, 40), max_size=4),
    order=st.randoms(),
    chunk_bytes=st.integers(1, 5000),
    itemsize=st.sampled_from([1, 2, 4]),
)
@settings(deadline=None)
def test_chunks_cover_the_array_once_and_are_not_too_large(
    shape: list[int], order: object, chunk_bytes: int, itemsize: int
) -> None:
    split_order = list(range(len(shape)))
    order.shuffle(split_order)  # type: ignore[attr-defined]
    chunks = choose_chunks(shape, itemsize, split_order, chunk_bytes)
    assert np.prod(chunks, dtype=int) * itemsize <= max(chunk_bytes, itemsize)
    covered = np.zeros(shape, int)
    for box in boxes(shape, chunks):
        covered[box] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize(
    ("shape", "split_order", "chunk_bytes", "expected"),
    [
        ((4096, 4096), (0, 1), 1 << 22, (512, 4096)),
        ((4096, 4096), (1, 0), 1 << 22, (4096, 512)),
        ((4096, 4096), (0, 1), 4096, (1, 2048)),
        ((151936, 4096), (0, 1), 1 << 24, (1187, 4096)),
        ((14336, 4096), (0, 1), 1 << 24, (1792, 4096)),
        ((4096, 11008), (1, 0), 1 << 24, (4096, 1376)),
        ((2048, 28, 6144), (1, 2, 0), 1 << 24, (2048, 1, 3072)),
        ((1536, 6000), (0, 1), 6000 * 2 * 300, (192, 6000)),
        ((100, 100), (0, 1), 1 << 24, (100, 100)),
        ((7919, 8192), (0, 1), 1 << 24, (989, 8192)),
        ((0, 4096), (0, 1), 1 << 12, (1, 2048)),
        ((1, 2048), (0, 1), 1 << 12, (1, 2048)),
        ((), (), 1, ()),
    ],
)
def test_chunks_are_equal_parts_where_there_are_such(
    shape: tuple[int, ...], split_order: tuple[int, ...], chunk_bytes: int, expected: tuple[int, ...]
) -> None:
    assert choose_chunks(shape, 2, split_order, chunk_bytes) == expected


def test_arrays_in_flight_keep_to_their_bytes() -> None:
    budget, lock, taken, most = reading._Budget(10), threading.Lock(), 0, 0

    def use(nbytes: int) -> None:
        nonlocal taken, most
        budget.take(nbytes)
        with lock:
            taken += nbytes
            most = max(most, taken)
            assert taken <= 10 or taken == nbytes, "a larger one is alone"
        time.sleep(0.001)
        with lock:
            taken -= nbytes
        budget.put_back(nbytes)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(use, nbytes) for nbytes in [3, 7, 1, 25, 10, 4, 4, 2] * 10]:
            done.result(timeout=60)
    assert most == 25


class Device(NamedTuple):
    platform: str


class Place(NamedTuple):
    addressable_devices: frozenset[Device]


def test_less_is_on_its_way_where_devices_have_memory_of_their_own(tmp_path: Path) -> None:
    for platforms, nbytes in ((["cpu", "cpu"], 2 << 30), (["cpu", "gpu"], 512 << 20), (["tpu"], 512 << 20)):
        places: dict[str, Any] = {name: Place(frozenset({Device(name)})) for name in platforms}
        budget = reading._Reading(tmp_path, {}, places, Mock(), False, Mock(), Mock())._budget
        budget.take(nbytes - 1)
        assert budget.has(1)
        budget.take(1)
        assert not budget.has(1)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_chunks_are_delivered_as_they_are_written(storage: Storage, tmp_path: Path) -> None:
    arrays = values(np.dtype(np.float32))
    got = {path: np.zeros_like(array) for path, array in arrays.items()}

    def deliver(path: str, box: Box, chunk: np.ndarray) -> None:
        got[path][box] = chunk

    write(tmp_path, lazy(arrays), storage, scalars={"step": 3}, deliver=deliver)
    for path, array in arrays.items():
        np.testing.assert_array_equal(got[path], array)


def test_every_byte_is_told_once(tmp_path: Path) -> None:
    done: list[int] = []
    records = write(tmp_path, lazy(values(np.dtype(np.float32))), STORAGES[0], advance=done.append)
    assert sum(done) == sum(record["nbytes"] for record in records.values())
    assert len(done) > len(records)


def test_the_arrays_are_an_item_where_one_is_named(tmp_path: Path) -> None:
    arrays = values(np.dtype(np.float32))
    write(tmp_path, lazy(arrays), STORAGES[0], metadata={"scan_layers": True}, item="items")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(tmp_path, ocp.args.Composite(items=ocp.args.PyTreeRestore()))
        metadata = checkpointer.metadata(tmp_path)
    np.testing.assert_array_equal(restored["items"]["a"]["matrix"], arrays["a.matrix"])
    assert metadata.custom_metadata["scan_layers"] is True


@pytest.mark.parametrize(
    "error", [CorruptSourceError("too short"), ValueError("no file"), OSError(5, "a source", "/s")]
)
def test_what_the_source_raises_is_left_as_it_is(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_into(*_: Any) -> None:
        raise error

    monkeypatch.setattr(LazyTensor, "read_into", read_into)
    with pytest.raises(type(error)) as caught:
        write(tmp_path, lazy(values(np.dtype(np.float32))), STORAGES[0])
    assert caught.value is error


def test_memory_is_used_again_only_when_nobody_refers_to_it() -> None:
    """TensorStore may refer to what it writes after it says that it is done."""
    writes, size = compressed._Writes(limit=1 << 30, largest=2 << 20), (2 << 20,)
    first = writes.array(size, np.dtype(np.uint8))
    kept, address = first[5:].reshape(-1, 1), first.ctypes.data
    del first
    assert not np.may_share_memory(writes.array(size, np.dtype(np.uint8)), kept)
    writes = compressed._Writes(limit=1 << 30, largest=2 << 20)
    again = [writes.array(size, np.dtype(np.uint8)).ctypes.data for _ in range(3)]
    assert len(set(again)) == 1
    assert address not in again
