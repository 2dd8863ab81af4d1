"""Who is still at work: marks that processes leave beside what they use, and what proves that they are alive.

A mark names a process by what no two processes have in common: the boot of its machine, its pid namespace, its pid and
when it started. Whoever shares the first two can ask the kernel, and the answer is final. Everybody else cannot,
and takes the process for alive while one of two proofs holds:

* its mark is locked: the process holds a lock on the file, which ends with it;
* its heartbeat is young: a thread touches the mark, for file systems whose locks do not work or reach no other host.
"""

import contextlib
import fcntl
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

HEARTBEAT_SECONDS = 30.0
STALE_SECONDS = 3600.0
"""How old the heartbeat is of a process that cannot be asked and is dead; clocks may differ by so much."""

UNKNOWN_SECONDS = 24 * 3600.0
"""How old a mark is that is nobody's any more, where it does not say whose it was: then nobody may be touching it."""

_UNFINISHED = ".mark"
"""How the name ends that a mark has until it is complete; before it are a dot and 32 hexadecimal digits."""

_MOST_PID = (1 << 31) - 1
_MOST_SECONDS = 253402300799
"""The end of the year 9999 in seconds since 1970, which is as far as Python's dates go."""


@dataclass(frozen=True)
class Process:
    """A process, as a mark names it.

    Attributes:
        host: The name of its host, for people.
        pid: Its number, in its namespace.
        since: When it left the mark, in seconds since 1970.
        boot: The boot of its machine; its host where there is no /proc.
        namespace: Its pid namespace; empty where there is no /proc.
        started: When it started, in clock ticks since the boot; empty where there is no /proc.
    """

    host: str
    pid: int
    since: float
    boot: str
    namespace: str
    started: str


def this_process() -> Process:
    """The process that this is, now."""
    pid = os.getpid()
    started, _ = _status_of(pid)
    return Process(os.uname().nodename, pid, time.time(), *_machine(), started)


@contextlib.contextmanager
def marked(path: Path) -> Iterator[int]:
    """Leaves a mark of this process while the body runs: locked and with a heartbeat from the moment it is there.

    Yields:
        The mark's descriptor, which tells it from a later file of the same name.

    Raises:
        OSError: The mark cannot be written; then nothing is left of it.
    """
    temporary = path.with_name(f".{os.urandom(16).hex()}{_UNFINISHED}")
    with contextlib.ExitStack() as undo:
        undo.callback(_unlink, temporary)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        undo.callback(_close, descriptor)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, json.dumps(asdict(this_process())).encode())
        undo.callback(_unlink, path)
        os.rename(temporary, path)
        stopped = threading.Event()
        beating = threading.Thread(target=_beat, args=(descriptor, stopped), name="lazyload-heartbeat", daemon=True)
        beating.start()
        undo.callback(beating.join)
        undo.callback(stopped.set)
        yield descriptor


def is_alive(mark: Path) -> bool:
    """Whether the process that left a mark may still be at work; False if there is no such mark."""
    process = read(mark)
    asked = None if process is None else asked_kernel(process)
    if asked is None:
        return is_locked(mark) or age(mark) < (STALE_SECONDS if process else UNKNOWN_SECONDS)
    return asked


def is_unfinished(name: str) -> bool:
    """Whether a file is called as a mark that is not complete: it stays where a process is killed just then."""
    return re.fullmatch(rf"\.[0-9a-f]{{32}}{re.escape(_UNFINISHED)}", name) is not None


@contextlib.contextmanager
def locked_shared(folder: Path) -> Iterator[int]:
    """Holds a lock on a folder beside others who do, where folders can be locked; that takes no right to write there.

    Yields:
        The folder's descriptor, which tells it from a later folder of the same name.

    Raises:
        OSError: The folder cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield descriptor
    finally:
        _close(descriptor)


def is_locked(path: Path, probe: int = fcntl.LOCK_SH) -> bool:
    """Whether somebody is known to hold a lock on a file or folder that `probe` cannot be held beside."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, probe | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        _close(descriptor)
    return False


def read(mark: Path) -> Process | None:
    """The process that left a mark; None if the mark is gone or damaged."""
    try:
        return parsed(mark.read_bytes())
    except OSError:
        return None


def parsed(text: bytes) -> Process | None:
    """The process that a mark's content names; None where it is damaged."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match content:
        case {"host": str(host), "pid": int(pid), "since": int(since) | float(since), "boot": str(boot),
              "namespace": str(namespace), "started": str(started)}:  # fmt: skip
            if 0 < pid <= _MOST_PID and 0 <= since <= _MOST_SECONDS:
                return Process(host, pid, since, boot, namespace, started)
    return None


def described(mark: Path) -> str:
    """Who left a mark, for people."""
    return described_process(read(mark))


def described_process(process: Process | None) -> str:
    """A process, for people."""
    if process is None:
        return "another process"
    since = time.strftime("%H:%M:%S", time.localtime(process.since))
    stopped = ", which is stopped" if _is_here(process) and _status_of(process.pid)[1] in ("T", "t") else ""
    return f"process {process.pid} on {process.host} (since {since}{stopped})"


def age(path: Path) -> float:
    """Seconds since a file was last changed; infinite if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def asked_kernel(process: Process) -> bool | None:
    """Whether the kernel says that a process is alive; None where it cannot be asked."""
    if not _is_here(process):
        return None
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started, state = _status_of(process.pid)
    if started != process.started and not started:
        # It is there, but /proc does not show it.
        return None
    return started == process.started and state not in ("Z", "X", "x")


def _is_here(process: Process) -> bool:
    return (process.boot, process.namespace) == _machine()


def _machine() -> tuple[str, str]:
    """The boot of this machine, and this process's pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")
    except OSError:
        return f"{sys.platform} {os.uname().nodename}", ""


def _status_of(pid: int) -> tuple[str, str]:
    """When a process started, and its state, as in `man 5 proc_pid_stat`; empty where /proc does not say."""
    try:
        # The second field is the program's name, which may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[19].decode(), fields[0].decode()
    except (OSError, IndexError):
        return "", ""


def _beat(descriptor: int, stopped: threading.Event) -> None:
    """Touches a mark every now and then; through its descriptor, so that none comes back that has been removed."""
    while not stopped.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _unlink(path: Path) -> None:
    # A mark that stays would speak for this process as long as it lives, so that a disk gets a second chance.
    for _ in range(2):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            return


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
