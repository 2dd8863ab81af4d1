"""Marks: whose they are, whether that process is alive, and what is made of damaged ones."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lazyload.cache import liveness

HERE = {"host": socket.gethostname(), "pid": os.getpid(), "since": 0}


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def aged(mark: Path, seconds: float) -> None:
    os.utime(mark, (time.time() - seconds,) * 2)


def test_a_process_is_alive_while_it_runs(mark: Path) -> None:
    before = time.time()
    liveness.write(mark)
    assert liveness.read(mark) == liveness.Process(HERE["host"], HERE["pid"], pytest.approx(before, abs=60))
    aged(mark, 10 * liveness.FOREIGN_SECONDS)
    assert liveness.is_alive(mark), "however long that is"
    mark.write_text(json.dumps({**HERE, "pid": dead_pid()}))
    assert not liveness.is_alive(mark)


def test_a_process_of_another_user_is_alive(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, signal: int) -> None:
        assert signal == 0
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    liveness.write(mark)
    assert liveness.is_alive(mark)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "elsewhere"},
        {"host": None},
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
def test_who_cannot_be_asked_is_alive_for_a_day(mark: Path, change: dict[str, Any] | None) -> None:
    mark.write_text("{" if change is None else json.dumps(HERE | change))
    assert liveness.is_alive(mark)
    aged(mark, liveness.FOREIGN_SECONDS - 60)
    assert liveness.is_alive(mark)
    aged(mark, liveness.FOREIGN_SECONDS + 60)
    assert not liveness.is_alive(mark)


def test_a_mark_that_is_gone_is_nobody_s(mark: Path) -> None:
    assert liveness.read(mark) is None
    assert liveness.age(mark) == float("inf")
    assert not liveness.is_alive(mark)


def test_a_mark_lasts_as_long_as_the_body(mark: Path) -> None:
    with liveness.marked(mark):
        assert liveness.is_alive(mark)
    assert not mark.exists()
    with pytest.raises(KeyError), liveness.marked(mark):
        raise KeyError
    assert not mark.exists()
    with liveness.marked(mark):
        mark.unlink()


def test_without_a_place_for_it_there_is_no_mark(mark: Path) -> None:
    with liveness.marked(mark / "nowhere"):
        assert not mark.exists()
