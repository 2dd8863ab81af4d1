"""What is read of a checkpoint: chunks, and stretches of their bytes."""

from collections.abc import Sequence
from typing import NamedTuple

from lazyload.layouts.source import Box


class Piece(NamedTuple):
    """A chunk of an array that is being read."""

    path: str
    number: int
    box: Box
    nbytes: int


class Stretch(NamedTuple):
    """Bytes of a file that go to one place in memory."""

    path: str
    file: str
    offset: int
    memory: memoryview


def start_of_stretch(where: Sequence[slice], stored: Sequence[int]) -> int | None:
    """Where a box of a chunk begins, in elements, if it is one stretch of the chunk as it is stored; else None."""
    start, is_stretch, is_cut = 0, True, False
    for cut, size in zip(where, stored, strict=True):
        extent = cut.stop - cut.start
        is_stretch = is_stretch and (not is_cut or extent == size)
        is_cut = is_cut or extent > 1
        start = start * size + cut.start
    return start if is_stretch else None
