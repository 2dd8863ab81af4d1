"""Removing one generation: whoever begins to read it in between keeps it, and its manifest comes back."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyload.cache import generation, liveness
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key

KEY = Key({"n": 1})


def publish(root: Path) -> Entry:
    with Cache(root).staging(KEY, "org/model", 10) as staging:
        (staging.path / "chunk").write_bytes(b"x")
        return staging.publish(arrays={}, nbytes=1, source={}, config={}, seconds=1)


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return publish(tmp_path)


@pytest.fixture
def manifest(entry: Entry) -> Path:
    return entry.folder / "manifest.json"


@pytest.fixture
def held() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as held:
        yield held


def before_renaming(patch: pytest.MonkeyPatch, name: str, act: Callable[[], object], *, after: bool = False) -> None:
    """Does something once, just before or after a file or folder of that name gets another one."""
    rename = os.rename
    done: list[object] = []

    def renamed(source: Path, target: Path) -> None:
        is_it = Path(source).name == name and not done
        if is_it and not after:
            done.append(act())
        rename(source, target)
        if is_it and after:
            done.append(act())

    patch.setattr(os, "rename", renamed)


def require_untouched(entry: Entry, manifest: Path, content: bytes) -> None:
    assert manifest.read_bytes() == content
    assert (entry.data / "chunk").read_bytes() == b"x"
    assert list(entry.folder.glob("removed-*")) == []


def test_what_nobody_uses_is_gone_with_its_manifest_and_the_marks_of_the_dead(entry: Entry, manifest: Path) -> None:
    dead = entry.data.with_name(f"{entry.data.name}.lease-1")
    dead.write_text("{}")
    os.utime(dead, (0, 0))
    assert generation.remove(entry.data, manifest) is None
    assert list(entry.folder.iterdir()) == []


def test_readers_are_seen_by_their_marks_and_by_their_locks(entry: Entry) -> None:
    assert generation.user_of(entry.data) is None
    with liveness.locked_shared(entry.data):
        assert generation.user_of(entry.data) == "another process is reading it"
    with generation.leased(entry.data):
        assert "is reading it" in generation.user_of(entry.data)
        assert str(os.getpid()) in generation.user_of(entry.data)


@pytest.mark.parametrize(
    ("when", "how"),
    [
        ("as the manifest is hidden", "mark"),
        ("as the manifest is hidden", "lock"),
        ("as the data is renamed", "mark"),
        ("as the data is renamed", "lock"),
        # There is no folder then that could be locked.
        ("once the data is renamed", "mark"),
    ],
)
def test_who_begins_to_read_in_between_keeps_it(
    entry: Entry, manifest: Path, held: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, when: str, how: str
) -> None:
    content = manifest.read_bytes()

    def read() -> None:
        if how == "lock":
            held.enter_context(liveness.locked_shared(entry.data))
        else:
            held.enter_context(liveness.marked(entry.data.with_name(f"{entry.data.name}.lease-1")))

    name = manifest.name if when == "as the manifest is hidden" else entry.data.name
    before_renaming(monkeypatch, name, read, after=when == "once the data is renamed")
    assert "is reading it" in generation.remove(entry.data, manifest)
    require_untouched(entry, manifest, content)


def test_force_removes_what_somebody_begins_to_read_in_between(
    entry: Entry, manifest: Path, held: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_renaming(monkeypatch, entry.data.name, lambda: held.enter_context(generation.leased(entry.data)))
    assert generation.remove(entry.data, manifest, force=True) is None
    assert list(entry.folder.iterdir()) == []


def test_a_manifest_comes_back_where_the_data_cannot_be_renamed(
    entry: Entry, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = manifest.read_bytes()

    def fail() -> None:
        raise OSError(errno.EIO, "no")

    before_renaming(monkeypatch, entry.data.name, fail)
    with pytest.raises(OSError, match="no"):
        generation.remove(entry.data, manifest)
    require_untouched(entry, manifest, content)


def test_data_that_is_gone_takes_its_manifest_along(entry: Entry, manifest: Path) -> None:
    (entry.data / "chunk").unlink()
    entry.data.rmdir()
    assert generation.remove(entry.data, manifest) is None
    assert list(entry.folder.iterdir()) == []


def test_a_manifest_of_newer_data_stays(entry: Entry, manifest: Path, tmp_path: Path) -> None:
    newer = publish(tmp_path)
    content = manifest.read_bytes()
    assert generation.remove(entry.data, manifest) is None
    require_untouched(newer, manifest, content)
    assert not entry.data.exists()


def test_a_damaged_manifest_goes_with_the_data(entry: Entry, manifest: Path) -> None:
    manifest.write_text("{")
    assert generation.remove(entry.data, manifest) is None
    assert list(entry.folder.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_manifest_that_comes_back_replaces_none_that_was_published_meanwhile(
    entry: Entry, manifest: Path, held: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links")

    def read_and_publish() -> None:
        held.enter_context(generation.leased(entry.data))
        manifest.write_text("newer")

    if not links:
        monkeypatch.setattr(os, "link", link)
    before_renaming(monkeypatch, manifest.name, read_and_publish, after=True)
    assert "is reading it" in generation.remove(entry.data, manifest)
    require_untouched(entry, manifest, b"newer")


def test_a_manifest_comes_back_without_hard_links(
    entry: Entry, manifest: Path, held: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = manifest.read_bytes()

    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", link)
    before_renaming(monkeypatch, manifest.name, lambda: held.enter_context(generation.leased(entry.data)))
    assert "is reading it" in generation.remove(entry.data, manifest)
    require_untouched(entry, manifest, content)
