"""Waiting for another process ends, and a program cannot wait for itself."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints

import lazyload
from lazyload.cache import conversions
from lazyload.cache.cache import Cache
from lazyload.cache.key import Key
from lazyload.cache.termination import cleaning_up
from lazyload.errors import CacheError, EntryRemovedError, LockTimeoutError

HOLD = """
import pathlib, sys
from lazyload.cache.disk_root import DiskRoot
with DiskRoot(pathlib.Path(sys.argv[1])).lock(sys.argv[2], None):
    print("held", flush=True)
    sys.stdin.readline()
"""
TERMINATED = """
import sys, lazyload
def report(progress):
    if progress.stage == "fetch":
        return
    print("converting", flush=True)
    sys.stdin.readline()
lazyload.convert(sys.argv[1], cache_dir=sys.argv[2], progress=report)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


def start(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])},
    )


@pytest.fixture
def holder(model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that converts the model, as far as others can tell."""
    process = start(HOLD, tmp_path, lazyload.plan(model, cache_dir=tmp_path).key)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_call_waits_as_long_as_it_is_told(
    holder: subprocess.Popen[str], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LockTimeoutError, match=f"by process {holder.pid} on"):
        lazyload.convert(model, cache_dir=tmp_path, lock_timeout=0.2)
    with pytest.raises(LockTimeoutError):
        lazyload.from_pretrained(model, cache_dir=tmp_path, lock_timeout=0)
    monkeypatch.setenv("LAZYLOAD_LOCK_TIMEOUT", "0.2")
    with pytest.raises(LockTimeoutError):
        lazyload.convert(model, cache_dir=tmp_path)
    for text in ("soon", "-1", "nan"):
        monkeypatch.setenv("LAZYLOAD_LOCK_TIMEOUT", text)
        with pytest.raises(CacheError, match=re.escape(f"LAZYLOAD_LOCK_TIMEOUT='{text}': give a number of seconds")):
            lazyload.convert(model, cache_dir=tmp_path)


def test_a_holder_that_is_stopped_is_told(holder: subprocess.Popen[str], model: Path, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LockTimeoutError, match=f"process {holder.pid} .*which is stopped"):
        lazyload.convert(model, cache_dir=tmp_path, lock_timeout=1)
    holder.send_signal(signal.SIGCONT)


def test_removing_waits_for_nobody(holder: subprocess.Popen[str], model: Path, tmp_path: Path) -> None:
    key = lazyload.plan(model, cache_dir=tmp_path).key
    other = lazyload.convert(model, cache_dir=tmp_path / "other")
    folder = tmp_path / "models--m" / key
    folder.parent.mkdir()
    os.rename(other.path.parent, folder)
    with pytest.raises(CacheError, match=f"kept {folder}: .*process {holder.pid}.*--force"):
        Cache(tmp_path).remove(key)
    assert Cache(tmp_path).prune(older_than=0) == []
    assert [removal.path for removal in Cache(tmp_path).remove(key, force=True)] == [folder]


def test_a_conversion_cannot_wait_for_itself(model: Path, tmp_path: Path) -> None:
    errors = []

    def report(progress: lazyload.Progress) -> None:
        if progress.stage == "convert" and not errors:
            with pytest.raises(CacheError, match="is being converted by the call whose progress this is") as caught:
                lazyload.convert(model, cache_dir=tmp_path)
            errors.append(caught.value)
            assert lazyload.convert(model, cache_dir=tmp_path, dtype="float32").converted

    assert lazyload.convert(model, cache_dir=tmp_path, progress=report).converted
    assert len(errors) == 1


def test_a_folder_that_is_hashed_cannot_be_loaded_by_the_progress_of_that(model: Path, tmp_path: Path) -> None:
    """Not without end, that is: the load within converts, of which the progress cannot load it once more."""
    stages = []

    def report(progress: lazyload.Progress) -> None:
        stages.append(progress.stage)
        lazyload.convert(model, cache_dir=tmp_path, progress=report, force_convert=True)

    with pytest.raises(CacheError, match="is being converted by the call whose progress this is"):
        lazyload.convert(model, cache_dir=tmp_path, progress=report, force_convert=True)
    assert stages[0] == "fetch"
    assert "convert" in stages


def test_the_same_key_of_another_cache_may_be_converted_meanwhile(model: Path, tmp_path: Path) -> None:
    converted = []

    def report(progress: lazyload.Progress) -> None:
        if progress.stage == "convert" and not converted:
            converted.append(lazyload.convert(model, cache_dir=tmp_path / "two").converted)

    assert lazyload.convert(model, cache_dir=tmp_path / "one", progress=report).converted
    assert converted == [True]


def test_a_conversion_cannot_wait_for_a_thread_that_waits_for_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversions, "_LONGEST_REPORT_SECONDS", 1.0)
    errors: list[BaseException | None] = []

    def report(progress: lazyload.Progress) -> None:
        if progress.stage == "convert" and not errors:
            with ThreadPoolExecutor(1) as pool:
                errors.append(pool.submit(lazyload.convert, model, cache_dir=tmp_path).exception(timeout=60))

    assert lazyload.convert(model, cache_dir=tmp_path, progress=report).converted
    assert isinstance(errors[0], CacheError)
    assert re.search(r"has not returned for 1 s and seems to wait for this call", str(errors[0]))


def test_a_thread_waits_for_a_conversion_that_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversions, "_LONGEST_REPORT_SECONDS", 1.0)
    begun = threading.Event()

    def report(progress: lazyload.Progress) -> None:
        if progress.stage == "fetch":
            return
        begun.set()
        time.sleep(0.3)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lazyload.convert, model, cache_dir=tmp_path, progress=report)
        assert begun.wait(60)
        started = time.monotonic()
        assert not lazyload.convert(model, cache_dir=tmp_path).converted
        assert time.monotonic() - started > 1.5
        assert first.result().converted


def test_sigterm_cleans_up(model: Path, tmp_path: Path) -> None:
    process = start(TERMINATED, model, tmp_path)
    assert process.stdout.readline() == "converting\n"
    assert list(tmp_path.rglob("*.owner"))
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("models--")] == []
    assert not list(tmp_path.rglob("*.holder"))


def test_a_program_that_handles_sigterm_itself_goes_on_doing_so() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with cleaning_up():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [1]


def test_a_hit_counts_as_use_and_a_lease_outlives_the_call(model: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for layout in ("nnx", lazyload.MaxText()):
        converted = lazyload.convert(model, cache_dir=tmp_path, layout=layout)
        (entry,) = [entry for entry in cache.entries() if entry.key == converted.key]
        os.utime(entry.folder / "last-used", (0, 0))
        assert not lazyload.convert(model, cache_dir=tmp_path, layout=layout).converted
        assert cache.prune(older_than=3600) == []
        with converted.in_use():
            assert entry.folder not in {removal.path for removal in cache.prune(older_than=0)}
            assert converted.path.exists()
    cache.prune(older_than=0)
    assert not converted.path.exists()
    with pytest.raises(EntryRemovedError, match="call again"), converted.in_use():
        pass


def test_an_entry_that_is_lost_between_hit_and_lease_is_converted_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazyload.convert(model, cache_dir=tmp_path)
    find = Cache.find
    found = []

    def found_and_lost(self: Cache, key: Key, *forms: Any) -> object:
        entry = find(self, key, *forms)
        if not found:
            found.append(entry)
            self.remove(key.digest)
        return entry

    monkeypatch.setattr(Cache, "find", found_and_lost)
    lazyload.from_pretrained(model, cache_dir=tmp_path)
    assert not lazyload.last_report().hit
    assert found[0] is not None
