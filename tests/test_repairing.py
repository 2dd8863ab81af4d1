"""`lazyload.repair`: what is damaged is converted again if its source is what it was, and removed if not."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import checkpoints
from support.hub import Hub

import lazyload
from lazyload.errors import CacheError

FILES = lazyload.Storage(ocdbt=False, zarr3=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.make("llama3_tied", tmp_path / "models")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def flip(path: Path) -> None:
    """Changes the last byte of every chunk of an array."""
    for chunk in (path / "embed.embedding").rglob("*"):
        if chunk.is_file() and not chunk.name.startswith("."):
            content = bytearray(chunk.read_bytes())
            content[-1] ^= 1
            chunk.write_bytes(content)


def lose_a_chunk(path: Path) -> None:
    (path / "embed.embedding" / "0.0").unlink()


def lose_the_data(path: Path) -> None:
    shutil.rmtree(path)


def cut_the_manifest(path: Path) -> None:
    manifest = next(folder / "manifest.json" for folder in path.parents if (folder / "manifest.json").exists())
    manifest.write_bytes(manifest.read_bytes()[:1000])


Damage = Callable[[Path], None]


@pytest.mark.parametrize("damage", [flip, lose_a_chunk, lose_the_data])
def test_what_is_damaged_is_converted_again(model: Path, root: Path, damage: Damage) -> None:
    converted = lazyload.convert(model, cache_dir=root, storage=FILES)
    sound = lazyload.convert(model, cache_dir=root, dtype="float32")
    damage(converted.path)
    outcomes = {each.verification.key: each.outcome for each in lazyload.repair(cache_dir=root)}
    assert outcomes == {converted.key: "converted", sound.key: "sound"}
    assert [found.problems for found in lazyload.verify(cache_dir=root)] == [(), ()]
    again = lazyload.convert(model, cache_dir=root, storage=FILES)
    assert not again.converted
    assert again.key == converted.key
    assert {each.outcome for each in lazyload.repair(cache_dir=root)} == {"sound"}


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "float32"},
        {"dtype": {"*norm*": "float32", "*": "float16"}},
        {"layers": range(1, 2)},
        {"layout": lazyload.MaxText()},
        {"layout": lazyload.Tunix()},
        {"layout": lazyload.MaxText(scan_layers=False, vocab_size=640)},
        {"config": {"rope_theta": 1e5}},
        {"storage": {"ocdbt": False, "compression": "zstd", "chunk_bytes": 4096}},
    ],
    ids=str,
)
def test_the_same_call_is_made_again(model: Path, root: Path, options: dict[str, object]) -> None:
    converted = lazyload.convert(model, cache_dir=root, **options)
    lose_the_data(converted.path)
    assert [each.outcome for each in lazyload.repair(converted.key, cache_dir=root)] == ["converted"]
    assert not lazyload.convert(model, cache_dir=root, **options).converted


def test_a_variant_in_a_subfolder_is_found_again(model: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "all" / "text")
    (tmp_path / "all" / "text" / "model.safetensors").rename(tmp_path / "all" / "text" / "model.fp16.safetensors")
    converted = lazyload.convert(tmp_path / "all", cache_dir=root, subfolder="text", variant="fp16")
    lose_the_data(converted.path)
    assert [each.outcome for each in lazyload.repair(cache_dir=root)] == ["converted"]
    assert lazyload.verify(cache_dir=root)[0].problems == ()


def test_a_model_of_the_hub_is_repaired_at_its_commit(model: Path, root: Path, hub: Hub, tmp_path: Path) -> None:
    commit = hub.add("org/model", model)
    converted = lazyload.convert("org/model", cache_dir=root, storage=FILES)
    flip(converted.path)
    assert [each.outcome for each in lazyload.repair(cache_dir=root)] == ["converted"]
    assert lazyload.Cache(root).entries()[0].revision == "main"
    hub.revisions["org/model", commit] = shutil.copytree(model, tmp_path / "before")
    (model / "config.json").touch()
    assert hub.commit("org/model") != commit
    flip(lazyload.Cache(root).entries()[0].path)
    assert [each.outcome for each in lazyload.repair(cache_dir=root)] == ["converted"]
    (entry,) = lazyload.Cache(root).entries()
    assert (entry.key, entry.commit) == (converted.key, commit)


def test_what_cannot_be_converted_again_is_removed(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root, storage=FILES)
    flip(converted.path)
    config = model / "config.json"
    config.write_text(config.read_text().replace("{", '{"note": null,', 1))
    (repair,) = lazyload.repair(cache_dir=root, dry_run=True)
    assert (repair.outcome, converted.path.exists()) == ("removed", True)
    (repair,) = lazyload.repair(cache_dir=root)
    assert repair.outcome == "removed"
    assert "has changed since, or this version converts it" in repair.reason
    assert lazyload.repair(cache_dir=root) == []
    assert not converted.path.exists()


def test_what_has_a_source_that_cannot_be_seen_now_is_kept(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root, storage=FILES)
    flip(converted.path)
    model.rename(model.with_name("elsewhere"))
    (repair,) = lazyload.repair(cache_dir=root)
    assert (repair.outcome, "is not a folder" in repair.reason) == ("kept", True)
    model.with_name("elsewhere").rename(model)
    assert [each.outcome for each in lazyload.repair(cache_dir=root)] == ["converted"]


def test_a_manifest_that_says_nothing_is_removed_with_its_data(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root)
    cut_the_manifest(converted.path)
    (repair,) = lazyload.repair(cache_dir=root)
    assert (repair.outcome, repair.verification.key) == ("removed", converted.key)
    assert "its manifest does not say what it was made of" in repair.reason
    assert not converted.path.exists()


def test_a_layout_of_somebody_s_own_is_removed(model: Path, root: Path) -> None:
    tree = lazyload.Layout({"table": "embed : vocab embed"}, name="mine", skipped=["model.layers.*", "model.norm.*"])
    converted = lazyload.convert(model, cache_dir=root, layout=tree, storage=FILES)
    lose_the_data(converted.path)
    (repair,) = lazyload.repair(cache_dir=root)
    assert (repair.outcome, "'mine' is none that is known by its name" in repair.reason) == ("removed", True)


def test_what_is_in_use_is_kept_if_it_cannot_be_converted(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root, storage=FILES)
    with converted.in_use():
        flip(converted.path)
        config = model / "config.json"
        config.write_text(config.read_text().replace("{", '{"note": null,', 1))
        (repair,) = lazyload.repair(cache_dir=root)
        assert repair.outcome == "kept"
        assert "is reading it" in repair.reason
        assert converted.path.exists()


def test_a_reader_keeps_its_data_while_others_get_what_is_converted_again(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root, storage=FILES)
    with converted.in_use():
        flip(converted.path)
        assert [each.outcome for each in lazyload.repair(cache_dir=root)] == ["converted"]
        assert converted.path.exists()
        assert lazyload.convert(model, cache_dir=root, storage=FILES).path != converted.path


def test_a_dry_run_changes_nothing(model: Path, root: Path) -> None:
    converted = lazyload.convert(model, cache_dir=root, storage=FILES)
    flip(converted.path)
    assert [each.outcome for each in lazyload.repair(cache_dir=root, dry_run=True)] == ["converted"]
    assert lazyload.verify(cache_dir=root)[0].problems


def test_unknown_targets_are_an_error(root: Path) -> None:
    with pytest.raises(CacheError, match="neither a model nor the start of a key"):
        lazyload.repair("org/nothing", cache_dir=root)
