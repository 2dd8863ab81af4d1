"""Dealing: every chunk is one process's, alone, and what must stay together does."""

import collections
import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from support.in_memory import Arrays, Sizes, lazy

from lazyload import families
from lazyload.checkpoint import ranges
from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.ranges import file_of
from lazyload.checkpoint.sharing import Share
from lazyload.checkpoint.write import shares
from lazyload.formats.nnx import layout
from lazyload.layouts.conversion import resolve
from lazyload.layouts.layout import Layout
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box, TensorInfo
from lazyload.layouts.unroll import unroll
from lazyload.storage import Storage

STORAGE = Storage(ocdbt=True, zarr3=True, compression="none", chunk_bytes=1 << 12)
ARRAYS = {f"layers.{n}.kernel": np.zeros((96, 64), ml_dtypes.bfloat16) for n in range(6)} | {
    f"layers.{n}.scale": np.zeros(64, ml_dtypes.bfloat16) for n in range(6)
}


def dealt(count: int, storage: Storage = STORAGE, *, in_bucket: bool = False, is_far: bool = False) -> list[Share]:
    stored_bytes = (lambda name: ARRAYS[name].nbytes) if is_far else None
    found = shares(lazy(ARRAYS), storage, count, scalars={"step": 0}, in_bucket=in_bucket, stored_bytes=stored_bytes)
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


def test_a_row_is_fetched_by_one_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    order = sorted(ARRAYS)
    monkeypatch.setattr(Arrays, "position", lambda source, name: order.index(name))
    found = dealt(4, is_far=True)
    rows = [[(order.index(name), at) for name, ranges in share.rows.items() for at in ranges] for share in found]
    assert all(before[-1] < after[0] for before, after in itertools.pairwise(rows)), "one stretch each"
    for name, array in ARRAYS.items():
        ranges = sorted(limits for share in found for limits in share.rows.get(name, ()))
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])], "none twice, and all"
        assert ranges[-1][1] == array.shape[0]
    assert max(share.nbytes for share in found) < 1.05 * sum(share.nbytes for share in found) / 4 + (1 << 12)


@pytest.mark.parametrize("sizes", [{"a": 20, "b": 30, "c": 71}, {"a": 6, "b": 2, "c": 3000}], ids=str)
def test_chunks_of_the_same_rows_are_fetched_by_one(sizes: Mapping[str, int]) -> None:
    """Of one that is transposed, and whose rows are some of a chunk's, or of several chunks."""
    stored, transposed = Layout({"kernel": "role : (a b) c"}), Layout({"kernel": "role : c b a"})
    kernel = np.arange(math.prod(sizes.values()), dtype=np.float32).reshape(-1, sizes["c"])
    source = Arrays({"kernel": kernel})
    tensors = resolve(source, stored, transposed, Sizes({**sizes, "layer": 1}, {}), kernel.dtype).tensors
    found = shares(tensors, STORAGE, 4, in_bucket=False, stored_bytes=lambda name: kernel.nbytes)
    for share in found:
        for path, number in share.chunks:
            source.rows_read.clear()
            assert tensors[path][[*boxes(tensors[path].shape, share.records[path].chunks)][number]].size
            start, stop = source.rows_read["kernel"]
            assert any(first <= start and stop <= last for first, last in share.rows["kernel"])
    ranges = sorted(limits for share in found for limits in share.rows["kernel"])
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])], "none twice, and all"
    assert ranges[-1][1] == len(kernel)


@dataclasses.dataclass(frozen=True)
class Headers:
    """A checkpoint of which only shapes are known, one tensor after the other."""

    tensors: Mapping[str, TensorInfo]
    starts: Mapping[str, int]

    def stored_bytes(self, name: str) -> int:
        return math.prod(self.tensors[name].shape) * self.tensors[name].dtype.itemsize

    def position(self, name: str) -> int:
        return self.starts[name]

    def read(self, name: str, index: Box) -> np.ndarray:
        raise AssertionError(f"{name} is read")


def of_hub(model: str, **changes: object) -> tuple[Headers, Mapping[str, LazyTensor]]:
    """The shapes of a published model, in bfloat16, and its conversion."""
    file = Path(__file__).parents[1] / "families" / "hub_configs" / f"{model}.json"
    config = json.loads(file.read_text())["config"] | changes
    family = families.find(config)
    decoder = family.config(config)
    dtype = np.dtype(ml_dtypes.bfloat16)
    stored = family.huggingface(decoder)
    infos = {array.path: TensorInfo(array.shape, dtype) for array in unroll(stored, decoder).values()}
    sizes = [math.prod(info.shape) * dtype.itemsize for info in infos.values()]
    headers = Headers(infos, dict(zip(infos, itertools.accumulate(sizes, initial=0), strict=False)))
    return headers, resolve(headers, stored, layout(decoder), decoder, dtype).tensors


@pytest.mark.parametrize(
    ("model", "changes", "counts"),
    [
        ("Llama-3.3-70B-Instruct", {}, (2, 64, 256)),
        # A quarter of it, and of its 256 hosts.
        ("DeepSeek-V3", {"num_hidden_layers": 16}, (64,)),
        ("Qwen3-0.6B", {}, (2, 4, 8, 16, 32)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_shares_of_published_models_are_equal(model: str, changes: Mapping[str, object], counts: Iterable[int]) -> None:
    headers, tensors = of_hub(model, **changes)
    storage = Storage().resolve({})
    for count in counts:
        found = shares(tensors, storage, count, in_bucket=True, stored_bytes=headers.stored_bytes)
        read = [
            sum(
                (stop - start) * headers.stored_bytes(name) // headers.tensors[name].rows
                for name, ranges in share.rows.items()
                for start, stop in ranges
            )
            for share in found
        ]
        assert sum(read) == sum(map(headers.stored_bytes, headers.tensors)), "each byte once"
        assert max(read) * count <= 1.05 * sum(read), (count, max(read) * count / sum(read))


def test_compressed_chunks_are_dealt_one_by_one_in_a_bucket_too() -> None:
    sizes = [share.nbytes for share in dealt(4, replace(STORAGE, compression="zstd"), in_bucket=True)]
    assert max(sizes) - min(sizes) <= 1 << 12
