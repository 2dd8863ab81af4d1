"""Numbers that each hold for a block of a tensor: scales of the whole, of rows, of groups along a row, of squares."""

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lazyload.layouts.source import Box
from lazyload.sources.packed.stored import EXPONENTS, Read, Stored

_TILE = 1 << 16
"""Values that are unpacked at once: with their scales and codes they stay in a core's cache."""


@dataclass(frozen=True)
class Blocks:
    """The numbers of the blocks that some box of a tensor meets.

    Attributes:
        numbers: One for each block, in float32.
        block: The sizes of a block.
        first: Of the box's first block, its place along each dimension.
        scattered: A dimension along which the values of a block are no neighbours, and the block of each of the box's
            values along it, counted from the first; there, `first` is the box's first value.
    """

    numbers: np.ndarray
    block: tuple[int, ...]
    first: tuple[int, ...]
    scattered: tuple[int, np.ndarray] | None = None

    def of(self, box: Box) -> np.ndarray:
        """The number of every value of a box within it; of size 1 along a dimension where all are the same."""
        numbers = self.numbers
        for axis, (cut, size, first) in enumerate(zip(box, self.block, self.first, strict=True)):
            if self.scattered and axis == self.scattered[0]:
                numbers = np.take(numbers, self.scattered[1][cut.start - first : cut.stop - first], axis)
                continue
            low, high = _blocks(cut, size)
            numbers = numbers[(slice(None),) * axis + (slice(low - first, high - first),)]
            if high - low > 1 and size > 1:
                skipped = cut.start - low * size
                inner = slice(skipped, skipped + cut.stop - cut.start)
                numbers = np.repeat(numbers, size, axis)[(slice(None),) * axis + (inner,)]
        return numbers


@dataclass(frozen=True)
class Grid:
    """Stored numbers, one for each block of a tensor.

    Attributes:
        tensor: Their tensor.
        axes: For each of its dimensions, the dimension of the blocks that it runs along; None where it has size 1.
        block: The sizes of a block.
        are_exponents: Whether the numbers are powers of two, stored as exponents with bias 127.
    """

    tensor: str
    axes: tuple[int | None, ...]
    block: tuple[int, ...]
    are_exponents: bool = False

    def read(self, read: Read, box: Box) -> Blocks:
        """The numbers of the blocks that a box meets."""
        ranges = tuple(slice(*_blocks(cut, size)) for cut, size in zip(box, self.block, strict=True))
        return Blocks(self.read_numbers(read, ranges), self.block, tuple(cut.start for cut in ranges))

    def read_numbers(self, read: Read, ranges: Box) -> np.ndarray:
        """The numbers of a box of blocks, float32."""
        stored = read(self.tensor, tuple(slice(0, 1) if axis is None else ranges[axis] for axis in self.axes))
        if self.are_exponents:
            numbers = np.ldexp(np.float32(1), stored.view(np.uint8).astype(np.int32) - 127)
        else:
            numbers = stored.astype(np.float32)
        extents = [cut.stop - cut.start if axis in self.axes else 1 for axis, cut in enumerate(ranges)]
        return numbers.reshape(extents)


def find_grid(
    stored: Stored,
    name: str,
    of: str,
    shape: Sequence[int],
    blocks: Sequence[Sequence[int]],
    dtypes: Collection[np.dtype],
    field: str,
) -> Grid:
    """The numbers of a tensor's blocks, which must be there; the last block of a row may be shorter.

    They are stored as `[rows of blocks, columns of blocks]`, with or without the last dimensions where those have size
    1, or with a dimension of size 1 after each (ModelOpt's squares).

    Args:
        stored: The checkpoint.
        name: The tensor of the numbers.
        of: The tensor that they are for.
        shape: Its unpacked shape.
        blocks: The sizes that a block can have; the numbers' shape tells which it has.
        dtypes: What the numbers can be stored in.
        field: What the config says of them, for messages.

    Raises:
        CorruptSourceError: They are missing, or of another shape or dtype.
    """
    found = stored.need(name, dtypes, of, field)
    for sizes in blocks:
        # Those of an empty tensor have a size, too.
        block = tuple(max(1, size) for size in sizes)
        counts = _counts(shape, block)
        spaced = tuple(itertools.chain(*((count, 1) for count in counts)))
        if found in (spaced, *_without_last_ones(counts)):
            # Every other dimension is one of the blocks', then.
            step = 2 if len(found) == len(spaced) else 1
            axes = tuple(None if size == 1 else place // step for place, size in enumerate(found))
            return Grid(name, axes, block, stored.tensors[name].dtype in EXPONENTS)
    stored.misfit(name, [_counts(shape, block) for block in blocks], of, field)


def tiles(box: Box, multiple: int = 1) -> Iterator[Box]:
    """Cuts a box into pieces that fit into the cache: single matrices, a few rows each.

    Args:
        box: The box.
        multiple: What the number of rows is a multiple of, except in the last piece.
    """
    *outer, rows, columns = box
    step = max(1, _TILE // max(1, columns.stop - columns.start) // multiple) * multiple
    for index in itertools.product(*(range(cut.start, cut.stop) for cut in outer)):
        for start in range(rows.start, rows.stop, step):
            stop = min(start + step, rows.stop)
            yield (*(slice(place, place + 1) for place in index), slice(start, stop), columns)


def within(inner: Box, outer: Box) -> Box:
    """A box, counted from where another one begins."""
    return tuple(slice(cut.start - of.start, cut.stop - of.start) for cut, of in zip(inner, outer, strict=True))


def extents(box: Box) -> tuple[int, ...]:
    """The sizes of a box."""
    return tuple(cut.stop - cut.start for cut in box)


def is_empty(box: Box) -> bool:
    """Whether a box holds no value."""
    return math.prod(extents(box)) == 0


def _counts(shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """How many blocks there are along each dimension."""
    return tuple(-(-size // step) for size, step in zip(shape, block, strict=True))


def _without_last_ones(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """A shape, and what it becomes without its last dimensions of size 1, one after the other."""
    yield counts
    while counts and counts[-1] == 1:
        counts = counts[:-1]
        yield counts


def _blocks(cut: slice, size: int) -> tuple[int, int]:
    """The first block that a slice meets, and the one after the last."""
    return cut.start // size, -(-cut.stop // size)
