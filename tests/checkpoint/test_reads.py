"""What a fleet reads: what is predicted is what is read, and every array can be read about once."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.in_memory import lazy

from lazyload.checkpoint.assembly import Assembly, HostMemory
from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.files import FileRanges
from lazyload.checkpoint.pieces import Piece
from lazyload.checkpoint.reads import Kind, Split, better_split, nbytes_read
from lazyload.checkpoint.records import ArrayRecord
from lazyload.checkpoint.uncompressed import UncompressedReader
from lazyload.checkpoint.write import write
from lazyload.storage import Storage

ALL = ("x", "y")
SPECS = [PartitionSpec(), PartitionSpec(ALL), PartitionSpec(None, ALL), PartitionSpec(None, None, ALL)]
CASES = [
    *((shape, spec) for shape in ((48, 8, 64), (8, 48, 64)) for spec in SPECS),
    *(((1, 512, 64), spec) for spec in SPECS[2:]),
    # A chunk of which each device has some columns of some rows.
    ((1, 64, 64), PartitionSpec(None, "x", "y")),
]


@pytest.mark.parametrize(("shape", "spec"), CASES, ids=str)
def test_what_is_predicted_is_what_is_read(tmp_path: Path, shape: tuple[int, ...], spec: PartitionSpec) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    storage = Storage(True, True, "none", 16384)
    record = ArrayRecord.from_dict(write(tmp_path, lazy({"a": array}), storage)["a"])
    kind = Kind(shape, tuple(record.chunks), 4)
    for device in jax.devices():
        place = jax.sharding.SingleDeviceSharding(device)
        index = NamedSharding(jax.make_mesh((4, 2), ALL), spec).devices_indices_map(shape)[device]
        limits = tuple(cut.indices(size)[:2] for cut, size in zip(index, shape, strict=True))
        assembly = Assembly(shape, np.dtype(np.float32), place, HostMemory())
        shard = np.empty([high - low for low, high in limits], np.float32)
        assembly._shards = {limits: shard}
        ranges = Counting(tmp_path)
        with UncompressedReader(tmp_path, storage, ranges) as reader:
            for number, box in enumerate(boxes(shape, record.chunks)):
                read_piece(reader, Piece("a", number, box, 0), record, assembly)
        assert ranges.nbytes == nbytes_read(kind, [limits], [0])
        np.testing.assert_array_equal(shard, array[index])


class Counting(FileRanges):
    """Counts what is read; a row at a time, of what several rows would be read of at once."""

    strip_bytes = 1
    nbytes = 0

    def read(self, file: str, offset: int, parts: Sequence[memoryview]) -> None:
        self.nbytes += sum(map(len, parts))
        super().read(file, offset, parts)


def read_piece(reader: UncompressedReader, piece: Piece, record: ArrayRecord, assembly: Assembly) -> None:
    """Reads what a shard has of a chunk."""
    stretches = reader.stretches(piece, record, assembly)
    if stretches is not None:
        reader.fill(stretches)
        return
    for box, values in reader.strips(piece, record, assembly):
        assembly.put(box, values)


def columns(shape: tuple[int, ...], devices: int) -> list[tuple[tuple[int, int], ...]]:
    """The last dimension in equal parts."""
    size = shape[-1] // devices
    return [(*[(0, extent) for extent in shape[:-1]], (n * size, (n + 1) * size)) for n in range(devices)]


def test_an_array_that_is_split_across_its_rows_is_read_by_rows() -> None:
    kind, owners = Kind((28672, 8192), (1024, 8192), 2), [device // 4 for device in range(256)]
    limits = columns(kind.shape, 256)
    assert nbytes_read(kind, limits, owners) == 64 * kind.nbytes
    split = better_split(kind, limits, owners)
    assert split == Split(0, 256)
    assert nbytes_read(kind, split.limits(kind, 256), owners) == kind.nbytes


def test_rows_that_devices_do_not_divide_go_to_fewer_of_them() -> None:
    kind, owners = Kind((151936, 4096), (2048, 4096), 2), [device // 4 for device in range(256)]
    split = better_split(kind, columns(kind.shape, 256), owners)
    assert split == Split(0, 128)
    assert nbytes_read(kind, split.limits(kind, 256), owners) == kind.nbytes


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Kind((4096,), (4096,), 2), "it is small"),
        (Kind((8191, 8192), (1024, 8192), 2), "nothing divides its rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_read_as_it_is(kind: Kind, why: str) -> None:
    limits = [tuple((0, size) for size in kind.shape)] * 8
    assert better_split(kind, limits, range(8)) is None, why


def test_what_every_process_reads_its_own_of_is_not_exchanged() -> None:
    kind = Kind((8192, 8192), (1024, 8192), 2)
    assert better_split(kind, Split(0, 8).limits(kind, 8), range(8)) is None
