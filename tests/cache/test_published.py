"""What is published is complete, and proves that it is; what cannot be read is not taken for nothing."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lazyload.cache import generation, liveness
from lazyload.cache.cache import Cache
from lazyload.cache.disk_root import DiskRoot
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.cache.manifest import checksum_of
from lazyload.cache.staging import Staging
from lazyload.errors import CacheError, EntryRemovedError

KEY = Key({"source": {"kind": "hub", "id": "org/model", "commit": "c0ffee"}})
FORM = {"a": ((2, 3), "bfloat16")}


def publish(cache: Cache, before: Callable[[Staging], Any] = lambda staging: None) -> Entry:
    with cache.staging(KEY, "org/model", 10) as staging:
        (staging.path / "folder").mkdir()
        (staging.path / "folder" / "chunk").write_bytes(b"x" * 1000)
        (staging.path / "large").write_bytes(bytes(2 << 20))
        before(staging)
        return staging.publish(
            arrays={"a": {"shape": [2, 3], "dtype": "bfloat16"}}, nbytes=12, source={}, config={}, seconds=1
        )


def rewritten(entry: Entry, **changes: object) -> None:
    path = entry.folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    content.pop("checksum")
    path.write_text(json.dumps(content | {"checksum": checksum_of(content)}))


def test_every_file_is_listed_with_its_size_and_small_ones_with_their_content(tmp_path: Path) -> None:
    files = publish(Cache(tmp_path)).manifest.files
    assert files["large"] == {"size": 2 << 20}
    assert files["folder/chunk"]["size"] == 1000
    assert len(files["folder/chunk"]["sha256"]) == 64
    assert len(files) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda staging: shutil.rmtree(staging.path),
        lambda staging: (shutil.rmtree(staging.path), staging.path.mkdir()),
        lambda staging: generation.owner_of(staging.path).unlink(),
        lambda staging: (generation.owner_of(staging.path).unlink(), generation.owner_of(staging.path).write_text("")),
    ],
    ids=["gone", "made again", "not owned", "owned by another"],
)
def test_what_somebody_removed_meanwhile_is_not_published(tmp_path: Path, damage: Callable[[Staging], Any]) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(CacheError, match=r"was changed while it was written|No such file"):
        publish(cache, damage)
    assert cache.find(KEY) is None
    assert list(tmp_path.rglob("data-*")) == list(tmp_path.rglob("manifest.json*")) == []


def test_what_disappears_between_the_list_and_the_manifest_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        for path in tmp_path.rglob("chunk"):
            path.unlink()

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CacheError, match="folder/chunk: is gone"):
        publish(Cache(tmp_path))
    assert list(tmp_path.rglob("manifest.json*")) == []


def test_what_may_be_published_is_not_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def replaced_but(source: Path, target: Path) -> None:
        replace(source, target)
        raise OSError(errno.EIO, "the answer was lost", str(target))

    monkeypatch.setattr(os, "replace", replaced_but)
    cache = Cache(tmp_path)
    with pytest.raises(CacheError, match="the answer was lost"):
        publish(cache)
    assert cache.find(KEY, [FORM]) is not None


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone", "a folder"])
def test_an_entry_whose_files_are_not_those_listed_is_no_hit(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path)
    chunk = publish(cache).data / "folder" / "chunk"
    chunk.unlink()
    if damage == "a folder":
        chunk.mkdir()
    elif damage != "gone":
        chunk.write_bytes(b"x" * (999 if damage == "shorter" else 1001))
    assert cache.find(KEY, [FORM]) is None
    assert "folder/chunk: " in caplog.text
    assert "damaged" in cache.explain(KEY, "org/model")[0]


@pytest.mark.parametrize(
    "form",
    [
        {"a": ((3, 2), "bfloat16")},
        {"a": ((2, 3), "float32")},
        {"b": ((2, 3), "bfloat16")},
        {**FORM, "b": ((), "float32")},
        {},
    ],
    ids=str,
)
def test_an_entry_whose_records_are_not_those_wanted_is_no_hit(tmp_path: Path, form: Any) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    assert cache.find(KEY, [FORM]) == entry
    assert cache.find(KEY, [form]) is None


def test_an_edited_manifest_is_damaged_and_pruned(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    path = entry.folder / "manifest.json"
    path.write_text(path.read_text().replace('"nbytes": 12', '"nbytes": 13'))
    assert cache.find(KEY) is None
    assert "its checksum is not that of its content" in cache.problems()[entry.folder]
    assert [removal.path for removal in cache.prune()] == [entry.folder]
    assert not entry.folder.exists()


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("where", ["manifest.json", "data-"])
def test_what_cannot_be_read_now_is_not_absent_and_nothing_is_pruned(
    tmp_path: Path, number: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    os.utime(entry.data, (0, 0))

    def failing(name: str) -> None:
        original = getattr(Path, name)

        def fail(self: Path, *arguments: Any, **options: Any) -> Any:
            if self.name.startswith(where):
                raise OSError(number, os.strerror(number), str(self))
            return original(self, *arguments, **options)

        patch.setattr(Path, name, fail)

    def scandir(path: Any) -> Any:
        if Path(path).name.startswith(where):
            raise OSError(number, os.strerror(number), str(path))
        return listed(path)

    listed = os.scandir
    with monkeypatch.context() as patch:
        failing("read_bytes")
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(CacheError, match=r"now: .*give another cache_dir"):
            cache.find(KEY)
        assert "now: " in cache.problems()[entry.folder]
        assert cache.prune(older_than=0, max_bytes=0) == []
    assert cache.find(KEY) == entry


def test_a_newer_format_is_told_and_never_pruned(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    rewritten(entry, format=3, files="elsewhere")
    os.utime(entry.data, (0, 0))
    with pytest.raises(CacheError, match=r"format 3.*a newer lazyload made it"):
        cache.find(KEY)
    assert cache.prune(older_than=0, max_bytes=0) == []
    assert entry.data.exists()


def test_an_entry_of_the_first_format_is_told_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    path = entry.folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["checksum"], content["files"]
    path.write_text(json.dumps(content | {"format": 1}))
    os.utime(entry.data, (0, 0))
    assert cache.find(KEY) is None
    assert "made by lazyload 0.1" in caplog.text
    assert "made by lazyload 0.1" in cache.explain(KEY, "org/model")[0]
    with generation.leased(entry.data):
        assert cache.prune() == []
    again = publish(cache)
    assert cache.find(KEY) == again
    assert not entry.data.exists()


def test_a_link_to_another_folder_is_nobody_s_entry(tmp_path: Path) -> None:
    elsewhere = publish(Cache(tmp_path / "elsewhere"))
    cache = Cache(tmp_path / "cache")
    cache.root.mkdir()
    (cache.root / "models--org--model").symlink_to(elsewhere.folder.parent)
    assert cache.find(KEY) is None
    assert cache.entries() == cache.prune(older_than=0, max_bytes=0) == []
    with pytest.raises(CacheError, match="org/model"):
        cache.remove("org/model", force=True)
    assert elsewhere.data.exists()


def test_a_generation_stays_while_somebody_uses_it_whatever_the_manifest_says(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    with entry.in_use():
        again = publish(cache)
        os.utime(entry.data, (0, 0))
        assert cache.prune() == []
        (entry.folder / "manifest.json").write_text("{")
        assert entry.data not in {removal.path for removal in cache.prune(older_than=0)}
        assert entry.data.exists()
        assert not again.data.exists()
    with pytest.raises(EntryRemovedError), entry.in_use():
        pass
    cache.prune()
    assert not entry.data.exists()


def test_a_staging_folder_stays_while_its_owner_lives(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    publish(cache)

    def remove(staging: Staging) -> None:
        with pytest.raises(CacheError, match="is writing it"):
            cache.remove("org/model")
        cache.prune(older_than=0, max_bytes=0)

    again = publish(cache, remove)
    assert cache.find(KEY, [FORM]) == again


def test_force_removes_what_is_in_use(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    with entry.in_use():
        assert [removal.path for removal in cache.remove("org/model", force=True)] == [entry.folder]
        assert not entry.data.exists()
    assert list(tmp_path.glob("models--*")) == []


def test_a_reader_without_the_right_to_write_keeps_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)

    def marked(path: Path) -> None:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(generation.liveness, "marked", marked)
        with entry.in_use():
            assert list(entry.folder.glob("*.lease-*")) == []
            assert cache.prune(older_than=0, max_bytes=0) == []
            with pytest.raises(CacheError, match="another process is reading it"):
                cache.remove("org/model")
    assert cache.find(KEY) == entry


def used(entry: Entry) -> None:
    with entry.in_use():
        pass


@pytest.mark.parametrize("before", [lambda entry: None, used], ids=["never used before", "used before"])
@pytest.mark.parametrize(
    "since", [lambda entry: publish(Cache(entry.folder.parents[1])), used], ids=["replaced", "used"]
)
def test_what_was_replaced_or_used_since_it_was_looked_at_is_not_pruned(
    before: Callable[[Entry], None],
    since: Callable[[Entry], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    before(entry)
    lock = DiskRoot.lock

    def after_others(self: DiskRoot, digest: str, timeout: float | None) -> Any:
        monkeypatch.setattr(DiskRoot, "lock", lock)
        since(entry)
        return lock(self, digest, timeout)

    monkeypatch.setattr(DiskRoot, "lock", after_others)
    assert cache.prune(older_than=0) == []
    assert cache.find(KEY) is not None


def test_a_folder_that_goes_while_pruning_looks_into_it_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, scandir = Cache(tmp_path), os.scandir
    folder = str(publish(cache).folder)

    def gone(path: str) -> Any:
        if str(path) == folder:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert cache.prune() == []


def test_marks_of_processes_that_are_gone_are_pruned_and_the_entry_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    entry = publish(cache)
    dead = json.dumps(asdict(liveness.this_process()) | {"started": "1"})
    marks = [generation.owner_of(entry.data), entry.data.with_name(f"{entry.data.name}.lease-1")]
    marks += [entry.folder / ".1.mark", entry.folder / "data-gone.owner"]
    for mark in marks:
        mark.write_text(dead)
    assert {removal.path for removal in cache.prune()} == set(marks)
    assert not any(mark.exists() for mark in marks)
    assert cache.find(KEY, [FORM]) == entry
