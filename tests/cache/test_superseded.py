"""Which entries are superseded: what calls cannot reach any more, and nothing else."""

from pathlib import Path

import pytest
from support.entries import COMMITS, publish, publish_folder

from lazyload.cache.cache import Cache


def found(root: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """By the key of what is superseded: the key of the last entry, and what is newer about it."""
    return {folder.name: (one.by.key, one.changes) for folder, one in Cache(root).superseded().items()}


@pytest.mark.parametrize(
    ("newer", "change"),
    [
        ({"commit": COMMITS[1]}, "commit"),
        ({"mapping": "m2"}, "mapping"),
        ({"own_head": "h2"}, "mapping"),
        ({"format": 4}, "entry format"),
    ],
)
def test_a_later_entry_of_the_same_call_supersedes(tmp_path: Path, newer: dict[str, object], change: str) -> None:
    old = publish(tmp_path)
    new = publish(tmp_path, **newer)
    assert found(tmp_path) == {old.key: (new.key, (change,))}


def test_several_are_superseded_by_the_last_one(tmp_path: Path) -> None:
    first = publish(tmp_path)
    second = publish(tmp_path, commit=COMMITS[1])
    third = publish(tmp_path, commit=COMMITS[2], mapping="m2")
    assert found(tmp_path) == {
        first.key: (third.key, ("commit", "mapping")),
        second.key: (third.key, ("commit", "mapping")),
    }


@pytest.mark.parametrize(
    "other",
    [
        {"dtype": "float32"},
        {"layout": "maxtext"},
        {"layers": [0, 8]},
        {"config": {"rope_theta": 1.0}},
        {"storage": {"ocdbt": False}},
        {"container": {"metadata": {}, "scalars": {}, "item": "items"}},
        {"place": {"subfolder": "text"}},
        {"place": {"variant": "fp16"}},
        {"revision": "v1"},
        {"model": "org/other"},
    ],
)
def test_an_entry_of_another_call_supersedes_nothing(tmp_path: Path, other: dict[str, object]) -> None:
    publish(tmp_path)
    publish(tmp_path, **{"commit": COMMITS[1], "mapping": "m2", **other})
    assert found(tmp_path) == {}


def test_what_was_asked_for_by_commit_is_superseded_by_no_other_commit(tmp_path: Path) -> None:
    pinned = publish(tmp_path, commit=COMMITS[0], revision=COMMITS[0])
    publish(tmp_path, commit=COMMITS[1], revision=COMMITS[1])
    publish(tmp_path, commit=COMMITS[2])
    assert found(tmp_path) == {}
    newer = publish(tmp_path, commit=COMMITS[0], revision=COMMITS[0], mapping="m2")
    assert found(tmp_path) == {pinned.key: (newer.key, ("mapping",))}


def test_no_revision_and_main_are_the_same(tmp_path: Path) -> None:
    old = publish(tmp_path, revision=None)
    new = publish(tmp_path, commit=COMMITS[1], revision="main")
    assert found(tmp_path) == {old.key: (new.key, ("commit",))}


def test_newer_contents_of_a_folder_supersede_older_ones(tmp_path: Path) -> None:
    old = publish_folder(tmp_path, "/models/a", "one")
    new = publish_folder(tmp_path, "/models/a", "two")
    publish_folder(tmp_path, "/models/b", "three")
    assert found(tmp_path) == {old.key: (new.key, ("contents",))}
