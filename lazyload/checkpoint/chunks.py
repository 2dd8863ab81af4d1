"""The chunks of an array: what is stored, written and checked as one piece."""

import itertools
import math
from collections.abc import Iterator, Sequence

from lazyload.layouts.source import Box


def choose_chunks(shape: Sequence[int], itemsize: int, split_order: Sequence[int], chunk_bytes: int) -> tuple[int, ...]:
    """The shape of an array's chunks: no larger than asked, cut where that is cheap, in equal parts where possible.

    Equal parts are what a mesh asks for, too: an axis that is cut by a divisor can be read by whole chunks.

    Args:
        shape: The array's.
        itemsize: Bytes of an element.
        split_order: The dimensions in the order in which to cut them.
        chunk_bytes: The size of a chunk at most; at least one element.
    """
    chunks = [max(1, size) for size in shape]
    for dimension in split_order:
        parts = -(-math.prod(chunks) * itemsize // chunk_bytes)
        if parts <= 1:
            break
        chunks[dimension] = _cut(chunks[dimension], parts)
    return tuple(chunks)


def _cut(size: int, parts: int) -> int:
    """The largest part that leaves at least so many of them: a divisor unless that were less than half of it."""
    most = max(1, size // parts)
    divisor = next(part for part in range(most, 0, -1) if size % part == 0)
    return divisor if divisor * 2 > most else most


def boxes(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[Box]:
    """The chunks of an array as slices, in row-major order; one empty tuple for a scalar, none for an empty array."""
    starts = [range(0, size, chunk) for size, chunk in zip(shape, chunks, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + chunk, size)) for start, chunk, size in zip(corner, chunks, shape, strict=True)
        )
