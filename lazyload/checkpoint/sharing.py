"""Sharing: several processes write one checkpoint, each of them some of its chunks.

That takes places which are known before anything is written: chunks that are ranges of bytes (`checkpoint/ranges.py`).
"""

import collections
import heapq
import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from lazyload.checkpoint.chunks import boxes
from lazyload.checkpoint.records import ArrayRecord

Place = tuple[str, int]
"""A chunk: the path of its array, and its number."""


@dataclass(frozen=True)
class Written:
    """What a process knows of the chunks that it has written.

    Attributes:
        checksums: By path and number of the chunk.
        overflowed: How many values of it have become infinite.
    """

    checksums: dict[str, dict[int, int]] = field(default_factory=lambda: collections.defaultdict(dict))
    overflowed: dict[str, dict[int, int]] = field(default_factory=lambda: collections.defaultdict(dict))

    def note(self, path: str, number: int, checksum: int, overflowed: int) -> None:
        """Takes note of a chunk; from any thread."""
        self.checksums[path][number] = checksum
        self.overflowed[path][number] = overflowed

    def add(self, other: "Written") -> None:
        """Takes over what another process has written."""
        for path, checksums in other.checksums.items():
            for number, checksum in checksums.items():
                self.note(path, number, checksum, other.overflowed[path][number])

    def as_json(self) -> dict[str, list[list[int]]]:
        """The same for JSON, whose keys are texts: by path number, checksum and overflows of each chunk."""
        return {
            path: [[number, checksum, self.overflowed[path][number]] for number, checksum in checksums.items()]
            for path, checksums in self.checksums.items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Written":
        """What `as_json` gave."""
        written = cls()
        for path, chunks in value.items():
            for chunk in chunks:
                written.note(path, *chunk)
        return written


@dataclass(frozen=True)
class Share:
    """The part that this process has in a checkpoint.

    Attributes:
        index: Which of the parts.
        count: How many parts there are.
        begin: Called once others may write, too.
        gather: Waits for what all others have written.
    """

    index: int
    count: int
    begin: Callable[[], None]
    gather: Callable[[], list[Written]]


def dealt(records: Mapping[str, ArrayRecord], count: int) -> list[Set[Place]]:
    """Deals the chunks of arrays to processes: all of them get about as many bytes.

    Large chunks come first, each to whoever has the least; so it comes out the same in every process.
    """
    sizes = {
        (path, number): math.prod(cut.stop - cut.start for cut in box) * record.numpy_dtype.itemsize
        for path, record in records.items()
        for number, box in enumerate(boxes(record.shape, record.chunks))
    }
    hands: list[set[Place]] = [set() for _ in range(count)]
    held = [(0, index) for index in range(count)]
    for place in sorted(sizes, key=lambda place: -sizes[place]):
        nbytes, index = heapq.heappop(held)
        hands[index].add(place)
        heapq.heappush(held, (nbytes + sizes[place], index))
    return list(hands)
