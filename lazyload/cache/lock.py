"""The lock of a key: it keeps two processes from converting the same checkpoint, and says who is at it.

It saves work and guards nothing: two processes that both believe to hold it write different folders, and one manifest
wins. So a file system without working locks costs time only.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lazyload.cache import liveness
from lazyload.errors import LazyLoadError, LockTimeoutError

logger = logging.getLogger("lazyload")

LOOK_SECONDS = 0.5
"""How long a call waits before it looks again whether waiting makes sense."""

_SAY_AGAIN_SECONDS = 60.0


@contextlib.contextmanager
def hold(path: Path, timeout: float | None = None, watch: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock file while the body runs.

    Args:
        path: The lock file; beside it, `<name>.holder` says who holds it.
        timeout: Seconds to wait at most; None waits as long as it takes.
        watch: Called every `LOOK_SECONDS` of waiting; what it raises ends that.

    Raises:
        LockTimeoutError: Somebody else held it all that time.
    """
    lock, holder = FileLock(path), path.with_suffix(".holder")
    try:
        _acquire(lock, holder, timeout, watch)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, LazyLoadError):
            raise
        logger.warning("%s cannot be locked (%s); going on without a lock", path, error)
        yield
        return
    with contextlib.ExitStack() as held:
        held.callback(_release, lock)
        with contextlib.suppress(OSError):
            held.enter_context(liveness.marked(holder))
        yield


def _release(lock: FileLock) -> None:
    # It ends with the process at the latest, and what was done under it is done.
    with contextlib.suppress(OSError):
        lock.release()


def _acquire(lock: FileLock, holder: Path, timeout: float | None, watch: Callable[[], None]) -> None:
    started = time.monotonic()
    said = -_SAY_AGAIN_SECONDS
    wait = 0.0
    while True:
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            waited = time.monotonic() - started
            if timeout is not None and waited >= timeout:
                raise LockTimeoutError(
                    f"{lock.lock_file} has been held for {waited:.0f} s by {liveness.described(holder)}; "
                    "wait for that conversion, or end it if it hangs: its unfinished work is cleaned up"
                ) from None
            watch()
            if waited - said >= _SAY_AGAIN_SECONDS:
                said = waited
                logger.warning("waiting for a conversion of the same checkpoint by %s", liveness.described(holder))
            left = float("inf") if timeout is None else timeout - waited
            wait = min(LOOK_SECONDS, left)
        else:
            return
