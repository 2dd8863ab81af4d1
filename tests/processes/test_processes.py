"""Real processes: two that convert at once, one that is killed in the middle of a conversion."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.large import write_large_llama

import lazyload

CONVERT = """
import sys, lazyload
converted = lazyload.convert(sys.argv[1], cache_dir=sys.argv[2])
print("converted" if converted.converted else "hit", converted.path)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a conversion takes a while."""
    return write_large_llama(tmp_path_factory.mktemp("large"), gigabytes=0.3)


def start(model: Path, cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, model, cache],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def test_two_calls_at_once_convert_once(model: Path, tmp_path: Path) -> None:
    processes = [start(model, tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    words = [output.split() for output, _ in outputs]
    assert sorted(word for word, _ in words) == ["converted", "hit"]
    assert words[0][1] == words[1][1]
    assert len(list(tmp_path.rglob("data-*/_METADATA"))) == 1


def test_a_killed_conversion_leaves_nothing_that_is_taken_for_an_entry(model: Path, tmp_path: Path) -> None:
    process = start(model, tmp_path)
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in tmp_path.rglob("data-*/**/*") if file.is_file()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.rglob("data-*"))
    assert not list(tmp_path.rglob("manifest.json"))
    assert lazyload.Cache(tmp_path).entries() == []
    assert lazyload.convert(model, cache_dir=tmp_path).converted
    lazyload.Cache(tmp_path).prune()
    assert len([path for path in tmp_path.rglob("data-*") if path.is_dir()]) == 1
    assert not lazyload.convert(model, cache_dir=tmp_path).converted
