"""What a cache does is the same wherever it is: on a disk, in a bucket of Google's kind, in one of Amazon's."""

import json
import threading
from pathlib import Path

import pytest
from support import entries
from support.command import command

from lazyload.bucket.path import Folder
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry, read_entry
from lazyload.cache.key import Key
from lazyload.cache.manifest import FILE_NAME
from lazyload.errors import ArgumentError, CacheError, LockTimeoutError

KEY = Key({"dtype": "bfloat16"})


def below(folder: Folder) -> list[str]:
    """The paths of all files below a folder, without those that say who is at work."""
    if isinstance(folder, Path):
        found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    else:
        found = list(folder.bucket.below(f"{folder.key}/"))
    return sorted(path for path in found if not path.startswith((".", "CACHEDIR")))


def remove(path: Folder) -> None:
    if isinstance(path, Path):
        path.unlink()
    else:
        path.bucket.remove([path.key])


def test_what_is_published_is_found(root: str) -> None:
    cache = Cache(root)
    entry = entries.publish(root)
    assert cache.find(Key(entry.manifest.fields)) == entry
    assert Cache(root).find(Key(entry.manifest.fields), model="org/model") == entry
    assert Cache(root).find(Key(entry.manifest.fields), model="org/copied") == entry, "whatever it is called now"
    assert cache.find(KEY) is None
    assert [found.model for found in cache.entries()] == ["org/model"]
    assert str(entry.path).startswith(f"{root}/models--org--model/{entry.key}/data-")
    assert below(cache.root) == below_of(entry)


def below_of(entry: Entry) -> list[str]:
    folder = f"models--org--model/{entry.key}"
    return sorted([f"{folder}/{entry.manifest.data}/chunk", f"{folder}/manifest.json"])


def test_a_failed_conversion_leaves_nothing(root: str) -> None:
    cache = Cache(root)
    with pytest.raises(ZeroDivisionError), cache.staging(KEY, "org/model", 10) as staging:
        (staging.path / "chunk").write_bytes(b"half" * (1 // 0))
    assert below(cache.root) == []
    assert cache.entries() == []


def test_data_that_is_removed_while_it_is_written_is_not_published(root: str) -> None:
    cache = Cache(root)
    with cache.staging(KEY, "org/model", 10) as staging:
        (staging.path / "chunk").write_bytes(b"x")
        for each in below(staging.path):
            remove(staging.path / each)
        if isinstance(staging.path, Path):
            staging.path.rmdir()
        with pytest.raises(CacheError, match=r"removed|No such file"):
            staging.publish(arrays={}, nbytes=1, source={}, config={}, seconds=1)
    assert cache.entries() == []


def test_an_absent_cache_is_empty(root: str) -> None:
    cache = Cache(root)
    assert cache.entries() == []
    assert cache.prune() == []
    with pytest.raises(CacheError, match="neither a model nor the start of a key"):
        cache.remove("org/model")


def test_lists_and_information(root: str) -> None:
    first, second = entries.publish(root), entries.publish(root, "org/other", nbytes=3000)
    listed = json.loads(command("cache", "ls", "--json", cache=root).stdout)
    assert [each["key"] for each in listed] == [first.key, second.key]
    assert [each["path"] for each in listed] == [str(first.path), str(second.path)]
    assert command("cache", "ls", "--filter", "size>2kB", "-q", cache=root).stdout.split() == [second.key]
    (information,) = json.loads(command("cache", "info", "org/model", "--json", cache=root).stdout)
    assert (information["files"], information["problems"], information["used_by"]) == (1, [], None)
    assert information["size_on_disk"] > 1000
    assert command("cache", "dir", cache=root).stdout.strip() == root
    assert sorted(Cache(root).names()[1]) == sorted([first.key, second.key])


def test_removing_what_is_named(root: str) -> None:
    first, second = entries.publish(root), entries.publish(root, "org/other")
    assert "would free" in command("cache", "rm", "org/model", "--dry-run", cache=root).stdout
    assert len(Cache(root).entries()) == 2
    command("cache", "rm", first.key[:8], "--yes", cache=root)
    assert [found.key for found in Cache(root).entries()] == [second.key]
    assert below(Cache(root).root / "models--org--model") == []


def test_what_is_read_is_kept(root: str) -> None:
    entry = entries.publish(root)
    with entry.in_use():
        assert "is reading it" in (entry.user() or "")
        with pytest.raises(CacheError, match="is reading it"):
            Cache(root).remove("org/model")
        assert Cache(root).prune(everything=True) == []
        assert [found.key for found in Cache(root).entries()] == [entry.key]
    assert entry.user() is None
    assert len(Cache(root).prune(everything=True)) == 1
    with pytest.raises(CacheError, match="has just been removed"), entry.in_use():
        pass
    assert below(Cache(root).root) == []


def test_what_is_read_can_be_removed_by_force(root: str) -> None:
    entry = entries.publish(root)
    with entry.in_use():
        assert len(Cache(root).remove("org/model", force=True)) == 1
    assert Cache(root).entries() == []


def test_use_is_noted(root: str) -> None:
    entry = entries.publish(root)
    with entry.in_use():
        pass
    used = read_entry(entry.folder).last_used
    assert used >= entry.created.timestamp() - 2
    assert Cache(root).prune(older_than=3600) == []
    assert [removal.path for removal in Cache(root).prune(older_than=-1)] == [entry.folder]


def test_rules_of_pruning(root: str) -> None:
    old, new = (entries.publish(root, commit=commit) for commit in entries.COMMITS[:2])
    assert [removal.path for removal in Cache(root).prune(superseded=True, dry_run=True)] == [old.folder]
    assert len(Cache(root).prune(keep_last=2)) == 0
    assert len(Cache(root).prune(max_bytes=0, dry_run=True)) == 2
    with pytest.raises(ArgumentError):
        Cache(root).prune(incomplete=True, everything=True)
    Cache(root).prune(superseded=True)
    assert [found.key for found in Cache(root).entries()] == [new.key]


def test_a_damaged_manifest_is_told_and_pruned(root: str) -> None:
    entry = entries.publish(root)
    where = entry.folder / FILE_NAME
    where.write_bytes(where.read_bytes().replace(b"org/model", b"org/modem"))
    assert Cache(root).find(Key(entry.manifest.fields)) is None
    ((folder, problem),) = Cache(root).problems().items()
    assert folder == entry.folder
    assert "checksum" in problem
    (removal,) = Cache(root).prune()
    assert removal.path == entry.folder
    assert "damaged" in removal.reason
    assert below(Cache(root).root) == []


def test_data_that_is_gone_is_told_and_pruned(root: str) -> None:
    entry = entries.publish(root)
    remove(entry.data / "chunk")
    assert Cache(root).find(Key(entry.manifest.fields)) is None
    (removal,) = Cache(root).prune()
    assert "damaged" in removal.reason
    assert Cache(root).entries() == []


def test_a_file_of_another_content_is_told(root: str) -> None:
    entry = entries.publish(root)
    (entry.data / "chunk").write_bytes(b"y" * 1000)
    assert entry.lost_files() == []
    with pytest.raises(CacheError, match="chunk: its content is not what was written"):
        entry.require_undamaged_files()
    (entry.data / "chunk").write_bytes(b"y")
    assert entry.lost_files() == ["chunk: has 1 bytes, was written with 1000"]


def test_two_do_not_convert_the_same_at_a_time(root: str) -> None:
    first, second, order = Cache(root), Cache(root), []
    waiting = threading.Event()

    def convert() -> None:
        waiting.set()
        with second.lock(KEY, model="org/model"):
            order.append("second")

    with first.lock(KEY):
        thread = threading.Thread(target=convert)
        thread.start()
        waiting.wait()
        with pytest.raises(LockTimeoutError, match=r"has been held for .* by process \d+ on"), second.lock(KEY, 0.3):
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_what_a_killed_conversion_left_is_removed(root: str) -> None:
    entry = entries.publish(root)
    (entry.folder / "data-killed").mkdir() if isinstance(entry.folder, Path) else None
    (entry.folder / "data-killed" / "chunk").write_bytes(b"x" * 500)
    dead = {"host": "here", "pid": (1 << 22) + 1, "since": 0, "started": "0"}
    alive = json.loads(_mark_of_this_process(root))
    (entry.folder / "data-killed.owner").write_text(json.dumps(alive | dead))
    (removal,) = Cache(root).prune(incomplete=True)
    assert (removal.path, removal.nbytes) == (entry.folder / "data-killed", 500)
    assert below(Cache(root).root) == below_of(entry)


def _mark_of_this_process(root: str) -> str:
    with Cache(root).lock(KEY):
        return (Cache(root).root / ".locks" / f"{KEY.digest}.holder").read_bytes().decode()
