"""What the processes of a team say in one call, what they have raised, and who of them lives."""

import collections
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lazyload import errors
from lazyload.errors import LazyLoadError, PeerError, TensorMismatchError
from lazyload.team.store import BEAT_SECONDS, GOODBYE_SECONDS, LIVES, TEAMS, Life, Signs, Store
from lazyload.team.team import MOST_NAMED, Team

_CALLS_KEPT = 8
"""How many calls later what was said in one is removed."""

_QUICKEST_LOOK, _SLOWEST_LOOK = 0.01, 0.5
"""Seconds between looks at what others say: first the one, then ever more, up to the other."""


class Exchange:
    """What one process says and hears in a call: a thread says it, shows that the process lives, and looks.

    Attributes:
        what: What has been called: for messages.
    """

    def __init__(self, team: Team, number: int, what: str, patience: float):
        """Says nothing yet.

        Args:
            team: The team.
            number: Of the call, among those of the team.
            what: What is called, with its model: for messages.
            patience: Seconds for which a process may show no sign of life.

        Raises:
            ShardingError: The processes cannot talk to each other.
        """
        self.what = f"{what}, call {number + 1} of processes {team.name}"
        self._team = team
        self._patience = patience
        self._store = Store()
        self._base = f"{TEAMS}/{team.name}/{number}"
        # Processes outside the team listen, too, and say nothing of how far they are.
        old = number - _CALLS_KEPT
        self._obsolete = f"{TEAMS}/{team.name}/{old}" if old >= 0 and team.leads else ""
        self._life = Life(team.me, f"{team.name}.{number}", self.what)
        self._beat_seconds = min(BEAT_SECONDS, patience / 4)
        self._outbox: collections.deque[tuple[str, Any]] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False
        self._wanted = ""
        self._heard: dict[int, Any] = {}
        self._failures: dict[int, Mapping[str, Any]] = {}
        self._signs = Signs()
        self._answered = time.monotonic()
        self._look_seconds = _QUICKEST_LOOK
        self._thread = threading.Thread(target=self._run, name="lazyload-team", daemon=True)

    def begin(self) -> None:
        """Begins to show that this process lives."""
        self._thread.start()

    def end(self, error: BaseException | None) -> None:
        """Ends once all is said; and tells the others of an error, unless they have told it."""
        with self._changed:
            if error is not None and self._team.is_member and not self._failures:
                self._outbox.append((f"{self._base}/failed/{self._team.me}", _told(error)))
            self._ended = True
            self._changed.notify_all()
        self._thread.join(GOODBYE_SECONDS)

    def check(self) -> None:
        """Makes sure that nobody has failed, as far as that is known; from any thread.

        Raises:
            LazyLoadError: What another process has raised.
        """
        if self._failures:
            process, told = min(self._failures.items())
            raise _error(process, told, len(self._failures) - 1)

    def await_failure(self) -> None:
        """Gives others a while to tell what they have raised, of which this process sees only what follows from it.

        Raises:
            LazyLoadError: What another process has raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failures, GOODBYE_SECONDS)
        self.check()

    def say(self, stage: str, value: Any) -> None:
        """Says something at a stage: JSON."""
        with self._changed:
            self._life.stage = stage
            self._outbox.append((f"{self._base}/says/{stage}/{self._team.me}/value", value))
            self._hurry()

    def hear_first(self, stage: str) -> Any:
        """What the first process says at a stage; waits until it has said it.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        first = self._team.first
        return self._hear(stage, (first,), f"says/{stage}/{first}")[first]

    def hear_others(self, stage: str) -> dict[int, Any]:
        """What all but the first process say at a stage, by process; waits until all of them have said it.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        return self._hear(stage, self._team.others, f"says/{stage}")

    def watch(self, stage: str, has_ended: Callable[[], bool]) -> None:
        """Waits until something has ended (`wake`), as long as those live whose signs of life this process sees.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        others = self._team.others if self._team.leads else (self._team.first,)
        # Nobody says anything there; but who waits for something looks for signs of life.
        self._wait(stage, f"says/{stage}", lambda: () if has_ended() else others)

    def wake(self) -> None:
        """Has who waits look at once whether what it waits for is so; from any thread."""
        with self._changed:
            self._changed.notify_all()

    def _hear(self, stage: str, processes: Sequence[int], wanted: str) -> dict[int, Any]:
        self._wait(stage, wanted, lambda: [process for process in processes if process not in self._heard])
        self.check()
        return {process: self._heard[process] for process in processes}

    def _wait(self, stage: str, wanted: str, missing: Callable[[], Sequence[int]]) -> None:
        """Waits until no process is missing any more, while all of them live and nobody fails."""
        since = time.monotonic()
        with self._changed:
            self._life.stage = stage
            self._wanted, self._heard = wanted, {}
            self._hurry()
            try:
                while processes := missing():
                    self.check()
                    self._require_life(processes, since)
                    self._changed.wait(self._beat_seconds)
            finally:
                self._wanted = ""

    def _hurry(self) -> None:
        self._look_seconds = _QUICKEST_LOOK
        self._changed.notify_all()

    def _require_life(self, missing: Sequence[int], since: float) -> None:
        """Makes sure that those who have not said anything yet are alive and on their way."""
        now = time.monotonic()
        if now - self._answered > self._patience:
            raise PeerError(
                f"{self.what}: JAX's coordination service has not answered for {self._patience:g} s: the process that "
                "runs it, usually process 0, has been killed or stopped; see its log"
            )
        lost = [
            process
            for process in missing
            if now - max(since, self._signs.last_of(process, self._life.call)) > self._patience
        ]
        if lost:
            raise PeerError(
                f"{self.what}, at {self._life.stage!r}: "
                + "; ".join(
                    self._signs.missing(process, self._life.call, self._patience) for process in lost[:MOST_NAMED]
                )
                + (f"; and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else "")
                + ". See the logs of these processes; patience= says how long is waited for them"
            )

    def _run(self) -> None:
        """Says, shows life and looks, until the call has ended and all is said."""
        beaten = 0.0
        while True:
            with self._changed:
                wanted, is_last = self._wanted, self._ended
            try:
                while self._outbox:
                    self._store.put(*self._outbox[0])
                    self._outbox.popleft()
                now = time.monotonic()
                is_due = now - beaten >= self._beat_seconds
                if is_due or is_last:
                    self._store.put(self._life.key, self._life.beat(is_over=is_last))
                    beaten = now
                if is_last:
                    self._store.remove(self._obsolete, *self._life.earlier())
                    return
                self._look(wanted, is_due)
            except RuntimeError:
                # What JAX raises when its service is out of reach, for a while or for good: `_require_life` says so.
                if is_last:
                    return
            with self._changed:
                if not self._ended and wanted == self._wanted and not self._outbox:
                    self._changed.wait(self._look_seconds)
                    self._look_seconds = min(2 * self._look_seconds, _SLOWEST_LOOK, self._beat_seconds)

    def _look(self, wanted: str, is_due: bool) -> None:
        """Looks at what others have raised and said, and whether they live."""
        failures = self._store.look(f"{self._base}/failed")
        heard = self._store.look(f"{self._base}/{wanted}") if wanted else {}
        lives: dict[str, Any] = {}
        if wanted and is_due and self._team.leads:
            lives = self._store.look(LIVES)
        elif wanted and is_due:
            first = self._team.first
            lives = {f"{first}/{key}": life for key, life in self._store.look(f"{LIVES}/{first}").items()}
        with self._changed:
            self._answered = time.monotonic()
            self._failures |= {int(key): told for key, told in failures.items()}
            if wanted == self._wanted:
                # A key ends in the process and `value`, or in `value` alone where one process was asked for.
                self._heard |= {
                    int(key.split("/")[0]) if "/" in key else self._team.first: value for key, value in heard.items()
                }
            self._signs.note(lives)
            self._changed.notify_all()


def _told(error: BaseException) -> dict[str, Any]:
    """An error, to be told to others."""
    told: dict[str, Any] = {"type": type(error).__name__, "message": str(error), "host": socket.gethostname()}
    if isinstance(error, TensorMismatchError):
        told |= {"headline": error.headline, "problems": error.problems}
    return told


def _error(process: int, told: Mapping[str, Any], others: int) -> LazyLoadError:
    """The error that another process has told; one of ours is of the same class."""
    kind = getattr(errors, told["type"], None)
    where = f"process {process} on {told['host']}" + (f" (and {others} more)" if others else "")
    if kind is PeerError:
        return PeerError(told["message"])
    if kind is TensorMismatchError:
        return TensorMismatchError(f"{where}: {told['headline']}", told["problems"])
    if isinstance(kind, type) and issubclass(kind, LazyLoadError):
        return kind(f"{where}: {told['message']}")
    return PeerError(f"{where} has raised {told['type']}: {told['message']}")
