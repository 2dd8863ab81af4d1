"""A small model and checkpoints in memory, for tests of layouts."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st

from lazyload.layouts.axes import Group
from lazyload.layouts.conversion import resolve
from lazyload.layouts.layout import Layout
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box, TensorInfo
from lazyload.storage import Storage

FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model whose roles are in all layers, or in the layers or groups of layers that are given for them."""

    axes: Mapping[str, int]
    splits: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: {"head_dim": ("half", "pair")})
    layers: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    of_role: Mapping[str, Sequence[Group]] = dataclasses.field(default_factory=dict)

    def groups(self, role: str) -> Sequence[Group]:
        every = Group(self.layers.get(role, range(self.axes["layer"])), self.axes)
        return self.of_role.get(role, [every])


class Arrays:
    """A checkpoint in memory that counts what is read of it."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self.arrays = arrays
        self.tensors = {name: TensorInfo(array.shape, array.dtype) for name, array in arrays.items()}
        self.bytes_read = 0
        self.reads = 0
        self.names_read: set[str] = set()
        self.rows_read: dict[str, tuple[int, int]] = {}

    def read(self, name: str, index: Box) -> np.ndarray:
        block = np.array(self.arrays[name][index], order="C")
        assert block.shape == tuple(cut.stop - cut.start for cut in index)
        self.bytes_read += block.nbytes
        self.reads += 1
        self.names_read.add(name)
        if index and block.size:
            first, last = self.rows_read.get(name, (index[0].start, index[0].stop))
            self.rows_read[name] = min(first, index[0].start), max(last, index[0].stop)
        return block

    def position(self, name: str) -> int:
        return list(self.arrays).index(name)


SIZES = Sizes({"layer": 4, "head": 3, "kv_head": 1, "head_dim": 4, "half": 2, "pair": 2, "embed": 5, "mlp": 3,
               "gate_up": 2, "expert": 3, "vocab": 7})  # fmt: skip


def slices(shape: Sequence[int]) -> st.SearchStrategy[Box]:
    def cut(size: int) -> st.SearchStrategy[slice]:
        bounds = st.tuples(st.integers(0, size), st.integers(0, size))
        return bounds.map(lambda pair: slice(min(pair), max(pair)))

    return st.tuples(*(cut(size) for size in shape))


STORAGES = [
    Storage(ocdbt, zarr3, compression, 4096)
    for ocdbt, zarr3, compression in itertools.product((True, False), (True, False), ("none", "zstd"))
]


def lazy(arrays: dict[str, np.ndarray]) -> dict[str, LazyTensor]:
    """The arrays as lazy tensors of themselves."""
    letters = {path: [f"axis{number}" for number in range(array.ndim)] for path, array in arrays.items()}
    found = {}
    for path, array in arrays.items():
        layout = Layout({path: f"role : {' '.join(letters[path])}"})
        sizes = Sizes(dict(zip(letters[path], array.shape, strict=True)) | {"layer": 1}, {})
        found |= resolve(Arrays({path: array}), layout, layout, sizes, array.dtype).tensors
    return found
