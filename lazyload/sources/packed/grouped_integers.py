"""Matrices of integers of few bits, packed into words, with a scale and often a zero point for each group of inputs.

GPTQ and AWQ store everything with the inputs first, compressed-tensors with the outputs first. Which inputs form a
group may be told by an array of its own (GPTQ's `desc_act`, act-order).
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lazyload.errors import CorruptSourceError
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.packed.bits import Integers
from lazyload.sources.packed.blocks import Blocks, Grid, extents, is_empty, tiles, within
from lazyload.sources.packed.packed import Empty
from lazyload.sources.packed.stored import Read

T = TypeVar("T")

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class ZeroPoints:
    """Packed zero points, one for each group of inputs of each output.

    Attributes:
        integers: As they are stored, with the same dimension for the inputs as the codes.
        added: What is added to them.
    """

    integers: Integers
    added: int = 0


@dataclass(frozen=True)
class GroupIndex:
    """Which group each input belongs to.

    Attributes:
        tensor: The numbers of the groups.
        groups: How many groups there are.
        field: What messages say of the config.
    """

    tensor: str
    groups: int
    field: str


@dataclass(frozen=True)
class GroupedIntegers:
    """`(code - zero) * scale`.

    Attributes:
        codes: The codes, in the stored order of dimensions, as everything below.
        inputs: The dimension of the inputs, 0 or 1.
        scales: The scales of the groups.
        zeros: Their zero points; one number where all of them are the same.
        index: Which inputs form a group, where these are not neighbours.
        told_shape: A stored tensor that holds the shape, if any.
    """

    codes: Integers
    inputs: int
    scales: Grid
    zeros: ZeroPoints | int
    index: GroupIndex | None = None
    told_shape: str | None = None

    @property
    def info(self) -> TensorInfo:
        """The matrix in float32, outputs first."""
        return TensorInfo(self._stored(self.codes.shape), _FLOAT32, self._stored((0, 1)))

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes, scales, zero points and indices of groups."""
        zeros = [self.zeros.integers.tensor] if isinstance(self.zeros, ZeroPoints) else []
        index = [self.index.tensor] if self.index else []
        told = [self.told_shape] if self.told_shape else []
        return (self.codes.tensor, self.scales.tensor, *zeros, *index, *told)

    def check(self, read: Read) -> None:
        """Makes sure that every input belongs to a group that there is, and that the shape is what the file says.

        Raises:
            CorruptSourceError: It is not so.
        """
        if self.told_shape and (told := read(self.told_shape, (slice(0, 2),)).tolist()) != [*self.codes.shape]:
            raise CorruptSourceError(
                f"{self.told_shape} says {told}, but {self.codes.tensor} and its scales hold {list(self.codes.shape)}; "
                "download the checkpoint again"
            )
        if self.index is None:
            return
        groups = read(self.index.tensor, (slice(0, self.codes.shape[self.inputs]),))
        if wrong := groups[(groups < 0) | (groups >= self.index.groups)].tolist():
            raise CorruptSourceError(
                f"{self.index.tensor} says that an input belongs to group {wrong[0]}, but {self.codes.tensor} has "
                f"{self.index.groups} groups, counted from 0 ({self.index.field}); download the checkpoint again"
            )

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks a box, with the words that it cuts through; a transposed view where the inputs are stored first."""
        stored = self._stored(box)
        if is_empty(box):
            return empty(extents(box), _FLOAT32)
        scales, zeros = self._of_groups(read, stored)
        wide = self.codes.widened(stored)
        words = self.codes.read_words(read, wide)
        values = empty(extents(wide), _FLOAT32)
        for tile in tiles(wide, self.codes.at_once if self.codes.axis == 0 else 1):
            place = within(tile, wide)
            self.codes.unpack(self.codes.words_of(words, place), values[place])
            # What was unpacked beyond the box has no scales here.
            inner = tuple(
                slice(max(cut.start, of.start), min(cut.stop, of.stop)) for cut, of in zip(tile, stored, strict=True)
            )
            part = values[within(inner, wide)]
            part -= zeros.of(inner) if isinstance(zeros, Blocks) else zeros
            part *= scales.of(inner)
        return values[within(stored, wide)].T if self.inputs == 0 else values[within(stored, wide)]

    def _of_groups(self, read: Read, stored: Box) -> tuple[Blocks, Blocks | float]:
        """The scales and zero points of the groups that a box meets."""
        block = self.scales.block
        ranges = tuple(slice(cut.start // size, -(-cut.stop // size)) for cut, size in zip(stored, block, strict=True))
        first, scattered = tuple(cut.start for cut in ranges), None
        if self.index:
            groups = read(self.index.tensor, (stored[self.inputs],)).astype(np.intp)
            low, high = int(groups.min()), int(groups.max()) + 1
            ranges = self._with_inputs(ranges, slice(low, high))
            first = self._with_inputs(first, stored[self.inputs].start)
            scattered = (self.inputs, groups - low)
        scales = Blocks(self.scales.read_numbers(read, ranges), block, first, scattered)
        if not isinstance(self.zeros, ZeroPoints):
            return scales, float(self.zeros)
        zeros = self.zeros.integers.read(read, ranges)
        zeros += self.zeros.added
        return scales, Blocks(zeros, block, first, scattered)

    def _stored(self, pair: tuple[T, ...]) -> tuple[T, ...]:
        """Outputs first as they are stored, and back."""
        return pair[::-1] if self.inputs == 0 else pair

    def _with_inputs(self, pair: tuple[T, ...], of_inputs: T) -> tuple[T, ...]:
        return (of_inputs, pair[1]) if self.inputs == 0 else (pair[0], of_inputs)
