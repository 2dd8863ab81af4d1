"""Fleets: real processes that are told by `jax.distributed` of each other, and load what they are told to.

Starting one takes seconds, so that tests run many cases in the same one. A command is a dictionary, which
`support.fleet_process` explains; so is what a process answers.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import lazyload

Command = Mapping[str, Any]
Answer = dict[str, Any]

_ROOTS = (Path(lazyload.__file__).parents[1], Path(__file__).parents[1])


class Fleet:
    """Running processes.

    Attributes:
        processes: By their index.
    """

    def __init__(self, count: int, devices: int, log: Path, variables: Mapping[str, str] | None = None):
        """Starts them.

        Args:
            count: How many processes.
            devices: Of each of them.
            log: Where their standard error goes, a file each.
            variables: Further ones of their environment.
        """
        port = _free_port()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, _ROOTS)),
            "JAX_PLATFORMS": "cpu",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        environment |= variables or {}
        environment.pop("XLA_FLAGS", None)
        self._logs = [log / f"process-{index}.log" for index in range(count)]
        self.processes = []
        for index, path in enumerate(self._logs):
            with path.open("w") as stderr:
                self.processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "support.fleet_process",
                            str(port),
                            str(count),
                            str(index),
                            str(devices),
                        ],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=stderr,
                        text=True,
                        env={**environment, "HF_HOME": str(log / f"hub-{index}")},
                    )
                )
        self._answers: list[queue.Queue[Answer]] = [queue.Queue() for _ in self.processes]
        for process, answers in zip(self.processes, self._answers, strict=True):
            assert process.stdout is not None
            threading.Thread(target=_read, args=(process.stdout, answers), daemon=True).start()

    def __len__(self) -> int:
        return len(self.processes)

    def run(self, command: Command, *, timeout: float = 90, **others: Command | None) -> list[Answer]:
        """Has all processes carry out a command, and returns their answers.

        Args:
            command: What all do, but for `others`.
            timeout: Seconds until the last one must have answered.
            others: What single processes do instead, by `p0`, `p1`, ...: further entries of the command, or None for
                nothing.
        """
        commands = [others.get(f"p{index}", {}) for index in range(len(self))]
        self.send([None if own is None else {**command, **own} for own in commands])
        return [{} if own is None else self.answer(index, timeout) for index, own in enumerate(commands)]

    def send(self, commands: Sequence[Command | None]) -> None:
        """Gives each process its command, or none."""
        for process, command in zip(self.processes, commands, strict=True):
            if command is not None and process.poll() is None:
                assert process.stdin is not None
                process.stdin.write(json.dumps(command) + "\n")
                process.stdin.flush()

    def answer(self, index: int, timeout: float = 90) -> Answer:
        """What a process answers; `{"died": how}` if it is no more."""
        try:
            found = self._answers[index].get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"process {index} hangs:\n{self._logs[index].read_text()[-4000:]}") from None
        return found or {"died": self.processes[index].wait(10)}

    def leave(self, first: int) -> list[int]:
        """Has all processes end as Python and JAX end them, one of them before the others; their exit statuses."""
        for is_first in (True, False):
            self.send([{"call": "leave"} if (index == first) == is_first else None for index in range(len(self))])
            time.sleep(0.5)
        return [process.wait(30) for process in self.processes]

    def is_stopped(self, index: int) -> bool:
        """Whether a process has been stopped by a signal."""
        stat = Path(f"/proc/{self.processes[index].pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def wait_until_stopped(self, index: int, timeout: float = 60) -> None:
        """Waits until a process has stopped itself."""
        deadline = time.monotonic() + timeout
        while not self.is_stopped(index):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def end(self) -> None:
        """Ends all processes."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.communicate()


@contextlib.contextmanager
def fleet(count: int, devices: int, log: Path, variables: Mapping[str, str] | None = None) -> Iterator[Fleet]:
    """A fleet, while the body runs."""
    running = Fleet(count, devices, log, variables)
    try:
        yield running
    finally:
        running.end()


def _read(lines: IO[str], answers: "queue.Queue[Answer]") -> None:
    for line in lines:
        if line.startswith("{"):
            answers.put(json.loads(line))
    answers.put({})


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
