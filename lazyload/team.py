"""A team: the processes of a mesh, which load one model together, or none of them does.

They talk through the key-value store of JAX's coordination service, in which every process has one thread that writes
what it says, shows that it is alive, and looks for what others say:

    lazyload/teams/<team>/<call>/says/<stage>/<process>/value   what a process says at a stage of a call
                                /failed/<process>               what it has raised
    lazyload/lives/<process>/<call>                             a sign of life, a new one each second

The first process of the team speaks for it; the others compare what it says with what they know, and it tells all of
them how that came out. So a fleet of N exchanges a few N messages, and each of them waits for one other.
"""

import atexit
import collections
import contextlib
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from lazyload import errors
from lazyload.cache.key import Key
from lazyload.errors import ArgumentError, LazyLoadError, PeerError, ShardingError, TensorMismatchError

if TYPE_CHECKING:
    import jax

PATIENCE = 60.0
"""Seconds for which a process may show no sign of life, unless a call says otherwise."""

_ROOT = "lazyload"
_BEAT_SECONDS = 1.0
_CALLS_KEPT = 8
"""How many calls later what was said in one is removed."""

_QUICKEST_LOOK, _SLOWEST_LOOK = 0.01, 0.5
"""Seconds between looks at what others say: first the one, then ever more, up to the other."""

_GOODBYE_SECONDS = 5.0
"""For which the end of a call waits until what it has said is told."""

_MOST_NAMED = 8

_OF_PEERS = re.compile(r"(?!RESOURCE_EXHAUSTED).*(\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED):|(?i:gloo|nccl))")
"""What errors of JAX begin with, or name, where the devices of another process do not answer."""

_numbers: "collections.defaultdict[str, Iterator[int]]" = collections.defaultdict(itertools.count)
"""Of calls, by whose they are; the processes of a team count alike, because they make the same calls."""


_left_behind: list[threading.Thread] = []
"""What waits in JAX for processes that have failed (`Call.do_together`)."""


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


def require_patience(patience: object) -> float:
    """The patience that an argument asks for, in seconds.

    Raises:
        ArgumentError: It is none.
    """
    if patience is None:
        return PATIENCE
    if isinstance(patience, bool) or not isinstance(patience, int | float) or not patience > 0:
        raise ArgumentError(f"patience={patience!r:.200}: give a number of seconds, or None for {PATIENCE:.0f}")
    return float(patience)


class Call:
    """One call that the processes of a team make together; of a team of one, nothing of it happens.

    Leaving the context with an error tells the others, unless they have told it.
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
        self._patience = require_patience(patience)
        if self.is_alone:
            return
        number = next(_numbers[team.name])
        self._what = f"{what}, call {number + 1} of processes {team.name}"
        self._store = _Store()
        self._base = f"{_ROOT}/teams/{team.name}/{number}"
        # Processes outside the team listen, too, and say nothing of how far they are.
        old = number - _CALLS_KEPT
        self._obsolete = f"{_ROOT}/teams/{team.name}/{old}" if old >= 0 and team.me == team.first else ""
        self._life = _Life(team.me, f"{team.name}.{number}", self._what)
        self._beat_seconds = min(_BEAT_SECONDS, self._patience / 4)
        self._outbox: collections.deque[tuple[str, Any]] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False
        self._wanted = ""
        self._heard: dict[int, Any] = {}
        self._failures: dict[int, Mapping[str, Any]] = {}
        self._signs = _Signs()
        self._answered = time.monotonic()
        self._look_seconds = _QUICKEST_LOOK
        self._thread = threading.Thread(target=self._exchange, name="lazyload-team", daemon=True)

    def __enter__(self) -> Self:
        """Begins to talk.

        Raises:
            PeerError: An earlier call has left devices of this process waiting for those of another one.
        """
        if self.is_alone:
            return self
        self._thread.start()
        if any(thread.is_alive() for thread in _left_behind):
            error = PeerError(
                f"{self._what}: devices of this process still wait for those of another one, which failed in an "
                "earlier call; start all processes again"
            )
            self.__exit__(type(error), error, None)
            raise error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_alone:
            return
        with self._changed:
            if error is not None and self.team.is_member and not self._failures:
                self._outbox.append((f"{self._base}/failed/{self.team.me}", _told(error)))
            self._ended = True
            self._changed.notify_all()
        self._thread.join(_GOODBYE_SECONDS)

    @property
    def leads(self) -> bool:
        """Whether this process speaks for the team."""
        return self.team.me == self.team.first

    def check(self) -> None:
        """Makes sure that nobody has failed, as far as that is known; from any thread.

        Raises:
            LazyLoadError: What another process has raised.
        """
        if not self.is_alone and self._failures:
            process, told = min(self._failures.items())
            raise _error(process, told, len(self._failures) - 1)

    def say(self, stage: str, value: Any) -> None:
        """Says something at a stage: JSON."""
        with self._changed:
            self._life.stage = stage
            self._outbox.append((f"{self._base}/says/{stage}/{self.team.me}/value", value))
            self._hurry()

    def hear(self, stage: str) -> Any:
        """What the first process says at a stage.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        return self._gather(stage, (self.team.first,), f"says/{stage}/{self.team.first}")[self.team.first]

    def hear_others(self, stage: str) -> dict[int, Any]:
        """What all but the first process say at a stage, by process.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        return self._gather(stage, self.team.others, f"says/{stage}")

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

        It is done in a thread of its own: JAX waits for the devices of a process that has failed, and lets nobody
        interrupt it. After an error of another process the thread is left behind: no more can be done together.

        Raises:
            LazyLoadError: Somebody has failed, shows no sign of life, or is out of the devices' reach.
            Exception: What the task raises here for reasons of its own, such as too little memory.
        """
        if self.is_alone:
            task()
            return
        self.agree(stage, {})
        ended: list[BaseException | None] = []

        def do() -> None:
            error: BaseException | None = None
            try:
                task()
            except BaseException as raised:
                error = raised
            with self._changed:
                ended.append(error)
                self._changed.notify_all()

        thread = threading.Thread(target=do, name="lazyload-together", daemon=True)
        thread.start()
        try:
            self._watch(f"{stage}.done", ended)
        except BaseException:
            _leave_behind(thread)
            raise
        (error,) = ended
        if isinstance(error, RuntimeError) and _OF_PEERS.match(_first_line(error)):
            # The other process may be about to tell why.
            self.await_failure()
            raise PeerError(
                f"{self._what}, at {stage!r}: devices of several processes cannot exchange what these have read: "
                f"{_first_line(error)}; a process has been killed or is out of reach: see the logs of all"
            ) from error
        if error is not None:
            raise error

    def _watch(self, stage: str, ended: Sequence[object]) -> None:
        """Waits until something has ended, as long as those live whose signs of life this process sees."""
        others = self.team.others if self.leads else (self.team.first,)
        since = time.monotonic()
        with self._changed:
            self._life.stage = stage
            # Nobody says anything there; but who waits for something looks for signs of life.
            self._wanted = f"says/{stage}"
            self._hurry()
            try:
                while not ended:
                    self.check()
                    self._require_life(others, since)
                    self._changed.wait(self._beat_seconds)
            finally:
                self._wanted = ""

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
                f"  - process {process} on {answer['host']}: {'; '.join(answer['differences'][:_MOST_NAMED])}"
                for process, answer in list(differing.items())[:_MOST_NAMED]
            ]
            headline = (
                f"{len(differing)} processes would load another model than process {self.team.first} on "
                f"{socket.gethostname()}; make the same call in all of them, with the same versions and files:"
            )
            raise PeerError("\n".join([headline, *shown]))
        self.say(f"{stage}.agreed", True)

    def leave_together(self) -> None:
        """Ends the call in all processes, once each of them has a model; one outside of the team waits for them.

        Raises:
            LazyLoadError: Somebody has failed, or shows no sign of life.
        """
        if self.team.is_member:
            self.agree("done", {})
        elif not self.is_alone:
            self.hear("done.agreed")

    def await_failure(self) -> None:
        """Gives others a while to tell what they have raised, of which this process sees only what follows from it.

        Raises:
            LazyLoadError: What another process has raised.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failures, _GOODBYE_SECONDS)
        self.check()

    def _gather(self, stage: str, processes: Sequence[int], wanted: str) -> dict[int, Any]:
        """What processes say at a stage; waits until all of them have said it."""
        since = time.monotonic()
        with self._changed:
            self._life.stage = stage
            self._wanted, self._heard = wanted, {}
            self._hurry()
            try:
                while True:
                    self.check()
                    missing = [process for process in processes if process not in self._heard]
                    if not missing:
                        return {process: self._heard[process] for process in processes}
                    self._require_life(missing, since)
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
                f"{self._what}: JAX's coordination service has not answered for {self._patience:g} s: the process that "
                "runs it, usually process 0, has been killed or stopped; see its log"
            )
        lost = [
            process
            for process in missing
            if now - max(since, self._signs.last_of(process, self._life.call)) > self._patience
        ]
        if lost:
            raise PeerError(
                f"{self._what}, at {self._life.stage!r}: "
                + "; ".join(
                    self._signs.missing(process, self._life.call, self._patience) for process in lost[:_MOST_NAMED]
                )
                + (f"; and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else "")
                + ". See the logs of these processes; patience= says how long is waited for them"
            )

    def _exchange(self) -> None:
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
        if wanted and is_due and self.leads:
            lives = self._store.look(f"{_ROOT}/lives")
        elif wanted and is_due:
            first = self.team.first
            lives = {f"{first}/{key}": life for key, life in self._store.look(f"{_ROOT}/lives/{first}").items()}
        with self._changed:
            self._answered = time.monotonic()
            self._failures |= {int(key): told for key, told in failures.items()}
            if wanted == self._wanted:
                # A key ends in the process and `value`, or in `value` alone where one process was asked for.
                self._heard |= {
                    int(key.split("/")[0]) if "/" in key else self.team.first: value for key, value in heard.items()
                }
            self._signs.note(lives)
            self._changed.notify_all()


@contextlib.contextmanager
def shown_to_peers(what: str) -> Iterator[None]:
    """Lets processes that wait for this one know what it is doing instead, while the body runs.

    Args:
        what: What has been called.
    """
    jax = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        yield
        return
    ended = threading.Event()

    def show() -> None:
        store, me = _Store(), _index_of_this_process()
        life = _Life(me, f"alone.{next(_numbers['alone'])}", what)
        with contextlib.suppress(RuntimeError):
            while True:
                is_over = ended.is_set()
                store.put(life.key, life.beat(is_over=is_over))
                if is_over:
                    store.remove(*life.earlier())
                    return
                ended.wait(_BEAT_SECONDS)

    thread = threading.Thread(target=show, name="lazyload-team", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_GOODBYE_SECONDS)


class _Store:
    """The key-value store of JAX's coordination service: JSON by key."""

    def __init__(self) -> None:
        """Looks for it.

        Raises:
            ShardingError: JAX has not been told of other processes.
        """
        # Orbax takes a while to import, and a process that is alone does without.
        from orbax.checkpoint import multihost

        if not multihost.is_jax_distributed_client_initialized():
            raise ShardingError(
                "the mesh has devices of several processes, which cannot talk to each other: call "
                "jax.distributed.initialize() in every process before anything else"
            )
        self._client = multihost.get_jax_distributed_client()

    def put(self, key: str, value: Any) -> None:
        self._client.key_value_set(key, json.dumps(value), allow_overwrite=True)

    def look(self, folder: str) -> dict[str, Any]:
        """Everything below a key, by what follows it."""
        found = self._client.key_value_dir_get(folder)
        return {key.removeprefix(f"{folder}/"): json.loads(text) for key, text in found}

    def remove(self, *keys: str) -> None:
        """Removes keys, and what is below them."""
        for key in filter(None, keys):
            self._client.key_value_delete(key)


class _Life:
    """What a process shows of a call that it is in, so that others see that it goes on."""

    _ended: ClassVar["collections.deque[str]"] = collections.deque()
    """The keys of calls of this process that have ended."""

    def __init__(self, process: int, call: str, what: str):
        self.call = call
        self.key = f"{_ROOT}/lives/{process}/{call}"
        self.stage = ""
        self._what = what
        self._beats = itertools.count()

    def beat(self, *, is_over: bool) -> dict[str, Any]:
        """The next sign of life."""
        if is_over:
            self._ended.append(self.key)
        return {
            "beat": next(self._beats),
            "what": self._what,
            "stage": self.stage,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "over": is_over,
        }

    def earlier(self) -> list[str]:
        """The keys of all but the last call that has ended."""
        return [self._ended.popleft() for _ in range(len(self._ended) - 1)]


class _Signs:
    """The signs of life that have been seen, by process and call: the last one, and when it was new."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, str], tuple[Mapping[str, Any], float]] = {}

    def note(self, lives: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes note of what there is now."""
        for key, life in lives.items():
            process, call = key.split("/", 1)
            if self._seen.get((int(process), call), ({}, 0.0))[0] != life:
                self._seen[int(process), call] = life, time.monotonic()

    def last_of(self, process: int, call: str) -> float:
        """When a process last showed that it is in a call, or in one that it makes alone before."""
        times = (
            when
            for (other, which), (life, when) in self._seen.items()
            if other == process and not life["over"] and (which == call or which.startswith("alone."))
        )
        return max(times, default=0.0)

    def missing(self, process: int, call: str, patience: float) -> str:
        """What there is to say of a process that does not come: a clause."""
        lives = sorted(
            ((when, which, life) for (other, which), (life, when) in self._seen.items() if other == process),
            key=lambda sign: sign[0],
        )
        own = next((life for _, which, life in lives if which == call), None)
        if own is not None:
            return (
                f"process {process} on {own['host']} (pid {own['pid']}), which was at {own['stage']!r}, has shown no "
                f"sign of life for {patience:g} s: it has been killed or stopped"
            )
        absent = f"process {process} has not made this call within {patience:g} s"
        if not lives:
            return f"{absent}, nor any other one of lazyload"
        *_, (_, _, last) = lives
        done = "which has ended" if last["over"] else f"which it is in, at {last['stage']!r}"
        return f"{absent}; the last call of it on {last['host']} is {last['what']}, {done}"


def _index_of_this_process() -> int:
    """The index of this process, also before JAX has looked at devices, for which it would wait for all others.

    `jax._src.distributed.global_state` is private; seen in JAX 0.8.1 to 0.12.
    """
    from jax._src import distributed

    return distributed.global_state.process_id


def _leave_behind(thread: threading.Thread) -> None:
    if not _left_behind:
        # What is registered last runs first: before JAX takes leave.
        atexit.register(_await_left_behind)
    _left_behind.append(thread)


def _await_left_behind() -> None:
    """Has threads that were left behind come back before Python ends: later, that would abort this process.

    They come back when the other processes end, and those end once all have taken leave of each other.
    """
    import jax

    # JAX takes leave once more, and says then what is wrong.
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()
    last = time.monotonic() + _GOODBYE_SECONDS
    for thread in _left_behind:
        thread.join(max(0.0, last - time.monotonic()))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


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
