"""What `jax.monitoring` hears of loads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest
from support import checkpoints

import lazyload

Heard = list[tuple[str, float | None, str]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What was heard of this library: name, value, model."""
    told: Heard = []

    def event(name: str, **about: str | int) -> None:
        value(name, None, **about)

    def value(name: str, number: float | None, **about: str | int) -> None:
        if name.startswith("/lazyload/"):
            told.append((name, number, str(about["model"])))

    jax.monitoring.register_event_listener(event)
    jax.monitoring.register_event_duration_secs_listener(value)
    jax.monitoring.register_scalar_listener(value)
    yield told
    jax.monitoring.unregister_event_listener(event)
    jax.monitoring.unregister_event_duration_listener(value)
    jax.monitoring.unregister_scalar_listener(value)


def expected(report: lazyload.LoadReport) -> Heard:
    return [
        (f"/lazyload/{'hit' if report.hit else 'miss'}", None, report.model),
        *((f"/lazyload/{stage}/duration_secs", seconds, report.model) for stage, seconds in report.seconds.items()),
        ("/lazyload/total/duration_secs", report.total_seconds, report.model),
        ("/lazyload/bytes_read", report.bytes_read, report.model),
        ("/lazyload/bytes_written", report.bytes_written, report.model),
        ("/lazyload/bytes_restored", report.bytes_restored, report.model),
    ]


def test_jax_hears_what_a_load_did(tmp_path: Path, heard: Heard) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    for load in (lazyload.convert, lazyload.from_pretrained):
        load(folder, cache_dir=tmp_path / "cache")
        assert heard == expected(lazyload.last_report())
        heard.clear()
    lazyload.convert(folder, cache_dir=tmp_path / "cache", force_convert=True)
    names = [name for name, _, _ in heard]
    assert {"/lazyload/miss", "/lazyload/plan/duration_secs", "/lazyload/convert/duration_secs"} <= set(names)
    assert "/lazyload/fetch/duration_secs" not in names, "nothing is far away"


def test_loads_of_several_threads_are_told_apart(tmp_path: Path, heard: Heard) -> None:
    folders = [checkpoints.make(name, tmp_path) for name in ("qwen3", "llama3_tied", "olmo2")]

    def load(folder: Path) -> lazyload.LoadReport:
        lazyload.convert(folder, cache_dir=tmp_path / "cache")
        return lazyload.last_report()

    with ThreadPoolExecutor(len(folders)) as pool:
        reports = list(pool.map(load, folders))
    for folder, report in zip(folders, reports, strict=True):
        assert report.model == str(folder)
        assert [one for one in heard if one[2] == str(folder)] == expected(report)
    assert len(heard) == sum(len(expected(report)) for report in reports)


def test_converting_imports_no_jax_to_tell_it(tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    code = "import sys, lazyload; lazyload.convert(sys.argv[1], cache_dir=sys.argv[2]); print('jax' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    command = [sys.executable, "-c", code, folder, tmp_path / "cache"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
