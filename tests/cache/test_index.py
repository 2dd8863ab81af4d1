"""The index: lists need not read manifests, and say the same whatever becomes of it."""

import os
from pathlib import Path

import pytest
from support.entries import COMMITS, publish

from lazyload.cache import index, looking
from lazyload.cache.cache import Cache

MODELS = 12


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of a few entries, of which an index is worth it, and so old that one may be believed."""
    monkeypatch.setattr(looking, "WORTH_BYTES", 0)
    monkeypatch.setattr(index, "_SETTLED_SECONDS", -1.0)
    for number in range(MODELS):
        publish(tmp_path, f"org/model-{number:02}", nbytes=1000 + number)
    return tmp_path


def listed(root: Path) -> list[tuple[str, int]]:
    entries, problems = Cache(root).look()
    assert not problems
    return [(entry.model, entry.nbytes) for entry in entries]


EXPECTED = [(f"org/model-{number:02}", 1000 + number) for number in range(MODELS)]


def test_lists_read_no_manifest_that_the_index_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(root) == EXPECTED

    def never(folder: Path) -> None:
        raise AssertionError(f"{folder} is read")

    monkeypatch.setattr(looking, "read_entry", never)
    assert listed(root) == EXPECTED


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"a\tb\tc\n", None])
def test_a_damaged_or_absent_index_changes_nothing(root: Path, content: bytes | None) -> None:
    listed(root)
    path = root / ".index" / "entries"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert listed(root) == EXPECTED


def test_a_changed_index_is_not_believed(root: Path) -> None:
    listed(root)
    path = root / ".index" / "entries"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"1003", b"9003"))
    assert path.read_bytes() != before
    assert listed(root) == EXPECTED


def test_what_was_published_or_removed_since_is_seen(root: Path) -> None:
    listed(root)
    publish(root, "org/new", commit=COMMITS[1], nbytes=7)
    Cache(root).remove("org/model-03")
    assert listed(root) == [*EXPECTED[:3], *EXPECTED[4:], ("org/new", 7)]


def test_damage_is_seen_although_the_index_knows_the_entry(root: Path) -> None:
    listed(root)
    damaged, gone = Cache(root).entries()[:2]
    (damaged.folder / "manifest.json").write_text("{")
    for file in gone.data.iterdir():
        file.unlink()
    entries, problems = Cache(root).look()
    assert len(entries) == MODELS - 2
    assert problems.keys() == {damaged.folder, gone.folder}


def test_a_root_that_cannot_be_written_to_is_listed(root: Path) -> None:
    (root / ".index").touch()
    assert listed(root) == EXPECTED
    assert (root / ".index").is_file()


def test_pruning_leaves_the_index_and_removes_what_was_left_beside_it(root: Path) -> None:
    listed(root)
    left = root / ".index" / "entries.0123"
    left.touch()
    os.utime(left, (0, 0))
    nonce = root / ".teams" / "b"
    nonce.parent.mkdir()
    nonce.touch()
    os.utime(nonce, (0, 0))
    (nonce.parent / "a").symlink_to("gone")  # As one that vanishes while it is looked at.
    assert [removal.path for removal in Cache(root).prune()] == [left, nonce]
    assert listed(root) == EXPECTED
    Cache(root).prune(everything=True)
    assert listed(root) == []
