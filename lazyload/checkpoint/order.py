"""The order in which chunks are written: as the source's bytes arrive."""

import math
from collections.abc import Iterable, Mapping

from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.source import Box

Chunk = tuple[str, int, Box]
"""The path of an array, the number of one of its chunks, and where that lies in it."""


def in_order_of_arrival(chunks: Iterable[Chunk], tensors: Mapping[str, LazyTensor]) -> list[Chunk]:
    """Chunks in the order in which the last tensor that each of them reads arrives.

    Of those that read the same, the order stays: so an array that is one tensor of the source is read from its
    beginning to its end, and one that stacks layers waits for the layers of each chunk alone. Two arrays that are both
    all of one tensor, such as an embedding and a copy of it, are read side by side.

    Args:
        chunks: The chunks.
        tensors: The arrays, by path.
    """
    work = list(chunks)
    counts = {path: number + 1 for path, number, _ in work}

    def arrival(chunk: Chunk) -> tuple[int, float]:
        path, number, box = chunk
        lazy = tensors[path]
        last = max(map(lazy.source.position, lazy.sources_of(box)), default=0)
        return last, number / counts[path] if _is_whole(lazy) else 0.0

    return sorted(work, key=arrival)


def _is_whole(lazy: LazyTensor) -> bool:
    """Whether an array is all of one tensor."""
    if len(lazy.regions) > 1 or len(lazy.regions[0].contributions) > 1:
        return False
    return math.prod(lazy.shape) == math.prod(lazy.source.tensors[lazy.sources[0]].shape)
