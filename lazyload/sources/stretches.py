"""Stretches of a file: which of its bytes are wanted, and in what pieces they are best asked for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Stretch(NamedTuple):
    """Bytes of a file.

    Attributes:
        start: The first one.
        stop: Behind the last one.
    """

    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """How many."""
        return self.stop - self.start


Wanted = Mapping[str, Sequence[Stretch]]
"""What is wanted of each file, in the order in which it is best had: of every file its stretches, in order."""


Rows = Mapping[str, Sequence[tuple[int, int]]]
"""Which rows of each tensor are wanted: ranges of the dimension that is stored outermost, in order."""


def joined(stretches: Iterable[Stretch], gap: int) -> list[Stretch]:
    """Stretches in order, as one where not more than `gap` bytes lie between them.

    Example:
        >>> joined([Stretch(8, 12), Stretch(0, 4), Stretch(20, 24)], gap=4)
        [Stretch(start=0, stop=12), Stretch(start=20, stop=24)]
    """
    found: list[Stretch] = []
    for start, stop in sorted(stretches):
        if found and start - found[-1].stop <= gap:
            found[-1] = Stretch(found[-1].start, max(found[-1].stop, stop))
        else:
            found.append(Stretch(start, stop))
    return found


def cut(stretches: Iterable[Stretch], most: int) -> list[Stretch]:
    """Stretches in pieces of at most so many bytes.

    Example:
        >>> cut([Stretch(0, 5), Stretch(8, 10)], most=3)
        [Stretch(start=0, stop=3), Stretch(start=3, stop=5), Stretch(start=8, stop=10)]
    """
    return [Stretch(first, min(first + most, stop)) for start, stop in stretches for first in range(start, stop, most)]
