"""Marks: whose they are, what proves that a process is alive, and what is made of damaged marks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import lazyload
from lazyload.cache import liveness

HOUR = 3600
MARK = """
import sys
from pathlib import Path
from lazyload.cache import liveness
with liveness.marked(Path(sys.argv[1])):
    print("marked", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@contextlib.contextmanager
def marking(mark: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has left the mark."""
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    process = subprocess.Popen(
        [*before, sys.executable, "-c", MARK, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout.readline() == "marked\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def aged(mark: Path, seconds: float) -> None:
    os.utime(mark, (time.time() - seconds,) * 2)


def rewritten(mark: Path, **changes: object) -> None:
    """Writes into another file of that name, which nobody has locked."""
    mark.unlink(missing_ok=True)
    mark.write_text(json.dumps(asdict(liveness.this_process()) | changes))


def test_a_process_is_alive_until_it_ends(mark: Path) -> None:
    with marking(mark) as process:
        assert liveness.read(mark).pid == process.pid
        aged(mark, 1000 * HOUR)
        assert liveness.is_alive(mark), "however long that is"
        process.send_signal(signal.SIGSTOP)
        while "stopped" not in liveness.described(mark):
            time.sleep(0.01)
        assert liveness.is_alive(mark)
        process.send_signal(signal.SIGKILL)
        # Until somebody waits for it, it is a zombie, whose pid is taken.
        deadline = time.monotonic() + 30
        while liveness.is_alive(mark) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, 0)
        assert not liveness.is_alive(mark)
        process.wait()
        assert not liveness.is_alive(mark)


def test_a_pid_that_another_process_has_by_now_is_not_that_process(mark: Path) -> None:
    rewritten(mark)
    assert liveness.is_alive(mark)
    rewritten(mark, started="1")
    assert not liveness.is_alive(mark)


def test_who_is_locked_out_of_sight_is_alive(mark: Path) -> None:
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a pid namespace cannot be made here")
    with marking(mark, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc") as process:
        assert liveness.read(mark).pid == 1
        aged(mark, 1000 * HOUR)
        assert liveness.is_alive(mark)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while liveness.is_alive(mark) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not liveness.is_alive(mark), "its lock is free, and its heartbeat old"


@pytest.mark.parametrize("change", [{"boot": "another"}, {"namespace": "pid:[1]"}], ids=str)
def test_who_cannot_be_asked_is_alive_until_the_heartbeat_is_old(mark: Path, change: dict[str, Any]) -> None:
    rewritten(mark, **change)
    aged(mark, HOUR - 60)
    assert liveness.is_alive(mark)
    aged(mark, HOUR + 60)
    assert not liveness.is_alive(mark)


def test_a_process_that_proc_does_not_show_cannot_be_asked(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, signal: int) -> None:
        assert signal == 0
        raise PermissionError

    rewritten(mark, pid=liveness._MOST_PID)
    monkeypatch.setattr(os, "kill", kill)
    assert liveness.is_alive(mark)
    aged(mark, HOUR + 60)
    assert not liveness.is_alive(mark)


@pytest.mark.parametrize(
    "change",
    [
        {"host": None},
        {"boot": 7},
        {"pid": 0},
        {"pid": -1},
        {"pid": 10**400},
        {"pid": "1"},
        {"pid": None},
        {"since": float("nan")},
        {"since": 10**400},
        {"since": -1},
        {"since": "today"},
        None,
    ],
    ids=lambda change: f"{change!s:.20}",
)
def test_a_damaged_mark_counts_for_a_day(mark: Path, change: dict[str, Any] | None) -> None:
    rewritten(mark, **(change or {}))
    if change is None:
        mark.write_text("{")
    assert liveness.read(mark) is None
    aged(mark, 24 * HOUR - 60)
    assert liveness.is_alive(mark)
    aged(mark, 24 * HOUR + 60)
    assert not liveness.is_alive(mark)


def test_a_mark_that_is_gone_is_nobody_s(mark: Path) -> None:
    assert liveness.read(mark) is None
    assert liveness.age(mark) == float("inf")
    assert not liveness.is_alive(mark)


def test_a_mark_lasts_as_long_as_the_body_and_its_heart_beats(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "HEARTBEAT_SECONDS", 0.01)
    with liveness.marked(mark):
        assert liveness.is_alive(mark)
        assert liveness.is_locked(mark)
        aged(mark, HOUR)
        deadline = time.monotonic() + 30
        while liveness.age(mark) > 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert liveness.age(mark) < 60
        mark.unlink()
        time.sleep(0.05)
        assert not mark.exists(), "what has been removed does not come back"
    with pytest.raises(KeyError), liveness.marked(mark):
        raise KeyError
    assert list(mark.parent.iterdir()) == []


def test_a_mark_that_cannot_be_written_is_an_error_that_leaves_nothing(
    mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError), liveness.marked(mark / "nowhere"):
        pass

    def write(descriptor: int, content: bytes) -> None:
        raise OSError("full")

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="full"), liveness.marked(mark):
        pass
    assert list(mark.parent.iterdir()) == []
