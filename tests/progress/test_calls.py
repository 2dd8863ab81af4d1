"""What a progress function is told, and what it may do."""

import functools
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints
from support.hub import Hub

import lazyload
from lazyload import errors

MODEL = "org/qwen"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


def require_whole_stages(seen: list[lazyload.Progress], model: str) -> None:
    """Every stage is there from its beginning to its end, and one follows the other."""
    assert {progress.model for progress in seen} == {model}
    stages = [progress.stage for progress in seen]
    assert stages == sorted(stages, key=["fetch", "convert", "restore"].index)
    for stage in set(stages):
        done = [progress.done for progress in seen if progress.stage == stage]
        (total,) = {progress.total for progress in seen if progress.stage == stage}
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"storage": {"ocdbt": False, "zarr3": False, "chunk_bytes": 4096}, "verify": True},
        {"layout": lazyload.MaxText()},
        {"layers": range(1, 3), "rules": {"embed": None}},
    ],
    ids=str,
)
def test_every_stage_is_told_from_its_beginning_to_its_end(
    hub: Hub, folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    hub.add(MODEL, folder)
    seen: list[lazyload.Progress] = []
    load = functools.partial(lazyload.from_pretrained, cache_dir=tmp_path, **options)
    load(MODEL, progress=seen.append)
    require_whole_stages(seen, MODEL)
    totals = {progress.stage: progress.total for progress in seen}
    report = lazyload.last_report()
    assert totals == {
        "fetch": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "convert": report.bytes_written,
        "restore": report.bytes_restored,
    }
    seen.clear()
    load(MODEL, progress=seen.append)
    require_whole_stages(seen, MODEL)
    assert {progress.stage for progress in seen} == {"restore"}


def test_pathways_tells_of_restoring_too(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_PATHWAYS", "1")
    seen: list[lazyload.Progress] = []
    lazyload.from_pretrained(folder, cache_dir=tmp_path, progress=seen.append)
    require_whole_stages(seen, str(folder))
    assert [progress.stage for progress in seen].count("restore") == 2


def test_a_folder_s_weights_are_read_in_the_stage_of_fetching_only_where_the_key_is_needed_first(
    folder: Path, tmp_path: Path
) -> None:
    seen: list[lazyload.Progress] = []
    lazyload.convert(folder, cache_dir=tmp_path, progress=seen.append)
    require_whole_stages(seen, str(folder))
    assert {progress.stage for progress in seen} == {"convert"}
    seen.clear()
    copy = shutil.copytree(folder, tmp_path / "copy")
    lazyload.convert(copy, cache_dir=tmp_path, progress=seen.append)
    require_whole_stages(seen, str(copy))
    assert {progress.stage for progress in seen} == {"fetch"}
    seen.clear()
    lazyload.convert(folder, cache_dir=tmp_path, progress=seen.append)
    assert seen == []


@pytest.mark.parametrize("stage", ["fetch", "convert", "restore"])
@pytest.mark.parametrize("error", [ValueError, OSError, errors.CacheError])
def test_what_a_progress_function_raises_ends_the_call_as_it_is(
    folder: Path, tmp_path: Path, stage: str, error: type[Exception]
) -> None:
    def report(progress: lazyload.Progress) -> None:
        if progress.stage == stage and progress.done:
            raise error("enough")

    with pytest.raises(error, match=r"^enough$") as caught:
        lazyload.from_pretrained(folder, cache_dir=tmp_path, progress=report, force_convert=stage == "fetch")
    assert type(caught.value) is error
    assert not list(tmp_path.rglob("*.owner"))
    lazyload.from_pretrained(folder, cache_dir=tmp_path)
    assert lazyload.last_report().hit == (stage == "restore")


def test_threads_that_load_at_once_each_hear_of_their_own_load_only(tmp_path: Path) -> None:
    names = ["qwen3", "llama3_tied", "gemma3", "olmo2"]
    folders = [checkpoints.make(name, tmp_path) for name in names]
    seen: dict[Path, list[lazyload.Progress]] = {folder: [] for folder in folders}
    inside: Counter[Path] = Counter()
    begun = threading.Barrier(len(folders))

    def load(folder: Path) -> list[lazyload.LoadReport]:
        def report(progress: lazyload.Progress) -> None:
            inside[folder] += 1
            assert inside[folder] == 1, "called from two threads at once"
            seen[folder].append(progress)
            inside[folder] -= 1

        reports = []
        for _ in range(2):
            begun.wait(60)
            lazyload.from_pretrained(folder, cache_dir=tmp_path / "cache", progress=report)
            reports.append(lazyload.last_report())
        return reports

    with ThreadPoolExecutor(len(folders)) as pool:
        reports = dict(zip(folders, pool.map(load, folders), strict=True))
    for folder in folders:
        assert [(report.model, report.hit) for report in reports[folder]] == [(str(folder), False), (str(folder), True)]
        size = reports[folder][0].bytes_written
        restored = [progress for progress in seen[folder] if progress.stage == "restore"]
        first = seen[folder][: seen[folder].index(restored[-1]) + 1]
        require_whole_stages(first, str(folder))
        assert {progress.total for progress in first if progress.stage != "fetch"} == {size}
        assert sum(progress.done == size for progress in restored) == 2


@pytest.mark.parametrize("function", [lambda task, done, total: None, lambda: None])
def test_a_function_of_other_arguments_is_refused_before_any_work(tmp_path: Path, function: object) -> None:
    for call in (lazyload.from_pretrained, lazyload.convert):
        with pytest.raises(errors.ArgumentError, match=r"a function of one argument, a lazyload\.Progress"):
            call("/nowhere", cache_dir=tmp_path, progress=function)
