"""Arrays on their way to their devices: host memory for the shards of each, filled box by box, then handed over.

Touching fresh memory takes longer than reading the bytes, and in pieces of 4 kB many times as long. So small shards lie
side by side in large pieces of memory, for which NumPy asks for huge pages, each where XLA's CPU backend can leave it
instead of copying it. A piece lives as long as the last shard in it: neighbours in a checkpoint share one, and what is
large has one of its own.
"""

import functools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from lazyload.layouts.source import Box

Limits = tuple[tuple[int, int], ...]
"""Start and stop for each dimension."""

_ALIGNMENT = 64
"""What XLA's CPU backend asks of a buffer that it takes over instead of copying it."""

_HUGE_PAGE_BYTES = 2 << 20
_PIECE_BYTES = 64 << 20
"""What begins and ends with a huge page has no small ones."""

_LARGE_BYTES = 8 << 20
"""What has memory of its own."""


class HostMemory:
    """Memory for shards."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._piece = np.empty(0, np.uint8)
        self._used = 0

    def take(self, nbytes: int) -> np.ndarray:
        """Aligned memory with arbitrary content."""
        if nbytes >= _LARGE_BYTES:
            # Were its first page a huge one, so would be its last, most of it for nothing.
            return _aligned(nbytes, _ALIGNMENT)
        size = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        with self._lock:
            if self._used + size > self._piece.nbytes:
                self._piece, self._used = _aligned(_PIECE_BYTES, _HUGE_PAGE_BYTES), 0
            start = self._used
            self._used += size
            return self._piece[start : start + nbytes]


def _aligned(nbytes: int, alignment: int) -> np.ndarray:
    memory = np.empty(nbytes + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + nbytes]


class Assembly:
    """One array; threads may fill different boxes of it at the same time."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding, memory: HostMemory):
        """Takes memory for each shard that this process's devices hold, once where several hold the same.

        Args:
            shape: The array's.
            dtype: Its dtype.
            sharding: Where it goes.
            memory: Where the memory comes from.
        """
        self.shape = shape
        self.dtype = dtype
        self._sharding = sharding
        self._shards: dict[Limits, np.ndarray] = {}
        for limits in _shards_here(sharding, shape):
            extents = [stop - start for start, stop in limits]
            nbytes = math.prod(extents) * dtype.itemsize
            self._shards[limits] = memory.take(nbytes).view(dtype).reshape(extents)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory that it takes."""
        return sum(shard.nbytes for shard in self._shards.values())

    def parts(self, box: Box) -> Iterator[tuple[np.ndarray, tuple[slice, ...]]]:
        """What of the shards lies in a box: views of their memory, and where in the box each of them is."""
        for limits, shard in self._shards.items():
            inside, where = [], []
            for cut, (start, stop) in zip(box, limits, strict=True):
                low, high = max(cut.start, start), min(cut.stop, stop)
                if low >= high:
                    break
                inside.append(slice(low - start, high - start))
                where.append(slice(low - cut.start, high - cut.start))
            else:
                yield _view(shard, inside), tuple(where)

    def put(self, box: Box, values: np.ndarray) -> None:
        """Fills a box."""
        values = _bits(values)
        for view, where in self.parts(box):
            _bits(view)[...] = values[where]

    def array(self) -> jax.Array:
        """The array on its devices, once all of it has been filled; the memory is JAX's from then on."""
        shards = self._shards
        return jax.make_array_from_callback(
            self.shape, self._sharding, lambda index: shards[_limits(index, self.shape)]
        )


@functools.lru_cache(maxsize=4096)
def _shards_here(sharding: Sharding, shape: tuple[int, ...]) -> tuple[Limits, ...]:
    """The shards of an array that this process's devices hold, each once."""
    indices = sharding.addressable_devices_indices_map(shape).values()
    return tuple(dict.fromkeys(_limits(index, shape) for index in indices))


def _limits(index: Any, shape: tuple[int, ...]) -> Limits:
    return tuple(cut.indices(size)[:2] for cut, size in zip(index or (), shape, strict=True))


def _view(array: np.ndarray, index: Sequence[slice]) -> np.ndarray:
    """A part of an array; also where it has no dimensions, which indexing alone would make a copy."""
    at: tuple[Any, ...] = (*index, ...)
    view: np.ndarray = array[at]
    return view


def _bits(array: np.ndarray) -> np.ndarray:
    """The same memory in a dtype that NumPy copies quickly."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize <= 8 else array
