"""Codes of few bits: how they lie in bytes and words, and the numbers that they stand for."""

import math
from dataclasses import dataclass

import numpy as np

from lazyload.layouts.source import Box
from lazyload.sources.packed.stored import Read

_WORD = 32

_FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
FP4_PAIRS = np.stack([np.tile(_FP4_VALUES, 16), np.repeat(_FP4_VALUES, 16)], axis=-1).view(np.uint64)[:, 0]
"""The two values of every byte of 4-bit floats (E2M1), the low code first, as one number: NumPy gathers it four times
as fast as a pair."""


def byte_values(dtype: np.dtype) -> np.ndarray:
    """The value of every byte in a dtype of 8 bits, float32."""
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)


def look_up(table: np.ndarray, codes: np.ndarray, out: np.ndarray) -> None:
    """Does `out[...] = table[codes]` for bytes and a table of 256, without the copies that NumPy makes for indexing."""
    np.take(table, codes, out=out, mode="wrap")


@dataclass(frozen=True)
class Integers:
    """Unsigned integers of 1 to 8 bits, packed one after the other into words of 32, the low bits first.

    An integer may lie across two words, and the last words of a row may hold bits of no meaning.

    Attributes:
        tensor: The words.
        shape: The shape of the integers.
        bits: Of each integer.
        axis: The dimension along which they are packed.
        order: For each place in a word, the place of its integer among those of the word; empty where that is the same.
    """

    tensor: str
    shape: tuple[int, int]
    bits: int
    axis: int
    order: tuple[int, ...] = ()

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the words."""
        counts = list(self.shape)
        counts[self.axis] = -(-counts[self.axis] * self.bits // _WORD)
        return tuple(counts)

    @property
    def at_once(self) -> int:
        """The least number of integers that begin with a word and end with one."""
        return _WORD // math.gcd(self.bits, _WORD)

    @property
    def _words_at_once(self) -> int:
        return self.bits // math.gcd(self.bits, _WORD)

    def widened(self, box: Box) -> Box:
        """The least box around another that begins and ends with a word; it may end behind the last integer."""
        cut = box[self.axis]
        start, stop = cut.start // self.at_once, -(-cut.stop // self.at_once)
        return self._along(box, slice(start * self.at_once, stop * self.at_once))

    def read_words(self, read: Read, box: Box) -> np.ndarray:
        """The words of a box that has been widened, uint32."""
        cut, most = box[self.axis], self.stored_shape[self.axis]
        words = slice(*(end // self.at_once * self._words_at_once for end in (cut.start, cut.stop)))
        found = read(self.tensor, self._along(box, slice(words.start, min(words.stop, most)))).view(np.uint32)
        missing = max(0, words.stop - most)
        return np.pad(found, [(0, missing if axis == self.axis else 0) for axis in (0, 1)]) if missing else found

    def words_of(self, words: np.ndarray, box: Box) -> np.ndarray:
        """Those words which hold a part of what they hold; the part is counted from their beginning, and widened."""
        cut = box[self.axis]
        return words[
            self._along(box, slice(*(end // self.at_once * self._words_at_once for end in (cut.start, cut.stop))))
        ]

    def unpack(self, words: np.ndarray, out: np.ndarray) -> None:
        """Fills a contiguous array of numbers, in float32, from its words."""
        grouped, values = self._split(words, self._words_at_once), self._split(out, self.at_once)
        mask = np.uint32((1 << self.bits) - 1)
        for place in range(self.at_once):
            word, shift = divmod(place * self.bits, _WORD)
            codes = grouped[..., word] >> np.uint32(shift)
            if shift + self.bits > _WORD:
                codes |= grouped[..., word + 1] << np.uint32(_WORD - shift)
            codes &= mask
            # NumPy is quicker to make floats of signed integers.
            values[..., self.order[place] if self.order else place] = codes.view(np.int32)

    def read(self, read: Read, box: Box) -> np.ndarray:
        """The integers of a box, float32."""
        wide = self.widened(box)
        out = np.empty([cut.stop - cut.start for cut in wide], np.float32)
        self.unpack(self.read_words(read, wide), out)
        start = box[self.axis].start - wide[self.axis].start
        return out[self._along((slice(None),) * 2, slice(start, start + box[self.axis].stop - box[self.axis].start))]

    def _along(self, box: Box, cut: slice) -> Box:
        return (cut, box[1]) if self.axis == 0 else (box[0], cut)

    def _split(self, array: np.ndarray, count: int) -> np.ndarray:
        """Views an array with the dimension of the integers cut into pieces, which become the last dimension."""
        shape = (*array.shape[: self.axis], -1, count, *array.shape[self.axis + 1 :])
        return np.moveaxis(array.reshape(shape), self.axis + 1, -1)
