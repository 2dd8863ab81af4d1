"""Processes that are measured: workers, which are asked as often as one likes, and commands, from start to end."""

import contextlib
import json
import os
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

HERE = Path(__file__).parent
_DEVICES = "--xla_force_host_platform_device_count=8"


class Failed(Exception):
    """A process ended with an error; its last words."""


@dataclass(frozen=True)
class Sample:
    """What one measurement found; None for what cannot be known.

    Attributes:
        seconds: On the clock: of a call, or of a command from start to end.
        cpu: Seconds of processors, of all threads; None where several processes are at work.
        peak: The most resident bytes, above what the process had before the call; of a command, of all of it.
        bytes_read: Bytes that were read through system calls. What is mapped is not counted.
        reads: The number of these calls.
        process_seconds: Of a call in a process of its own, how long that process lived.
        figures: What a row tells besides, by name.
    """

    seconds: float
    cpu: float | None
    peak: int | None = None
    bytes_read: int | None = None
    reads: int | None = None
    process_seconds: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return asdict(self)


class Worker:
    """A process that prepares a contender, and then measures it when asked to."""

    def __init__(
        self, python: str, function: str, job: Mapping[str, Any], *, timeout: float, file: str = "contenders.py"
    ):
        self._started, self._timeout = time.perf_counter(), timeout
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._job = Path(job["scratch"], f"{function}.json")
        self._job.write_text(json.dumps(job))
        # Without -P, the names of these files would hide packages.
        command = [python, "-P", str(HERE / "worker.py"), str(HERE / file), function, str(self._job)]
        self._process = subprocess.Popen(
            command,
            env=environment(python, job["environment"]),
            cwd=job["scratch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def prepare(self) -> None:
        """Waits until the contender is prepared.

        Raises:
            Failed: It cannot be.
        """
        self._answer()

    def measure(self) -> Sample:
        """One call.

        Raises:
            Failed: It ends with an error, or not in time.
        """
        assert self._process.stdin
        # Of a process that has ended, the missing answer tells.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("once more\n")
            self._process.stdin.flush()
        return Sample(**json.loads(self._answer()))

    def end(self) -> float:
        """Ends the process; how long it lived."""
        if self._process.poll() is None:
            assert self._process.stdin
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        self._log.close()
        return time.perf_counter() - self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def _answer(self) -> str:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout):
                self._process.kill()
                raise Failed(f"no answer within {self._timeout:g} s")
        if line := self._process.stdout.readline():
            return line
        self._process.wait()
        raise Failed(_last_words(self._log, self._process.returncode))


def once(python: str, function: str, job: Mapping[str, Any], *, timeout: float) -> Sample:
    """A call in a process of its own, which ends after it."""
    worker = Worker(python, function, job, timeout=timeout)
    with worker:
        worker.prepare()
        sample = worker.measure()
    return Sample(**{**sample.fields(), "process_seconds": worker.end()})


def command(words: Sequence[str], given: Mapping[str, str], folder: Path, *, timeout: float) -> Sample:
    """A command from start to end.

    Raises:
        Failed: It ends with an error, or not in time.
    """
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            words, env=environment(words[0], given), cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        watched = _Watched(process.pid)
        limit = threading.Timer(timeout, process.kill)
        limit.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        limit.cancel()
        watched.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Failed(_last_words(log, process.returncode))
    cpu = usage.ru_utime + usage.ru_stime
    return Sample(
        seconds, cpu, watched.of("status", "VmHWM", 1024), watched.of("io", "rchar"), watched.of("io", "syscr")
    )


class _Watched:
    """What Linux tells of a process while it lives.

    Its record of a process that has ended counts what the one that started it had in memory, too.
    """

    def __init__(self, pid: int):
        self._folder, self._known = Path(f"/proc/{pid}"), dict[str, str]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def of(self, file: str, field: str, unit: int = 1) -> int | None:
        """A number of one of its files; None where there is none."""
        found = re.search(rf"^{field}:\s+(\d+)", self._known.get(file, ""), re.MULTILINE)
        return int(found[1]) * unit if found else None

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            for file in ("status", "io"):
                with contextlib.suppress(OSError):
                    text = (self._folder / file).read_text()
                    # Of a process that has ended and was not waited for, the memory is gone already.
                    if file != "status" or "VmHWM" in text:
                        self._known[file] = text


def environment(python: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process: eight devices where there is no accelerator, and paths for this Python alone.

    What another Python finds by `PYTHONPATH` would be packages made for this one. Modules are compiled once, as those
    of installed packages are, and what is printed is written as a whole, however the one who measures does it.
    """
    left_out = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    flags = os.environ.get("XLA_FLAGS", "")
    if "device_count" not in flags:
        inherited["XLA_FLAGS"] = f"{flags} {_DEVICES}".strip()
    if python == sys.executable:
        import lazyload

        own = [str(Path(lazyload.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, own))
    # The processes that wait share the accelerator with the one that is measured.
    inherited.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    return inherited | quiet | dict(given)


def _last_words(log: BinaryIO, code: int) -> str:
    """How a process ended, and the last line that it printed."""
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return f"exit code {code}: {lines[-1].strip()[:300] if lines else 'nothing was printed'}"
