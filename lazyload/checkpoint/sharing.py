"""Sharing: several processes write one checkpoint, each of them some of its chunks.

The first one makes the folder, tells the others, and completes the checkpoint once it has heard what they have written.
Which chunks each of them writes is found out by each for itself (`checkpoint/dealing.py`).
"""

import collections
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lazyload.checkpoint.records import ArrayRecord
from lazyload.layouts.boxes import Range

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
    """What one process writes of a checkpoint.

    Attributes:
        index: Which of the shares; the first one's process completes the checkpoint.
        records: All arrays, and numbers beside them, with the places of their chunks.
        chunks: Those of this share.
        nbytes: Their bytes.
        rows: Of a source that is far away, the rows of each tensor that they are made of, which are in no other share.
    """

    index: int
    records: Mapping[str, ArrayRecord]
    chunks: Set[Place]
    nbytes: int
    rows: Mapping[str, Sequence[Range]]


@dataclass(frozen=True)
class Others:
    """The processes that write the other shares, as the one sees them that completes the checkpoint.

    Attributes:
        begin: Called once they may write.
        gather: Waits for what all of them have written.
    """

    begin: Callable[[], None]
    gather: Callable[[], Sequence[Written]]
