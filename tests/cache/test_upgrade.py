"""What an upgrade does to the cache: entries of other versions are explained, converted again, and never misread.

`entries_0_1/root.tar.gz` is a cache that lazyload 0.1.0 made (`make.py` beside it says how): a hub model in the layout
"nnx" and in MaxText's, and a folder.
"""

import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict
from support import tiny
from support.hub import Hub

import lazyload
from lazyload import errors
from lazyload.cache import upgrade
from lazyload.cache.entry import read_entry
from lazyload.cache.manifest import checksum_of

PLAIN = lazyload.Storage(ocdbt=False, zarr3=False)
MODEL = "org/tiny"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that 0.1.0 made, in a process that has not seen it."""
    root = tmp_path / "cache"
    with tarfile.open(Path(__file__).parent / "entries_0_1" / "root.tar.gz") as archive:
        # Python has it from 3.11.4 on.
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = staticmethod(tarfile.data_filter)
        archive.extractall(root)
    monkeypatch.setattr(upgrade, "_told", set())
    return root


@pytest.fixture
def model(tmp_path: Path, hub: Hub) -> str:
    """The hub with the model, at the commit that 0.1.0 converted."""
    hub.add(MODEL, tiny.make(tmp_path / "tiny"))
    return MODEL


def arrays_of(built: Any) -> dict[str, np.ndarray]:
    tree = nnx.to_pure_dict(nnx.state(built, nnx.Param)) if isinstance(built, nnx.Module) else built
    return {".".join(map(str, path)): np.asarray(array) for path, array in flatten_dict(tree).items()}


def require_fresh(calls: list[dict[str, Any]], model: str | Path, root: Path, fresh: Path) -> None:
    """Each call misses once, hits then, and loads what it loads into a cache that is new."""
    for call in calls:
        loaded = arrays_of(lazyload.from_pretrained(model, cache_dir=root, **call))
        assert not lazyload.last_report().hit, call
        expected = arrays_of(lazyload.from_pretrained(model, cache_dir=fresh, **call))
        assert loaded.keys() == expected.keys()
        for path, array in loaded.items():
            np.testing.assert_array_equal(array, expected[path], err_msg=path)
        lazyload.from_pretrained(model, cache_dir=root, **call)
        assert lazyload.last_report().hit, call


def test_entries_of_0_1_are_what_0_1_made(old: Path, hub: Hub, model: str) -> None:
    manifests = [json.loads(path.read_text()) for path in old.glob("models--*/*/manifest.json")]
    assert [manifest["format"] for manifest in manifests] == [1, 1, 1]
    assert {manifest["versions"]["lazyload"] for manifest in manifests} == {"0.1.0"}
    commits = {manifest["fields"]["source"].get("commit") for manifest in manifests} - {None}
    assert commits == {hub.commit(model)}, "the tests' hub serves the commit that was converted"


def test_a_hub_model_is_converted_again_in_every_layout(old: Path, model: str, tmp_path: Path) -> None:
    maxtext = {"layout": lazyload.MaxText(scan_layers=True), "storage": PLAIN}
    require_fresh([{}, maxtext, {"dtype": "float32"}], model, old, tmp_path / "fresh")


def test_a_folder_is_converted_again(old: Path, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "tiny")
    zstd = {"storage": lazyload.Storage(compression="zstd"), "dtype": "float32"}
    require_fresh([zstd], folder, old, tmp_path / "fresh")


def test_under_the_very_same_key_it_is_converted_again_too(old: Path, model: str, tmp_path: Path) -> None:
    """It takes another program to make an entry of the first format with a key of today; even so it is not read."""
    key = lazyload.plan(model, cache_dir=old).key
    (folder,) = (path.parent for path in old.glob("models--org--tiny/*/manifest.json") if is_nnx(path))
    folder.rename(folder.with_name(key))
    assert "made by lazyload 0.1.0" in lazyload.plan(model, cache_dir=old).reasons[0]
    require_fresh([{}], model, old, tmp_path / "fresh")


def is_nnx(manifest: Path) -> bool:
    return bool(json.loads(manifest.read_text())["fields"]["layout"] == "nnx")


def test_a_miss_says_that_an_older_version_converted_it(old: Path, model: str) -> None:
    plan = lazyload.plan(model, cache_dir=old)
    assert not plan.hit
    assert plan.reasons == ("what lazyload 0.1.0 converted of org/tiny is not read by this version",)
    lazyload.convert(model, cache_dir=old)
    assert lazyload.last_report().reasons == plan.reasons
    # From then on what this version made is closer.
    assert lazyload.plan(model, cache_dir=old, dtype="float32").reasons == ("dtype: float32 instead of bfloat16",)


def test_a_miss_of_a_folder_says_so_too(old: Path, tmp_path: Path) -> None:
    folder = tiny.make(tmp_path / "tiny")
    # 0.1 knew a folder by its path.
    name = lazyload.Cache(old).root / "models----tmp--tiny"
    (stored,) = name.iterdir()
    (old / folder_name(folder)).mkdir()
    stored.rename(old / folder_name(folder) / stored.name)
    reasons = lazyload.plan(folder, cache_dir=old).reasons
    assert reasons == (f"what lazyload 0.1.0 converted of {folder} is not read by this version",)


def folder_name(model: Path) -> str:
    from lazyload.cache.targets import folder_name

    return folder_name(str(model))


@pytest.mark.usefixtures("hub")
def test_without_the_hub_the_error_says_why_what_is_there_is_not_enough(old: Path) -> None:
    with pytest.raises(errors.SourceNotFoundError, match=r"lazyload 0\.1\.0 converted of org/tiny is not read by this"):
        lazyload.from_pretrained(MODEL, cache_dir=old, local_files_only=True)


def test_the_cache_shows_them_and_verify_and_rm_take_them(old: Path) -> None:
    cache = lazyload.Cache(old)
    assert cache.entries() == []
    assert len(cache.problems()) == 3
    told = "made by lazyload 0.1.0, whose entries this version does not read; it is converted again when it is asked"
    assert all(told in problem for problem in cache.problems().values())
    assert all(told in verification.problems[0] for verification in lazyload.verify(cache_dir=old))
    assert len(cache.remove(MODEL)) == 2
    (folder,) = cache.problems()
    cache.remove(folder.name[:8])
    assert cache.problems() == {}


def test_pruning_removes_them_and_nothing_that_this_version_made(old: Path, model: str) -> None:
    cache = lazyload.Cache(old)
    lazyload.convert(model, cache_dir=old)
    planned = cache.prune(dry_run=True)
    assert len(planned) == 3
    assert {removal.reason for removal in planned} == {"made by lazyload 0.1.0, which this version does not read"}
    assert sum(removal.nbytes for removal in planned) > 10_000
    assert cache.prune() == planned
    assert cache.problems() == {}
    assert not lazyload.convert(model, cache_dir=old).converted


def test_what_a_process_of_0_1_reads_stays(old: Path) -> None:
    cache = lazyload.Cache(old)
    folder = next(iter(cache.problems()))
    data = next(path for path in folder.iterdir() if path.is_dir())
    from lazyload.cache import generation

    with generation.leased(data):
        assert folder not in {removal.path for removal in cache.prune(dry_run=True)}
        assert folder not in {removal.path for removal in cache.prune()}
        assert data.is_dir()
    assert [removal.path for removal in cache.prune()] == [folder]


def test_entries_of_an_older_entry_format_are_older_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, root = tiny.make(tmp_path / "tiny"), tmp_path / "cache"
    before = lazyload.convert(folder, cache_dir=root)
    for module in ("key", "entry", "upgrade"):
        monkeypatch.setattr(f"lazyload.cache.{module}.ENTRY_FORMAT", 4)
    monkeypatch.setattr("lazyload.request.ENTRY_FORMAT", 4)
    monkeypatch.setattr(upgrade, "_MARK", ".told/2.4")
    monkeypatch.setattr(upgrade, "_told", set())
    assert lazyload.Cache(root).entries() == []
    after = lazyload.convert(folder, cache_dir=root)
    assert after.converted
    assert after.key != before.key
    assert "is not read by this version" in lazyload.last_report().reasons[0]
    assert "1 converted checkpoint (" in caplog.text
    assert [removal.path.name for removal in lazyload.Cache(root).prune()] == [before.key]


def test_entries_of_a_newer_version_are_an_error_that_says_so_and_stay(tmp_path: Path) -> None:
    folder, root = tiny.make(tmp_path / "tiny"), tmp_path / "cache"
    made = lazyload.convert(folder, cache_dir=root)
    path = made.path.parent / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"]
    content |= {"format": 3, "files": "elsewhere"}
    path.write_text(json.dumps(content | {"checksum": checksum_of(content)}))
    with pytest.raises(errors.CacheError, match=r"a newer lazyload made it; install that, or give another cache_dir"):
        lazyload.from_pretrained(folder, cache_dir=root)
    cache = lazyload.Cache(root)
    assert "format 3, this version reads 2" in cache.problems()[made.path.parent]
    assert cache.prune(older_than=0, max_bytes=0) == []
    assert "format 3" in lazyload.verify(cache_dir=root)[0].problems[0]


def test_other_tables_of_the_same_format_are_another_key_and_the_reason_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root = tiny.make(tmp_path / "tiny"), tmp_path / "cache"
    monkeypatch.setattr("lazyload.layouts.conversion.NOTATION_VERSION", 1)
    before = lazyload.convert(folder, cache_dir=root)
    monkeypatch.undo()
    plan = lazyload.plan(folder, cache_dir=root)
    assert not plan.hit
    assert all(reason.startswith(("mapping: ", "own_head: ")) for reason in plan.reasons)
    assert lazyload.convert(folder, cache_dir=root).converted
    assert read_entry(before.path.parent).key == before.key, "an older lazyload beside this one goes on using it"


class TestSaidOnce:
    def test_a_load_says_it_and_the_next_one_does_not(
        self, old: Path, model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lazyload.convert(model, cache_dir=old)
        nbytes = sum(json.loads(path.read_text())["nbytes"] for path in old.glob("*/*/manifest.json") if is_old(path))
        assert warnings(caplog) == [
            f"{old}: 3 converted checkpoints ({nbytes / 1e3:.1f} kB) of lazyload 0.1.0 are not read by this version; "
            "each is converted again when it is asked for, and `lazyload cache prune` removes the old ones"
        ]
        lazyload.from_pretrained(model, cache_dir=old)
        monkeypatch.setattr(upgrade, "_told", set())
        lazyload.from_pretrained(model, cache_dir=old)
        assert len(warnings(caplog)) == 1

    def test_another_process_does_not_say_it_again(self, old: Path, model: str) -> None:
        code = f"import lazyload; lazyload.convert('{model}', cache_dir={str(old)!r})"
        said = []
        for _ in range(2):
            environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
            run = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            )
            said.append("3 converted checkpoints" in run.stderr)
        assert said == [True, False]

    def test_of_many_threads_one_says_it(self, old: Path, caplog: pytest.LogCaptureFixture) -> None:
        threads = [threading.Thread(target=upgrade.tell_outdated, args=(lazyload.Cache(old),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(warnings(caplog)) == 1

    def test_where_nothing_can_be_written_it_is_said_once_a_process(
        self, old: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(self: Path, *_: Any, **__: Any) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "touch", refuse)
        monkeypatch.setattr(Path, "mkdir", refuse)
        for _ in range(2):
            upgrade.tell_outdated(lazyload.Cache(old))
        assert len(warnings(caplog)) == 1
        assert not (old / ".told").exists()

    def test_a_cache_without_old_entries_and_a_plan_say_nothing(
        self, old: Path, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        lazyload.convert(model, cache_dir=tmp_path / "new")
        lazyload.convert(model, cache_dir=tmp_path / "new", dtype="float32")
        lazyload.plan(model, cache_dir=old)
        lazyload.config(model, cache_dir=old)
        assert warnings(caplog) == []
        assert not (old / ".told").exists()

    def test_the_command_s_list_says_it_of_each(self, old: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
        command = [sys.executable, "-m", "lazyload", "cache", "ls", "--cache-dir", str(old)]
        if not (Path(lazyload.__file__).parent / "__main__.py").exists():
            command[1:3] = ["-c", "from lazyload.cli import main; main()"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert run.stdout.count("made by lazyload 0.1.0") == 3


def is_old(manifest: Path) -> bool:
    return bool(json.loads(manifest.read_text())["format"] == 1)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and "not read by this version" in record.getMessage()
    ]
