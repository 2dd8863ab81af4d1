"""Large arrays of a checkpoint in a file without chunks, so that none of them is decoded twice.

An array that a program has saved has one chunk for each device that held a part of it: it may be large, and cannot be
decoded in part. Where layers are stacked, every tensor of a layer takes a little of each.
"""

import errno
import itertools
import math
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lazyload.layouts.boxes import boxes_of, extents_of
from lazyload.layouts.source import Box

_PIECE_BYTES = 16 << 20


class Unpacked:
    """An array in C order in a file without a name, which the kernel removes when the process ends, however it does."""

    def __init__(self, array: Any, folder: Path):
        """Decodes chunk after chunk, one at a time, piece by piece.

        Args:
            array: A `tensorstore.TensorStore` that keeps one of its chunks in memory while it is read.
            folder: On which disk.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        self._shape = tuple(array.shape)
        self._dtype = np.dtype(array.dtype.numpy_dtype)
        with tempfile.TemporaryFile(dir=folder) as file:
            self._descriptor = os.dup(file.fileno())
        # Whoever still reads holds this object, unless it is closed.
        self._close = weakref.finalize(self, os.close, self._descriptor)
        try:
            self._fill(array)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the file, once nobody reads it any more."""
        self._close()

    def _fill(self, array: Any) -> None:
        for chunk in boxes_of(self._shape, array.chunk_layout.read_chunk.shape):
            sizes = [cut.stop - cut.start for cut in chunk]
            for piece in boxes_of(sizes, extents_of(sizes, _PIECE_BYTES // self._dtype.itemsize)):
                box = tuple(
                    slice(whole.start + cut.start, whole.start + cut.stop)
                    for whole, cut in zip(chunk, piece, strict=True)
                )
                self._write(box, array[box].read().result())

    def read(self, index: Box) -> np.ndarray:
        """Reads one box.

        Raises:
            OSError: The file cannot be read.
        """
        out = np.empty([cut.stop - cut.start for cut in index], self._dtype)
        memory = out.reshape(-1).view(np.uint8).data
        done = 0
        for start, nbytes in self._runs(index):
            stop = done + nbytes
            while done < stop:
                read = os.preadv(self._descriptor, [memory[done:stop]], start + nbytes - (stop - done))
                if not read:
                    raise OSError(errno.EIO, "an array that was unpacked has been cut off")
                done += read
        return out

    def _write(self, index: Box, values: np.ndarray) -> None:
        memory = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        done = 0
        for start, nbytes in self._runs(index):
            stop = done + nbytes
            while done < stop:
                done += os.pwrite(self._descriptor, memory[done:stop], start + nbytes - (stop - done))

    def _runs(self, index: Box) -> Iterator[tuple[int, int]]:
        """Where the stretches of the file begin that a box consists of, in its order, and how many bytes each has."""
        inner = _inner(index, self._shape)
        strides = [math.prod(self._shape[number + 1 :]) * self._dtype.itemsize for number in range(len(self._shape))]
        cuts = index[inner:]
        nbytes = math.prod(cut.stop - cut.start for cut in cuts) * self._dtype.itemsize
        first = sum(cut.start * stride for cut, stride in zip(cuts, strides[inner:], strict=True))
        for place in itertools.product(*(range(cut.start, cut.stop) for cut in index[:inner])):
            yield first + sum(at * stride for at, stride in zip(place, strides, strict=False)), nbytes


def _inner(index: Box, shape: Sequence[int]) -> int:
    """From which dimension on a box is one stretch: all but the first of them are whole."""
    number = len(shape)
    while number > 0:
        number -= 1
        if (index[number].start, index[number].stop) != (0, shape[number]):
            return number
    return number
