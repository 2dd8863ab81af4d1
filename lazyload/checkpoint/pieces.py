"""What is read of a checkpoint: chunks, and stretches of their bytes."""

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
