"""Dealing: every chunk is one process's, alone, and what must stay together does."""

import collections
import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from support.in_memory import Arrays, lazy

from lazyload.checkpoint import ranges
from lazyload.checkpoint.ranges import file_of
from lazyload.checkpoint.sharing import Share
from lazyload.checkpoint.write import shares
from lazyload.storage import Storage

STORAGE = Storage(ocdbt=True, zarr3=True, compression="none", chunk_bytes=1 << 12)
ARRAYS = {f"layers.{n}.kernel": np.zeros((96, 64), ml_dtypes.bfloat16) for n in range(6)} | {
    f"layers.{n}.scale": np.zeros(64, ml_dtypes.bfloat16) for n in range(6)
}


def dealt(count: int, storage: Storage = STORAGE, *, in_bucket: bool = False, is_far: bool = False) -> list[Share]:
    found = shares(lazy(ARRAYS), storage, count, scalars={"step": 0}, in_bucket=in_bucket, is_far=is_far)
    seen = collections.Counter(place for share in found for place in share.chunks)
    assert set(seen.values()) == {1}
    assert sum(share.nbytes for share in found) == sum(array.nbytes for array in ARRAYS.values())
    return found


def holders(shares: list[Share], of: object) -> dict[object, set[int]]:
    """The shares in which something of a kind is, by what a function says of each chunk."""
    found: dict[object, set[int]] = collections.defaultdict(set)
    for share in shares:
        for path, number in share.chunks:
            found[of(share, path, number)].add(share.index)
    return found


@pytest.mark.parametrize("count", [1, 3, 4, 100])
def test_chunks_are_dealt_evenly(count: int) -> None:
    sizes = [share.nbytes for share in dealt(count)]
    assert max(sizes) - min(sizes) <= 1 << 12


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_an_object_is_written_by_one(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(ranges, "_OBJECT_BYTES", 1 << 13)
    found = dealt(count, in_bucket=True)
    objects = holders(found, lambda share, path, number: file_of(share.records[path], number)[0])
    assert {len(several) for several in objects.values()} == {1}
    assert objects[found[0].records["step"].file] == {0}, "which completes what is around the arrays"
    assert {len(several) for several in holders(dealt(4), lambda share, path, number: path).values()} > {1}


def test_what_is_made_of_one_tensor_is_fetched_by_one_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order = sorted(ARRAYS)
    monkeypatch.setattr(Arrays, "position", lambda source, name: order.index(name))
    found = dealt(4, is_far=True)
    assert {len(several) for several in holders(found, lambda share, path, number: path).values()} == {1}
    places = [[order.index(path) for path, _ in share.chunks] for share in found]
    assert all(max(before) < min(after) for before, after in itertools.pairwise(places))


def test_compressed_chunks_are_dealt_one_by_one_in_a_bucket_too() -> None:
    sizes = [share.nbytes for share in dealt(4, replace(STORAGE, compression="zstd"), in_bucket=True)]
    assert max(sizes) - min(sizes) <= 1 << 12
