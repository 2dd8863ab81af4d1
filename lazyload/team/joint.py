"""What no process can finish without the others, and the threads that go on waiting in JAX where one has failed."""

import atexit
import contextlib
import re
import threading
import time
from collections.abc import Callable

_OF_PEERS = re.compile(r"(?!RESOURCE_EXHAUSTED).*(\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED):|(?i:gloo|nccl))")
"""What errors of JAX begin with, or name, where the devices of another process do not answer."""

_LAST_SECONDS = 5.0
"""For which the end of Python waits for threads that were left behind."""

_left_behind: list[threading.Thread] = []
"""What waits in JAX for processes that have failed."""


class JointTask:
    """A task under way in a thread of its own: JAX waits for the devices of a process that has failed, uninterrupted.

    Attributes:
        has_ended: Whether it has.
        error: What it has raised; None where it has ended well, and before it has ended.
    """

    def __init__(self, task: Callable[[], None], tell: Callable[[], None]):
        """Begins it; `tell` is called once it has ended."""
        self.has_ended = False
        self.error: BaseException | None = None

        def do() -> None:
            try:
                task()
            except BaseException as error:
                self.error = error
            self.has_ended = True
            tell()

        self._thread = threading.Thread(target=do, name="lazyload-together", daemon=True)
        self._thread.start()

    def leave_behind(self) -> None:
        """Lets it wait for as long as it likes."""
        if not _left_behind:
            # What is registered last runs first: before JAX takes leave.
            atexit.register(_await_left_behind)
        _left_behind.append(self._thread)


def are_devices_waiting() -> bool:
    """Whether devices of this process still wait for those of a process that has failed."""
    return any(thread.is_alive() for thread in _left_behind)


def is_of_peers(error: BaseException) -> bool:
    """Whether an error of a joint task says that the devices of another process do not answer."""
    return isinstance(error, RuntimeError) and bool(_OF_PEERS.match(first_line(error)))


def first_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _await_left_behind() -> None:
    """Has threads that were left behind come back before Python ends: later, that would abort this process.

    They come back when the other processes end, and those end once all have taken leave of each other.
    """
    import jax

    # JAX takes leave once more, and says then what is wrong.
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()
    last = time.monotonic() + _LAST_SECONDS
    for thread in _left_behind:
        thread.join(max(0.0, last - time.monotonic()))
