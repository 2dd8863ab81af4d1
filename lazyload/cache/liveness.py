"""Who is still at work: marks that a process leaves beside what it uses, and whether that process is alive."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOREIGN_SECONDS = 24 * 3600
"""How long a mark of another host counts; nobody can ask there whether its process is alive."""


def mine() -> dict[str, Any]:
    """What a mark of this process says."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


@contextlib.contextmanager
def marked(path: Path) -> Iterator[None]:
    """Leaves a mark while the body runs; without one where the folder cannot be written to."""
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(mine()))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def is_alive(mark: Path) -> bool:
    """Whether the process that left a mark may still be at work."""
    owner = read(mark)
    if owner is None:
        return mark.exists() and _age(mark) < FOREIGN_SECONDS
    if owner.get("host") != socket.gethostname():
        return _age(mark) < FOREIGN_SECONDS
    try:
        os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, KeyError, ValueError, TypeError, OverflowError):
        return True
    return True


def read(mark: Path) -> dict[str, Any] | None:
    """What a mark says; None if it is gone or damaged."""
    try:
        owner = json.loads(mark.read_bytes())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")
