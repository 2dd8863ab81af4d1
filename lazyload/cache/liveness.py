"""Who is still at work: marks that a process leaves beside what it uses, and whether that process is alive."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

FOREIGN_SECONDS = 24 * 3600
"""How long a mark of another host counts, or one that is damaged: nobody can ask whether its process is alive."""

_MOST_PID = (1 << 31) - 1
_MOST_SECONDS = 253402300799
"""The end of the year 9999 in seconds since 1970, which is as far as Python's dates go."""


@dataclass(frozen=True)
class Process:
    """A process, as a mark names it.

    Attributes:
        host: The name of its host.
        pid: Its number there.
        since: When it left the mark, in seconds since 1970.
    """

    host: str
    pid: int
    since: float


def this_process() -> Process:
    """The process that this is, now."""
    return Process(socket.gethostname(), os.getpid(), time.time())


def write(mark: Path) -> None:
    """Leaves a mark of this process.

    Raises:
        OSError: The file cannot be written.
    """
    mark.write_text(json.dumps(asdict(this_process())))


@contextlib.contextmanager
def marked(path: Path) -> Iterator[None]:
    """Leaves a mark while the body runs; without one where the folder cannot be written to."""
    with contextlib.suppress(OSError):
        write(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def is_alive(mark: Path) -> bool:
    """Whether the process that left a mark may still be at work."""
    process = read(mark)
    if process is None or process.host != socket.gethostname():
        return age(mark) < FOREIGN_SECONDS
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read(mark: Path) -> Process | None:
    """The process that left a mark; None if the mark is gone or damaged."""
    try:
        content = json.loads(mark.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    match content:
        case {"host": str(host), "pid": int(pid), "since": int(since) | float(since)}:
            if 0 < pid <= _MOST_PID and 0 <= since <= _MOST_SECONDS:
                return Process(host, pid, since)
    return None


def age(path: Path) -> float:
    """Seconds since a file was last changed; infinite if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")
