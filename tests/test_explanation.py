"""`lazyload.explain`: the entries of a model, and field by field why a call would not use them."""

import json
import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.hub import Hub

import lazyload
from lazyload.cache.manifest import checksum_of


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.make("llama3_tied", tmp_path / "models")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fields(comparison: lazyload.Comparison) -> dict[str, tuple[object, object]]:
    return {each.field: (each.wanted, each.found) for each in comparison.differences}


def test_a_hit_stands_first_and_the_closest_next(model: Path, root: Path) -> None:
    plain = lazyload.convert(model, cache_dir=root)
    other = lazyload.convert(model, cache_dir=root, dtype="float32", layers=range(0, 1))
    wide = lazyload.convert(model, cache_dir=root, dtype="float32")
    explained = lazyload.explain(model, cache_dir=root)
    assert explained.hit
    assert explained.key == plain.key == lazyload.plan(model, cache_dir=root).key
    assert [one.entry.key for one in explained.comparisons] == [plain.key, wide.key, other.key]
    assert [one.hit for one in explained.comparisons] == [True, False, False]
    assert fields(explained.comparisons[1]) == {"dtype": ("bfloat16", "float32")}
    assert fields(explained.comparisons[2])["layers"] == (None, [0, 1])


def test_every_option_that_decides_is_named(model: Path, root: Path) -> None:
    lazyload.convert(model, cache_dir=root)
    storage = {"ocdbt": False, "chunk_bytes": 4096}
    explained = lazyload.explain(model, cache_dir=root, dtype="float16", storage=storage, config={"rope_theta": 1e5})
    (comparison,) = explained.comparisons
    named = fields(comparison)
    assert not explained.hit
    assert named["dtype"] == ("float16", "bfloat16")
    assert named["storage.ocdbt"] == (False, True)
    assert named["storage.chunk_bytes"] == (4096, 16 << 20)
    assert named["config.rope_theta"] == (1e5, None)


def test_a_branch_that_has_moved_on(model: Path, root: Path, hub: Hub) -> None:
    before = hub.add("org/model", model)
    lazyload.convert("org/model", cache_dir=root)
    (model / "config.json").touch()
    (comparison,) = lazyload.explain("org/model", cache_dir=root).comparisons
    (difference,) = comparison.differences
    assert (difference.field, difference.wanted, difference.found) == (
        "source.commit",
        hub.commit("org/model"),
        before,
    )
    assert difference.meaning == "another commit"
    assert lazyload.explain("org/model", cache_dir=root, revision=before).hit


def test_other_contents_of_a_folder(model: Path, root: Path) -> None:
    lazyload.convert(model, cache_dir=root)
    config = model / "config.json"
    config.write_text(config.read_text().replace("{", '{"note": null,', 1))
    (comparison,) = lazyload.explain(model, cache_dir=root).comparisons
    assert [each.field for each in comparison.differences] == ["source.files.config.json.sha256"]
    assert comparison.differences[0].meaning == "other contents"


def test_a_folder_that_nothing_was_made_of_is_not_read(model: Path, root: Path, tmp_path: Path) -> None:
    lazyload.convert(model, cache_dir=root)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    explained = lazyload.explain(model, cache_dir=root, dtype="float32")
    (comparison,) = explained.comparisons
    assert explained.key is None
    assert [each.field for each in comparison.differences] == ["source", "dtype"]


def test_a_copy_of_a_folder_hits_the_entry_of_the_first(model: Path, root: Path, tmp_path: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root)
    copy = shutil.copytree(model, tmp_path / "copy")
    explained = lazyload.explain(copy, cache_dir=root)
    assert explained.hit
    assert explained.comparisons[0].entry.key == converted.key


def test_damage_is_said(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root, storage={"ocdbt": False, "zarr3": False})
    (converted.path / "embed.embedding" / "0.0").unlink()
    explained = lazyload.explain(model, cache_dir=root, storage={"ocdbt": False, "zarr3": False})
    (comparison,) = explained.comparisons
    assert not explained.hit
    assert comparison.damage == "embed.embedding/0.0: is gone"


def test_data_that_cannot_be_looked_at_is_said_to_be_so(model: Path, root: Path) -> None:
    path = lazyload.convert(model, cache_dir=root).path
    file = next(path.rglob("d/*"))
    file.unlink()
    file.symlink_to(file)
    (comparison,) = lazyload.explain(model, cache_dir=root).comparisons
    assert comparison.damage.startswith(f"{file}: cannot be looked at now: ")


def test_entries_of_other_versions_are_named(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root)
    path = converted.path.parent / "manifest.json"
    content = json.loads(path.read_text()) | {"format": 1}
    content.pop("checksum")
    path.write_text(json.dumps(content))
    explained = lazyload.explain(model, cache_dir=root)
    assert not explained.hit
    assert explained.comparisons == ()
    (unusable,) = explained.unusable
    assert "made by lazyload 0.1" in unusable
    content |= {"format": 99}
    path.write_text(json.dumps(content | {"checksum": checksum_of(content)}))
    (unusable,) = lazyload.explain(model, cache_dir=root).unusable
    assert "format 99, this version reads" in unusable


def test_nothing_is_written(model: Path, root: Path) -> None:
    explained = lazyload.explain(model, cache_dir=root)
    assert (explained.hit, explained.comparisons, explained.unusable) == (False, (), ())
    assert not root.exists()
