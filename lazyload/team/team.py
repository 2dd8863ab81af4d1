"""The value that says which processes load a model together."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jax

MOST_NAMED = 8
"""Processes that a message names, and what it says of each of them."""


@dataclass(frozen=True)
class Team:
    """The processes that own devices of a mesh, and this process, which may be none of them.

    Example:
        >>> Team((0, 1, 2, 5), 1).name
        '0-2+5'

    Attributes:
        members: Their indices, ascending.
        me: This process's index.
    """

    members: tuple[int, ...]
    me: int

    @classmethod
    def of(cls, devices: "Iterable[jax.Device]") -> "Team":
        """The team of some devices, as seen from this process; under Pathways, one process owns all of them."""
        import jax

        return cls(tuple(sorted({device.process_index for device in devices})), jax.process_index())

    @property
    def first(self) -> int:
        """The process that speaks for all of them."""
        return self.members[0]

    @property
    def is_member(self) -> bool:
        """Whether this process owns some of the devices."""
        return self.me in self.members

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all of them."""
        return self.me == self.first

    @property
    def others(self) -> tuple[int, ...]:
        """All but the first."""
        return self.members[1:]

    @property
    def name(self) -> str:
        """The members, in short."""
        # What is the same for all that follow each other: the distance from their place in the list.
        runs = [
            [process for _, process in run]
            for _, run in itertools.groupby(enumerate(self.members), lambda pair: pair[1] - pair[0])
        ]
        return "+".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
