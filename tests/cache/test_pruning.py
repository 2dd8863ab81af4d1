"""What pruning removes by each of its rules, and by several."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from support.entries import COMMITS, publish

from lazyload.cache import liveness
from lazyload.cache.cache import Cache
from lazyload.cache.manifest import checksum_of
from lazyload.errors import ArgumentError


def sizes(cache: Cache) -> list[int]:
    return sorted(entry.nbytes for entry in cache.entries())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Four entries of one model, two of them of a branch that has moved on, and one of another model."""
    publish(tmp_path, nbytes=1000, used=50)
    publish(tmp_path, nbytes=2000, used=40, commit=COMMITS[1])
    publish(tmp_path, nbytes=3000, used=3000, dtype="float32")
    publish(tmp_path, nbytes=4000, used=20, layout="maxtext")
    publish(tmp_path, "org/other", nbytes=5000, used=4000)
    return Cache(tmp_path)


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({}, [1000, 2000, 3000, 4000, 5000]),
        ({"superseded": True}, [2000, 3000, 4000, 5000]),
        ({"older_than": 1000}, [1000, 2000, 4000]),
        ({"older_than": 1000, "superseded": True}, [2000, 4000]),
        ({"keep_last": 1}, [4000, 5000]),
        ({"keep_last": 3}, [1000, 2000, 4000, 5000]),
        ({"keep_last": 9}, [1000, 2000, 3000, 4000, 5000]),
        ({"keep_last": 1, "older_than": 1000}, [1000, 2000, 4000, 5000]),
        ({"keep_last": 3, "superseded": True}, [1000, 2000, 3000, 4000, 5000]),
        ({"keep_last": 2, "superseded": True}, [2000, 3000, 4000, 5000]),
        ({"keep_last": 1, "max_bytes": 0}, [4000, 5000]),
        ({"everything": True}, []),
        ({"everything": True, "keep_last": 1}, [4000, 5000]),
    ],
)
def test_rules(cache: Cache, rules: dict[str, object], left: list[int]) -> None:
    planned = cache.prune(**rules, dry_run=True)
    assert sizes(cache) == [1000, 2000, 3000, 4000, 5000]
    assert cache.prune(**rules) == planned
    assert sizes(cache) == left
    assert len(planned) == 5 - len(left)


def test_what_other_rules_remove_counts_for_the_size(cache: Cache) -> None:
    total = sum(removal.nbytes for removal in cache.prune(everything=True, dry_run=True))
    largest = max(cache.prune(everything=True, dry_run=True), key=lambda removal: removal.nbytes).nbytes
    cache.prune(older_than=3500, max_bytes=total - largest)
    assert sizes(cache) == [1000, 2000, 3000, 4000]
    cache.prune(max_bytes=total - largest - 1)
    assert sizes(cache) == [1000, 2000, 4000]


def test_reasons_say_which_rule(cache: Cache) -> None:
    newer = next(entry for entry in cache.entries() if entry.nbytes == 2000)
    reasons = {removal.reason for removal in cache.prune(superseded=True, older_than=1000, dry_run=True)}
    assert reasons == {f"superseded by {newer.key[:8]}: newer commit", "not used for 0.0 days"}
    assert {removal.reason for removal in cache.prune(keep_last=3, dry_run=True)} == {
        "not among the 3 of its model used last"
    }


@pytest.mark.parametrize("rules", [{"superseded": True}, {"everything": True}, {"keep_last": 1}, {"older_than": 0}])
def test_what_is_in_use_stays(cache: Cache, rules: dict[str, object]) -> None:
    used = next(entry for entry in cache.entries() if entry.nbytes == 1000)
    with used.in_use():
        cache.prune(**rules)
        assert 1000 in sizes(cache)


def half_done(folder: Path) -> Path:
    """What a killed conversion leaves."""
    data = folder / "data-1"
    data.mkdir(parents=True)
    (data / "chunk").write_bytes(b"x" * 100)
    dead = asdict(liveness.this_process()) | {"started": "0"}
    (folder / "data-1.owner").write_text(json.dumps(dead))
    return data


def test_only_what_is_unfinished(cache: Cache) -> None:
    damaged, replaced = cache.entries()[:2]
    (damaged.folder / "manifest.json").write_text("{}")
    old = replaced.folder / "data-0"
    old.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    beside, alone = half_done(replaced.folder), half_done(cache.root / "models--org--new" / ("0" * 32))
    removed = cache.prune(incomplete=True)
    assert {removal.path for removal in removed} == {beside, alone}
    assert {removal.reason for removal in removed} == {"a conversion that did not finish"}
    assert damaged.folder.exists()
    assert old.exists()
    assert len(cache.entries()) == 4
    assert not alone.parent.exists()
    assert {removal.path for removal in cache.prune()} == {damaged.folder, old}


def test_unfinished_and_another_rule_contradict_each_other(cache: Cache) -> None:
    with pytest.raises(ArgumentError, match="leave the other rules out"):
        cache.prune(incomplete=True, superseded=True)
    with pytest.raises(ArgumentError, match="1 or more"):
        cache.prune(keep_last=0)
    assert len(cache.entries()) == 5


@pytest.mark.parametrize("number", [1, 3])
def test_what_other_versions_made_goes_with_everything(cache: Cache, number: int) -> None:
    path = cache.entries()[0].folder / "manifest.json"
    content = json.loads(path.read_text()) | {"format": number}
    content.pop("checksum")
    # The first format had none.
    path.write_text(json.dumps(content | ({"checksum": checksum_of(content)} if number > 1 else {})))
    cache.prune(everything=True)
    assert not path.exists()


def test_what_cannot_be_looked_at_now_stays(cache: Cache) -> None:
    path = cache.entries()[0].folder / "manifest.json"
    path.unlink()
    path.symlink_to(path)
    cache.prune(everything=True)
    assert path.is_symlink()
    assert cache.entries() == []
