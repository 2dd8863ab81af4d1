"""A call that the processes of a team make together: what they agree on, and what they do at the same time."""

import collections
import itertools
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from lazyload.cache.key import Key
from lazyload.errors import ArgumentError, PeerError
from lazyload.team.exchange import Exchange
from lazyload.team.joint import JointTask, are_devices_waiting, first_line, is_of_peers
from lazyload.team.team import MOST_NAMED, Team

PATIENCE = 60.0
"""Seconds for which a process may show no sign of life, unless a call says otherwise."""

_numbers: "collections.defaultdict[str, Iterator[int]]" = collections.defaultdict(itertools.count)
"""Of calls, by team; its processes count alike, because they make the same calls."""


class Call:
    """One call that the processes of a team make together; of a team of one, nothing of it happens.

    Leaving the context with an error tells the others, unless they have told it.

    Attributes:
        team: The team.
        is_alone: Whether it is a team of one.
    """

    def __init__(self, team: Team, what: str, patience: float | None = None):
        """Says nothing yet.

        Args:
            team: The team.
            what: What is called, with its model: for messages.
            patience: Seconds for which a process may show no sign of life; None for `PATIENCE`.

        Raises:
            ArgumentError: `patience` is no number of seconds.
            ShardingError: The processes cannot talk to each other.
        """
        self.team = team
        self.is_alone = len(team.members) < 2
        seconds = _require_patience(patience)
        if not self.is_alone:
            self._exchange = Exchange(team, next(_numbers[team.name]), what, seconds)

    def __enter__(self) -> Self:
        """Begins to talk.

        Raises:
            PeerError: An earlier call has left devices of this process waiting for those of another one.
        """
        if self.is_alone:
            return self
        self._exchange.begin()
        if are_devices_waiting():
            error = PeerError(
                f"{self._exchange.what}: devices of this process still wait for those of another one, which failed in "
                "an earlier call; start all processes again"
            )
            self._exchange.end(error)
            raise error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.is_alone:
            self._exchange.end(error)

    @property
    def leads(self) -> bool:
        """Whether this process speaks for the team."""
        return self.team.leads

    def check(self) -> None:
        """Makes sure that nobody has failed, as far as that is known; from any thread.

        Raises:
            LazyLoadError: What another process has raised.
        """
        if not self.is_alone:
            self._exchange.check()

    def await_failure(self) -> None:
        """Gives others a while to tell what they have raised, of which this process sees only what follows from it.

        Raises:
            LazyLoadError: What another process has raised.
        """
        self._exchange.await_failure()

    def say(self, stage: str, value: Any) -> None:
        """Says something at a stage: JSON."""
        self._exchange.say(stage, value)

    def hear(self, stage: str) -> Any:
        """What the first process says at a stage.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        return self._exchange.hear_first(stage)

    def hear_others(self, stage: str) -> dict[int, Any]:
        """What all but the first process say at a stage, by process.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        return self._exchange.hear_others(stage)

    def agree(self, stage: str, fields: Mapping[str, Any]) -> None:
        """Makes sure that all processes have come here, with the same values.

        Raises:
            LazyLoadError: Somebody has failed, shows no sign of life, or has other values: then in all processes.
        """
        if self.is_alone:
            return
        if self.leads:
            self.say(stage, fields)
            self.conclude(stage)
        else:
            self.answer(stage, Key(fields).differences(Key(self.hear(stage))))

    def answer(self, stage: str, differences: Sequence[str]) -> None:
        """Tells the first process how this one differs from what it said, and waits for what follows from that."""
        self.say(f"{stage}.compared", {"differences": list(differences), "host": socket.gethostname()})
        self.hear(f"{stage}.agreed")

    def conclude(self, stage: str) -> None:
        """Takes the answers of all, and tells all that none differs.

        Raises:
            PeerError: One does.
        """
        answers = self.hear_others(f"{stage}.compared")
        differing = {process: answer for process, answer in answers.items() if answer["differences"]}
        if differing:
            shown = [
                f"  - process {process} on {answer['host']}: {'; '.join(answer['differences'][:MOST_NAMED])}"
                for process, answer in list(differing.items())[:MOST_NAMED]
            ]
            headline = (
                f"{len(differing)} processes would load another model than process {self.team.first} on "
                f"{socket.gethostname()}; make the same call in all of them, with the same versions and files:"
            )
            raise PeerError("\n".join([headline, *shown]))
        self.say(f"{stage}.agreed", True)

    def all(self, stage: str, value: bool) -> bool:
        """Whether something is so in all processes.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        if self.is_alone:
            return value
        if not self.leads:
            self.say(f"{stage}.own", value)
            return bool(self.hear(stage))
        found = all([value, *self.hear_others(f"{stage}.own").values()])
        self.say(stage, found)
        return found

    def do_together(self, stage: str, task: Callable[[], None]) -> None:
        """Has all processes do what none can finish without the others, once all have come here.

        After an error of another process it is left behind unfinished: no more can be done together.

        Raises:
            LazyLoadError: Somebody has failed, shows no sign of life, or is out of the devices' reach.
            Exception: What the task raises here for reasons of its own, such as too little memory.
        """
        if self.is_alone:
            task()
            return
        self.agree(stage, {})
        joint = JointTask(task, self._exchange.wake)
        try:
            self._exchange.watch(f"{stage}.done", lambda: joint.has_ended)
        except BaseException:
            joint.leave_behind()
            raise
        error = joint.error
        if error is not None and is_of_peers(error):
            # The other process may be about to tell why.
            self.await_failure()
            raise PeerError(
                f"{self._exchange.what}, at {stage!r}: devices of several processes cannot exchange what these have "
                f"read: {first_line(error)}; a process has been killed or is out of reach: see the logs of all"
            ) from error
        if error is not None:
            raise error

    def leave_together(self) -> None:
        """Ends the call in all processes, once each of them has a model; one outside of the team waits for them.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        if self.team.is_member:
            self.agree("done", {})
        elif not self.is_alone:
            self.hear("done.agreed")


def _require_patience(patience: object) -> float:
    """The patience that an argument asks for, in seconds.

    Raises:
        ArgumentError: It is none.
    """
    if patience is None:
        return PATIENCE
    if isinstance(patience, bool) or not isinstance(patience, int | float) or not patience > 0:
        raise ArgumentError(f"patience={patience!r:.200}: give a number of seconds, or None for {PATIENCE:.0f}")
    return float(patience)
