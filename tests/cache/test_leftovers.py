"""What removing takes from an entry's folder, and what it leaves: told for every kind of thing that is there."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lazyload.cache import generation, liveness, removal
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key

KEY = Key({"n": 1})
OLD = time.time() - 2 * 3600


def publish(root: Path) -> Entry:
    with Cache(root).staging(KEY, "org/model", 10) as staging:
        (staging.path / "chunk").write_bytes(b"x" * 100)
        return staging.publish(arrays={}, nbytes=1, source={}, config={}, seconds=1)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return publish(tmp_path)


def dead(mark: Path) -> Path:
    mark.write_text(json.dumps(asdict(liveness.this_process()) | {"started": "0"}))
    return mark


def folder_of(path: Path, nbytes: int = 10, *, changed: float | None = None) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "chunk").write_bytes(b"x" * nbytes)
    if changed is not None:
        os.utime(path, (changed, changed))
    return path


def found(entry: Entry) -> dict[str, tuple[int, str]]:
    return {each.path.name: (each.nbytes, each.reason) for each in removal.leftovers(entry.folder)}


def test_a_whole_entry_has_no_leftovers(entry: Entry) -> None:
    os.utime(entry.data, (OLD, OLD))
    assert found(entry) == {}


def test_marks_of_the_dead_are_left_over_and_take_no_space(entry: Entry) -> None:
    names = [f"{entry.data.name}.owner", f"{entry.data.name}.lease-1", "data-gone.owner", ".1.mark", "lease-1"]
    for name in names:
        dead(entry.folder / name)
    assert found(entry) == dict.fromkeys(names, (0, "its process is gone"))


def test_marks_of_the_living_are_not_left_over(entry: Entry) -> None:
    with liveness.marked(entry.folder / "data-next.owner"), generation.leased(entry.data):
        assert found(entry) == {}


def test_what_a_dead_writer_has_begun_is_left_over_once(entry: Entry) -> None:
    dead(folder_of(entry.folder / "data-1", 30).with_name("data-1.owner"))
    assert found(entry) == {"data-1": (30, "a conversion that did not finish")}


def test_what_a_reader_still_reads_is_not_left_over(entry: Entry) -> None:
    data = folder_of(entry.folder / "data-1", changed=OLD)
    with generation.leased(data):
        assert found(entry) == {}
    assert found(entry) == {"data-1": (10, "replaced by a newer conversion")}


@pytest.mark.parametrize("name", ["removed-1", "manifest.json.1", "data-1"])
def test_what_was_interrupted_is_left_over_after_an_hour(entry: Entry, name: str) -> None:
    path = folder_of(entry.folder / name)
    assert found(entry) == {}
    os.utime(path, (OLD, OLD))
    assert found(entry)[name][0] == 10


def test_a_link_is_no_data(entry: Entry, tmp_path: Path) -> None:
    outside = folder_of(tmp_path / "outside", changed=OLD)
    (entry.folder / "data-1").symlink_to(outside)
    assert found(entry) == {}
    assert removal.remove(entry.folder) is None
    assert (outside / "inner" / "chunk").exists()


def test_sizes_are_those_of_all_files_and_of_links_themselves(entry: Entry) -> None:
    folder = folder_of(entry.folder / "removed-1", 1000)
    (folder / "link").symlink_to(folder / "inner" / "chunk")
    assert removal.size(folder) == 1000 + len(str(folder / "inner" / "chunk"))
    assert removal.size(entry.folder / "not there") == 0


def test_removing_needs_force_where_somebody_reads(entry: Entry) -> None:
    for path in (entry.folder, entry.data):
        with generation.leased(entry.data):
            assert "is reading it" in removal.remove(path)
            assert (entry.folder / "manifest.json").exists()
            assert entry.data.exists()
    with generation.leased(entry.data):
        assert removal.remove(entry.folder, force=True) is None
    assert not entry.folder.parent.exists()


def test_an_entry_goes_with_all_that_is_its_own_and_with_empty_folders(entry: Entry) -> None:
    folder_of(entry.folder / "removed-1")
    folder_of(entry.folder / "data-1")
    dead(entry.folder / f"{entry.data.name}.lease-1")
    for name in ("manifest.json.1", "last-used"):
        (entry.folder / name).write_text("x")
    assert removal.remove(entry.folder) is None
    assert not entry.folder.parent.exists()


def test_a_writer_that_has_just_begun_keeps_its_mark(entry: Entry) -> None:
    with liveness.marked(entry.folder / "data-next.owner"):
        assert removal.remove(entry.folder) is None
        assert [path.name for path in entry.folder.iterdir()] == ["data-next.owner"]
        assert removal.remove(entry.folder, force=True) is None
        assert not entry.folder.exists()


def test_one_reader_keeps_its_generation_and_no_other(entry: Entry, tmp_path: Path) -> None:
    newer = publish(tmp_path)
    with generation.leased(newer.data):
        assert "is reading it" in removal.remove(entry.folder)
    assert newer.data.exists()
    assert not entry.data.exists()
    assert Cache(tmp_path).find(KEY) == newer


def test_a_damaged_manifest_goes_with_its_entry(entry: Entry) -> None:
    (entry.folder / "manifest.json").write_text("{")
    assert found(entry)[entry.folder.name][1].startswith("damaged: ")
    assert removal.remove(entry.folder) is None
    assert not entry.folder.parent.exists()


@pytest.mark.parametrize("name", ["removed-1", "data-1", "data-gone.owner", "manifest.json.1"])
def test_one_thing_is_removed_and_nothing_else(entry: Entry, name: str) -> None:
    if name.count("."):
        dead(entry.folder / name)
    else:
        folder_of(entry.folder / name)
    assert removal.remove(entry.folder / name) is None
    assert {path.name for path in entry.folder.iterdir()} == {"manifest.json", entry.data.name}
