"""The key-value store of JAX's coordination service, and the signs of life that processes leave in it."""

import collections
import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from lazyload.errors import ShardingError

TEAMS, LIVES = "lazyload/teams", "lazyload/lives"

BEAT_SECONDS = 1.0

GOODBYE_SECONDS = 5.0
"""For which the end of a call waits until what it has said is told."""

_alone = itertools.count()
"""Of the calls that this process makes alone."""


class Store:
    """The store: JSON by key."""

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
        """Writes a value; what JAX raises where its service is out of reach is a `RuntimeError`, here and below."""
        self._client.key_value_set(key, json.dumps(value), allow_overwrite=True)

    def look(self, folder: str) -> dict[str, Any]:
        """Everything below a key, by what follows it."""
        found = self._client.key_value_dir_get(folder)
        return {key.removeprefix(f"{folder}/"): json.loads(text) for key, text in found}

    def remove(self, *keys: str) -> None:
        """Removes keys, and what is below them."""
        for key in filter(None, keys):
            self._client.key_value_delete(key)


class Life:
    """What a process shows of a call that it is in, so that others see that it goes on.

    Attributes:
        call: Which one, in short.
        key: Where that is shown.
        stage: How far it is.
    """

    _ended: ClassVar["collections.deque[str]"] = collections.deque()
    """The keys of calls of this process that have ended."""

    def __init__(self, process: int, call: str, what: str):
        """`what` is what others are told of the call."""
        self.call = call
        self.key = f"{LIVES}/{process}/{call}"
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


class Signs:
    """The signs of life that have been seen, by process and call: the last one, and when it was new."""

    def __init__(self) -> None:
        """Has seen none."""
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
        store, me = Store(), _index_of_this_process()
        life = Life(me, f"alone.{next(_alone)}", what)
        with contextlib.suppress(RuntimeError):
            while True:
                is_over = ended.is_set()
                store.put(life.key, life.beat(is_over=is_over))
                if is_over:
                    store.remove(*life.earlier())
                    return
                ended.wait(BEAT_SECONDS)

    thread = threading.Thread(target=show, name="lazyload-team", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(GOODBYE_SECONDS)


def _index_of_this_process() -> int:
    """The index of this process, also before JAX has looked at devices, for which it would wait for all others.

    `jax._src.distributed.global_state` is private; seen in JAX 0.8.1 to 0.12.
    """
    from jax._src import distributed

    return distributed.global_state.process_id
