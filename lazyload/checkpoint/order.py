"""The order in which chunks are written: as the source's bytes arrive."""

from collections.abc import Iterable, Mapping

from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box

Chunk = tuple[str, int, Box]
"""The path of an array, the number of one of its chunks, and where that lies in it."""


def in_order_of_arrival(chunks: Iterable[Chunk], tensors: Mapping[str, LazyTensor]) -> list[Chunk]:
    """Chunks in the order in which the last tensor that each of them reads arrives.

    Of those that read the same, the order stays: so an array that is one tensor of the source is read from its
    beginning to its end, and one that stacks layers waits for the layers of each chunk alone.

    Args:
        chunks: The chunks.
        tensors: The arrays, by path.
    """

    def last_position(chunk: Chunk) -> int:
        path, _, box = chunk
        lazy = tensors[path]
        return max(map(lazy.source.position, lazy.sources_of(box)), default=0)

    return sorted(chunks, key=last_position)
