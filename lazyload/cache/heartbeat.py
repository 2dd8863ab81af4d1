"""Marks in a bucket: who is at work there. An object names the process, which writes it again every now and then.

A bucket has no locks, and processes on other machines cannot be asked: so a process lives while its mark is young, by
the store's clock alone. Who shares a machine with it asks the kernel, as on a disk (`lazyload.cache.liveness`).
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import asdict

from lazyload.bucket.bucket import Stored
from lazyload.bucket.path import BucketPath
from lazyload.cache import liveness
from lazyload.errors import CacheError

_left: set[bytes] = set()
"""Marks of this process that it could not remove when what they stand for had ended."""


def content_of_mark() -> bytes:
    """What a mark of this process says; no two are the same."""
    return json.dumps(asdict(liveness.this_process())).encode()


@contextlib.contextmanager
def beating(mark: BucketPath, content: bytes) -> Iterator[None]:
    """Keeps a mark that is there young while the body runs, and removes it then."""
    stopped = threading.Event()

    def beat() -> None:
        while not stopped.wait(liveness.HEARTBEAT_SECONDS):
            with contextlib.suppress(CacheError):
                mark.write_bytes(content)

    thread = threading.Thread(target=beat, name="lazyload-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        try:
            mark.bucket.remove([mark.key])
        except CacheError:
            _left.add(content)


@contextlib.contextmanager
def marked(mark: BucketPath) -> Iterator[None]:
    """Leaves a mark of this process while the body runs.

    Raises:
        CacheError: The mark cannot be written.
    """
    content = content_of_mark()
    mark.write_bytes(content)
    with beating(mark, content):
        yield


def read(mark: BucketPath) -> liveness.Process | None:
    """The process that left a mark; None if the mark is gone or damaged."""
    return read_whether_ended(mark)[0]


def has_ended(mark: BucketPath) -> bool:
    """Whether what a mark stands for is known to have ended: of a process of this machine, of this one, too."""
    return read_whether_ended(mark)[1]


def read_whether_ended(mark: BucketPath) -> tuple[liveness.Process | None, bool]:
    """What `read` and `has_ended` tell, of one content."""
    try:
        content = mark.read_bytes()
    except FileNotFoundError:
        return None, False
    return liveness.parsed(content), _is_at_work(content) is False


def _is_at_work(content: bytes) -> bool | None:
    """Whether who left a mark is still at work; None where nobody can be asked."""
    if content in _left:
        return False
    process = liveness.parsed(content)
    return None if process is None else liveness.asked_kernel(process)


def is_alive(mark: BucketPath, stored: Stored, now: float) -> bool:
    """Whether the process that left a mark may still be at work.

    Args:
        mark: The mark.
        stored: What the bucket said of it; by now it may be gone.
        now: The time by the store's clock.
    """
    try:
        content = mark.read_bytes()
    except FileNotFoundError:
        return False
    asked = _is_at_work(content)
    if asked is not None:
        return asked
    return now - stored.time < (liveness.STALE_SECONDS if liveness.parsed(content) else liveness.UNKNOWN_SECONDS)
