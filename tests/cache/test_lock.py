"""The lock, between real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lazyload
from lazyload.cache import liveness, lock
from lazyload.cache.cache import Cache
from lazyload.cache.key import Key
from lazyload.errors import LockTimeoutError

KEY = Key({"a": 1})
HOLD = """
import sys
from lazyload.cache.cache import Cache
from lazyload.cache.key import Key
with Cache(sys.argv[1]).lock(Key({"a": 1})):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])},
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_waiting_says_for_whom_and_ends_with_the_limit(
    holder: subprocess.Popen[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(LockTimeoutError, match=f"by process {holder.pid} on {os.uname().nodename}"),
        Cache(tmp_path).lock(KEY, timeout=0.2),
    ):
        pass
    assert f"waiting for a conversion of the same checkpoint by process {holder.pid}" in caplog.text


def test_the_lock_is_free_when_its_holder_is_done(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.stdin.write("\n")
    holder.stdin.flush()
    with Cache(tmp_path).lock(KEY, timeout=30):
        assert holder.stdout.readline() == "released\n"


def test_the_lock_is_free_when_its_holder_is_killed(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Cache(tmp_path).lock(KEY, timeout=30):
        pass


def test_another_key_does_not_wait(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with Cache(tmp_path).lock(Key({"a": 2}), timeout=0):
        pass


@pytest.mark.parametrize("content", ["", "[]", '{"pid": 1}', '{"host": "h", "pid": 1, "since": 1e300}', None])
def test_a_damaged_holder_file_keeps_nobody_from_waiting(
    holder: subprocess.Popen[str], tmp_path: Path, content: str | None
) -> None:
    (file,) = tmp_path.glob(".locks/*.holder")
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(LockTimeoutError, match="by another process"), Cache(tmp_path).lock(KEY, timeout=0.2):
        pass


def test_waiting_takes_as_long_as_the_limit_and_repeats_itself(
    holder: subprocess.Popen[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_SAY_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.1)
    started = time.monotonic()
    with pytest.raises(LockTimeoutError), Cache(tmp_path).lock(KEY, timeout=0.5):
        pass
    assert 0.5 <= time.monotonic() - started < 20
    assert caplog.text.count("waiting for a conversion") > 2


def test_who_waits_looks_often_and_speaks_seldom(
    holder: subprocess.Popen[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.1)
    looks = []
    (file,) = tmp_path.glob(".locks/*.lock")
    with pytest.raises(LockTimeoutError), lock.hold(file, 0.5, lambda: looks.append(1)):
        pass
    assert len(looks) > 2
    assert caplog.text.count("waiting for a conversion") == 1


def test_who_holds_it_is_told_only_while_it_is_held(tmp_path: Path) -> None:
    with Cache(tmp_path).lock(KEY):
        (file,) = tmp_path.glob(".locks/*.holder")
        assert liveness.read(file).pid == os.getpid()
    assert not file.exists()
    with Cache(tmp_path).lock(KEY, timeout=0):
        pass


@pytest.mark.parametrize("error", [NotImplementedError(), OSError("no locks")])
def test_a_file_system_without_locks_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(lock.FileLock, "acquire", acquire)
    ran = False
    with Cache(tmp_path).lock(KEY):
        ran = True
    assert ran
    assert "going on without a lock" in caplog.text
