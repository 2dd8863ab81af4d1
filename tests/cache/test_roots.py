"""Any folder can be the cache's root, and everything that is written is in it."""

import os
from pathlib import Path

import pytest
from support import checkpoints

import lazyload
from lazyload.cache import root as roots
from lazyload.errors import CacheError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("flags", [True, False])
@pytest.mark.parametrize(
    "name", ["x%41y", "a#b", "q?x=1", "a|b", "two words ", "ünï漢", "new/../root", "link", "-f", "a:b", "~", "'\""]
)
def test_a_root_of_any_name_works_and_nothing_is_written_beside_it(
    model: Path, tmp_path: Path, name: str, flags: bool
) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    root = parent / name
    if name == "link":
        (tmp_path / "elsewhere").mkdir()
        root.symlink_to(tmp_path / "elsewhere")
    storage = lazyload.Storage(flags, flags)
    converted = lazyload.convert(model, cache_dir=root, storage=storage)
    assert converted.path.is_relative_to(os.path.normpath(root))
    lazyload.from_pretrained(model, cache_dir=root, storage=storage)
    assert lazyload.last_report().hit
    assert [found.problems for found in lazyload.verify(cache_dir=root)] == [()]
    assert len(list(parent.iterdir())) == 1
    lazyload.Cache(root).prune(older_than=0)
    assert not converted.path.exists()


@pytest.mark.parametrize("root", ["https://host/cache", Path("memory://cache"), "az://bucket/cache"], ids=repr)
def test_a_root_behind_another_url_is_refused(root: str | Path) -> None:
    with pytest.raises(CacheError, match="give a path, gs://bucket/path or s3://bucket/path"):
        lazyload.Cache(root)


def test_a_root_that_tensorstore_cannot_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="backslash"):
        lazyload.Cache(tmp_path / "a\\b")


@pytest.mark.parametrize(
    ("chosen", "parts"),
    [
        ("cache:/own", ["cache", "/own"]),
        ("/local:gs://bucket/path:/own", ["/local", "gs://bucket/path", "/own"]),
        ("gs:/bucket/path", ["gs:/bucket/path"]),
        ("hdfs://host/path", ["hdfs://host/path"]),
    ],
)
def test_colons_are_those_of_urls_or_stand_between_roots(chosen: str, parts: list[str]) -> None:
    assert roots._parts(chosen) == parts
