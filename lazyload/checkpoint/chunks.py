"""The chunks of an array: what is stored, written and checked as one piece."""

import itertools
import math
from collections.abc import Iterator, Sequence

from lazyload.layouts.source import Box

_LARGEST_MESH = 16
"""Of those in mind when chunks are cut."""


def choose_chunks(shape: Sequence[int], itemsize: int, split_order: Sequence[int], chunk_bytes: int) -> tuple[int, ...]:
    """The shape of an array's chunks: no larger than asked, cut where that is cheap, in equal parts where possible.

    Equal parts are what a mesh asks for, too: an axis cut into a multiple of its devices is read by whole chunks.

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
    """The largest part that leaves at least so many of them, or up to half of it where that makes better numbers.

    A divisor is better, and the better the more often its number of parts can be halved: over 8 devices, each has whole
    ones of 8 parts, and pieces of 7.
    """
    most = max(1, size // parts)
    divisors = [part for part in range(most // 2 + 1, most + 1) if size % part == 0]
    return max(divisors, key=lambda part: (_halvings(size // part), part), default=most)


def _halvings(parts: int) -> int:
    """How often a number can be halved, and one more; what the largest mesh does not ask for counts no more."""
    return min((parts & -parts).bit_length(), _LARGEST_MESH.bit_length())


def boxes(shape: Sequence[int], chunks: Sequence[int]) -> Iterator[Box]:
    """The chunks of an array as slices, in row-major order; one empty tuple for a scalar, none for an empty array."""
    starts = [range(0, size, chunk) for size, chunk in zip(shape, chunks, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(
            slice(start, min(start + chunk, size)) for start, chunk, size in zip(corner, chunks, shape, strict=True)
        )
