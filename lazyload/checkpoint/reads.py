"""What a fleet reads of an array: the bytes that each process reads for its devices, and how to read each about once.

A process reads stretches of a chunk where what it needs lies together, in the file and in memory, and else the rows in
which it needs something. So where a mesh splits an array across its rows, or not at all, every process reads all of it.
There it is better to give each device an equal part first, of rows that lie together, and to have devices exchange.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.pieces import start_of_stretch
from lazyload.checkpoint.records import ArrayRecord
from lazyload.layouts.source import Box

Limits = tuple[tuple[int, int], ...]
"""Start and stop for each dimension."""

Shards = frozenset[Limits]
"""What of an array one process holds."""

_WORTH_BYTES = 1 << 20
"""What is smaller is read by whoever needs it."""

_MOST_READS = 1.1
"""So often may a fleet read an array before devices exchange it instead."""


@dataclass(frozen=True)
class Kind:
    """Arrays that are stored alike, uncompressed.

    Example:
        >>> Kind((8, 4), (8, 4), 2).nbytes
        64

    Attributes:
        shape: Of the array.
        chunks: Of its chunks.
        itemsize: Bytes of an element.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    itemsize: int

    @classmethod
    def of(cls, record: ArrayRecord) -> "Kind":
        """The kind of an array."""
        return cls(record.shape, record.chunks, record.numpy_dtype.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class Split:
    """An array in equal parts for devices in a row: so many along one dimension, each for neighbouring devices.

    Attributes:
        dimension: Which one is cut.
        parts: Into how many parts.
    """

    dimension: int
    parts: int

    def limits(self, kind: Kind, devices: int) -> list[Limits]:
        """What each device holds."""
        size, copies = kind.shape[self.dimension] // self.parts, devices // self.parts
        whole = [(0, extent) for extent in kind.shape]
        return [
            (
                *whole[: self.dimension],
                (device // copies * size, (device // copies + 1) * size),
                *whole[self.dimension + 1 :],
            )
            for device in range(devices)
        ]


def nbytes_read(kind: Kind, limits: Iterable[Limits], owners: Sequence[int]) -> int:
    """Bytes of an array that all processes read together, each for its own devices.

    Args:
        kind: How the array is stored.
        limits: What each device holds.
        owners: The process of each device.
    """
    owned: dict[int, set[Limits]] = {}
    for shard, owner in zip(limits, owners, strict=True):
        owned.setdefault(owner, set()).add(shard)
    return sum(_nbytes_read_by_one(kind, frozenset(shards)) for shards in owned.values())


def better_split(kind: Kind, limits: Sequence[Limits], owners: Sequence[int]) -> Split | None:
    """How to read an array about once, if where its devices are to have it would take more; else None.

    Args:
        kind: How the array is stored.
        limits: What each device is to have.
        owners: The process of each device.
    """
    if kind.nbytes < _WORTH_BYTES:
        return None
    nbytes = nbytes_read(kind, limits, owners)
    if nbytes <= _MOST_READS * kind.nbytes:
        return None
    taken = {split: nbytes_read(kind, split.limits(kind, len(owners)), owners) for split in _splits(kind, len(owners))}
    best = min(taken, key=lambda split: taken[split], default=None)
    return best if best and taken[best] < nbytes else None


def _splits(kind: Kind, devices: int) -> Iterator[Split]:
    """Ways to cut an array for devices along dimensions whose rows lie together in the file."""
    for dimension, size in enumerate(kind.shape):
        parts = math.gcd(size, devices)
        if parts > 1:
            yield Split(dimension, parts)
        if kind.chunks[dimension] > 1:
            return


@functools.lru_cache(maxsize=65536)
def _nbytes_read_by_one(kind: Kind, shards: Shards) -> int:
    """Bytes that one process reads of an array."""
    return sum(_elements_read(kind, box, shards) for box in boxes(kind.shape, kind.chunks)) * kind.itemsize


def _elements_read(kind: Kind, box: Box, shards: Set[Limits]) -> int:
    """Elements that one process reads of a chunk; see `lazyload.checkpoint.uncompressed.UncompressedReader`."""
    axis = next((number for number, size in enumerate(kind.chunks) if size > 1), None)
    needed, is_whole = 0, True
    rows: list[tuple[int, int]] = []
    for shard in shards:
        common = [(max(cut.start, low), min(cut.stop, high)) for cut, (low, high) in zip(box, shard, strict=True)]
        if any(low >= high for low, high in common):
            continue
        stored = [slice(low - cut.start, high - cut.start) for (low, high), cut in zip(common, box, strict=True)]
        inside = [slice(low - start, high - start) for (low, high), (start, _) in zip(common, shard, strict=True)]
        extents = [high - low for low, high in shard]
        is_whole = is_whole and None not in (start_of_stretch(stored, kind.chunks), start_of_stretch(inside, extents))
        needed += math.prod(high - low for low, high in common)
        rows.append((0, 1) if axis is None else common[axis])
    if is_whole:
        return needed
    return _length(rows) * math.prod(kind.chunks[len(kind.chunks) if axis is None else axis + 1 :])


def _length(ranges: Iterable[tuple[int, int]]) -> int:
    """How much ranges cover together."""
    covered, end = 0, 0
    for start, stop in sorted(ranges):
        covered += max(0, stop - max(start, end))
        end = max(end, stop)
    return covered
