"""Ranges of composite axes: which stretch of a dimension is which range of each of its axes.

In the worked example of this folder, rows 16 to 24 of `(head head_dim)` are head 2, and rows 4 to 24 a ragged start, in
which each axis has a range of its own, and whole heads.

Example:
    >>> list(ranges_of(4, 24, [4, 8]))
    [((0, 1), (4, 8)), ((1, 3), (0, 8))]
"""

import itertools
import math
from collections.abc import Iterator, Sequence

from lazyload.layouts.source import Box

Range = tuple[int, int]
"""`[start, stop)` of an axis."""


def ranges_of(start: int, stop: int, sizes: Sequence[int]) -> Iterator[tuple[Range, ...]]:
    """Takes `[start, stop)` of a composite axis apart into stretches in which each axis covers one range, in order.

    Args:
        start: The first position.
        stop: The position after the last.
        sizes: The sizes of the axes, outermost first.
    """
    if start >= stop:
        return
    if len(sizes) <= 1:
        yield ((start, stop),) if sizes else ()
        return
    inner = math.prod(sizes[1:])
    first, last = -(-start // inner), stop // inner
    if first > last:
        row = start // inner
        for rest in ranges_of(start - row * inner, stop - row * inner, sizes[1:]):
            yield ((row, row + 1), *rest)
        return
    for rest in ranges_of(start - (first - 1) * inner, inner, sizes[1:]) if start < first * inner else ():
        yield ((first - 1, first), *rest)
    if first < last:
        yield ((first, last), *((0, size) for size in sizes[1:]))
    for rest in ranges_of(0, stop - last * inner, sizes[1:]):
        yield ((last, last + 1), *rest)


def widened(ranges: Sequence[Range], sizes: Sequence[int]) -> list[Range]:
    """The smallest ranges around the given ones that are one stretch of the composite axis.

    Those are single indices, then a range, then whole axes. Where a block takes the first of the 4 pairs of each half,
    the whole head is read:

    Example:
        >>> widened([(2, 3), (0, 2), (0, 1)], [4, 2, 4])
        [(2, 3), (0, 2), (0, 4)]
    """
    single = next((number for number, (start, stop) in enumerate(ranges) if stop - start != 1), len(ranges))
    return [
        pair if number <= single else (0, size) for number, (pair, size) in enumerate(zip(ranges, sizes, strict=True))
    ]


def stretch(ranges: Sequence[Range], sizes: Sequence[int]) -> Range:
    """The stretch of the composite axis that ranges (as `widened` gives them) cover.

    Example:
        >>> stretch([(2, 3), (0, 2), (0, 4)], [4, 2, 4])
        (16, 24)
    """
    first = last = 0
    for (start, stop), size in zip(ranges, sizes, strict=True):
        first, last = first * size + start, last * size + stop - 1
    return first, last + 1


def extents_of(shape: Sequence[int], count: int) -> list[int]:
    """The sizes of a box of so many elements at most that covers the last dimensions of an array as far as it can.

    Example:
        >>> extents_of([4, 8, 16], 300)
        [2, 8, 16]
    """
    extents: list[int] = []
    for size in reversed(shape):
        extents.append(max(1, min(size, count)))
        count //= max(1, size)
    return extents[::-1]


def boxes_of(shape: Sequence[int], extents: Sequence[int]) -> Iterator[Box]:
    """Cuts an array into boxes of a size, in row-major order; those at the ends may be smaller.

    Example:
        >>> list(boxes_of([5], [3]))
        [(slice(0, 3, None),), (slice(3, 5, None),)]
    """
    starts = (range(0, size, extent) for size, extent in zip(shape, extents, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + extent, size)) for start, extent, size in zip(corner, extents, shape, strict=True)
        )


def normalised(index: Box, shape: Sequence[int]) -> Box:
    """The slices with explicit bounds.

    Raises:
        IndexError: There are not as many slices as dimensions, or one has a step.
    """
    if len(index) != len(shape):
        raise IndexError(f"{len(index)} slices for {len(shape)} dimensions")
    cuts = []
    for cut, size in zip(index, shape, strict=True):
        start, stop, step = cut.indices(size)
        if step != 1:
            raise IndexError(f"only step 1 is supported, not {step}")
        cuts.append(slice(start, max(start, stop)))
    return tuple(cuts)
