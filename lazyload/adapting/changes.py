"""What an adapter makes of one tensor, box by box, in float32.

A box is the same, bit for bit but for the rounding of its own product, whatever other boxes are read: a norm is that of
whole rows, which are read some at a time for it, at the same places however the tensor is cut.
"""

import functools
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from lazyload.formats.peft import LowRank, Tokens
from lazyload.layouts.source import Box
from lazyload.sources.adapter import AdapterFiles

_FLOAT32 = np.dtype(np.float32)
_TILE_SIZE = 1 << 20
"""How many values are held at a time for a norm."""

Read = Callable[[Box], np.ndarray]
"""Reads a box of a tensor."""


class Change(Protocol):
    """What an adapter makes of one tensor."""

    @property
    def reads(self) -> int:
        """How often it reads all of what it changes."""

    def __call__(self, index: Box) -> np.ndarray:
        """A box of what it makes of it."""


class Product:
    """The product of two thin matrices, `scaling * B A`."""

    def __init__(self, files: AdapterFiles, low_rank: LowRank):
        """Reads nothing.

        Args:
            files: The adapter.
            low_rank: Which two of its tensors.
        """
        self._files, self._low_rank = files, low_rank

    def __call__(self, index: Box) -> np.ndarray:
        """A box of it."""
        of = self._low_rank
        rows, columns = (index[1], index[0]) if of.is_transposed else index
        a = self._files.whole(of.a)[:, columns].astype(_FLOAT32)
        b = self._files.whole(of.b)[rows].astype(_FLOAT32)
        change: np.ndarray = (b @ a) * np.float32(of.scaling)
        return change.T if of.is_transposed else change


class Added:
    """A tensor with something added to it."""

    reads = 1

    def __init__(self, read: Read, change: Read):
        """Reads nothing.

        Args:
            read: Reads what it is added to.
            change: Computes what is added.
        """
        self._read, self._change = read, change

    def __call__(self, index: Box) -> np.ndarray:
        """A box of the sum."""
        summed: np.ndarray = self._read(index).astype(_FLOAT32) + self._change(index)
        return summed


class Rescaled:
    """A matrix whose rows have lengths of their own: DoRA; of an embedding, its columns have.

    Attributes:
        of_embedding: Whether the columns have them.
        reads: How often all of the matrix is read while it is passing. A tile is read for its norms and soon again; of
            an embedding all is read before, and what is far away is fetched once more.
    """

    def __init__(self, whole: Read, shape: tuple[int, int], magnitude: np.ndarray, *, of_embedding: bool):
        """Reads nothing.

        Args:
            whole: Reads the matrix.
            shape: Its shape.
            magnitude: The lengths.
            of_embedding: Whether they are the columns'.
        """
        self._whole, self._shape, self._magnitude = whole, shape, magnitude.astype(_FLOAT32)
        self.of_embedding = of_embedding
        self.reads = 1 if of_embedding else 2
        self._rows = max(1, _TILE_SIZE // max(1, shape[1]))
        count = 1 if of_embedding else -(-shape[0] // self._rows)
        self._factors: list[np.ndarray | None] = [None] * count
        self._locks = [threading.Lock() for _ in range(count)]

    def __call__(self, index: Box) -> np.ndarray:
        """A box of the matrix, with these lengths."""
        rows, columns = index
        if self.of_embedding:
            factors = self._tile(0)[columns]
        else:
            tiles = range(rows.start // self._rows, -(-rows.stop // self._rows))
            first = tiles.start * self._rows
            found = [self._tile(number) for number in tiles] or [np.empty(0, _FLOAT32)]
            factors = np.concatenate(found)[rows.start - first : rows.stop - first, None]
        scaled: np.ndarray = factors * self._whole(index)
        return scaled

    def _tile(self, number: int) -> np.ndarray:
        """What each row of a tile, or each column of all, is multiplied by."""
        with self._locks[number]:
            if (known := self._factors[number]) is None:
                known = self._of_columns() if self.of_embedding else self._of_rows(number * self._rows)
                self._factors[number] = known
            return known

    def _of_rows(self, first: int) -> np.ndarray:
        rows = slice(first, min(first + self._rows, self._shape[0]))
        squares = np.square(self._whole((rows, slice(0, self._shape[1]))), dtype=np.float64)
        return _divided(self._magnitude[rows], squares.sum(axis=1))

    def _of_columns(self) -> np.ndarray:
        squares = np.zeros(self._shape[1])
        for first in range(0, self._shape[0], self._rows):
            rows = slice(first, min(first + self._rows, self._shape[0]))
            squares += np.square(self._whole((rows, slice(0, self._shape[1]))), dtype=np.float64).sum(axis=0)
        return _divided(self._magnitude, squares)


class WithRows:
    """An embedding with the rows of some tokens replaced."""

    reads = 1

    def __init__(self, read: Read, files: AdapterFiles, tokens: Tokens):
        """Reads nothing.

        Args:
            read: Reads the embedding.
            files: The adapter.
            tokens: Which of its tensors, and which rows.
        """
        self._read, self._files, self._tokens = read, files, tokens

    def __call__(self, index: Box) -> np.ndarray:
        """A box of the embedding."""
        rows, columns = index
        values = self._read(index).astype(_FLOAT32)
        own = self._files.whole(self._tokens.tensor)
        for number, row in enumerate(self._tokens.indices):
            if rows.start <= row < rows.stop:
                values[row - rows.start] = own[number, columns]
        return values


def bias(files: AdapterFiles, tensor: str, scaling: float) -> Read:
    """A vector, multiplied by a number."""
    return functools.partial(_scaled, files, tensor, np.float32(scaling))


def _scaled(files: AdapterFiles, tensor: str, scaling: np.float32, index: Box) -> np.ndarray:
    scaled: np.ndarray = files.whole(tensor)[index].astype(_FLOAT32) * scaling
    return scaled


def _divided(magnitude: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """What makes vectors as long as they are to be; nothing makes those of zeros longer."""
    lengths = np.sqrt(squares).astype(_FLOAT32)
    factors: np.ndarray = np.zeros_like(lengths)
    np.divide(magnitude, lengths, out=factors, where=lengths > 0)
    return factors
