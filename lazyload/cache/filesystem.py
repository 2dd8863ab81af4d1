"""The file system that a folder is on: its type, and whether its locks hold between processes."""

import contextlib
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

from filelock import FileLock

_SECONDS = 20.0
_TRY = """
import sys
from filelock import FileLock, Timeout
try:
    with FileLock(sys.argv[1], timeout=0):
        print("free")
except Timeout:
    print("held")
"""


def type_of(path: Path) -> str | None:
    """The type of the file system, such as `ext4` or `nfs4`; None where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    where = os.path.realpath(path)
    mounts = [(_unescaped(mount), kind) for _, mount, kind, *_ in (line.split(" ") for line in lines)]
    around = [(mount, kind) for mount, kind in mounts if f"{where}/".startswith(f"{mount.rstrip('/')}/")]
    deepest = max((len(mount) for mount, _ in around), default=0)
    # Of several at one place, the last one hides the others.
    return next((kind for mount, kind in reversed(around) if len(mount) == deepest), None)


def locks(root: Path) -> bool | None:
    """Whether a lock that this process holds keeps another one out, tried with a file where the cache's locks are.

    Returns:
        None where it cannot be tried: the folder is not there, or cannot be written to.
    """
    folder = root / ".locks" if (root / ".locks").is_dir() else root
    probe = folder / f"probe-{os.urandom(16).hex()}"
    try:
        probe.touch(exist_ok=False)
    except OSError:
        return None
    with contextlib.ExitStack() as held:
        held.callback(_remove, probe)
        try:
            with warnings.catch_warnings():
                # Where there are no locks, some versions do with a file instead, and warn.
                warnings.simplefilter("error")
                held.enter_context(FileLock(probe, timeout=0))
            line = [sys.executable, "-c", _TRY, str(probe)]
            tried = subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except (OSError, NotImplementedError, UserWarning):
            return False
        except subprocess.TimeoutExpired:
            return None
        return {"held": True, "free": False}.get(tried.stdout.strip())


def _remove(probe: Path) -> None:
    with contextlib.suppress(OSError):
        probe.unlink(missing_ok=True)


def _unescaped(mount: str) -> str:
    """A path as `/proc` writes it, where spaces and their like stand as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount)
