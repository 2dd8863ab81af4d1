"""A folder that has never been loaded is converted while it is found out what it contains."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from support import checkpoints

import lazyload
from lazyload.checkpoint.assembly import Assembly
from lazyload.errors import CorruptSourceError
from lazyload.sources.local import LocalFiles


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.make("llama3_tied", tmp_path / "models")


def entry_folders(cache: Path) -> list[Path]:
    return [folder for models in cache.glob("models--*") for folder in models.iterdir()]


def test_the_entry_ends_under_the_key_of_its_content(model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    made = lazyload.convert(model, cache_dir=cache)
    assert made.converted
    (folder,) = entry_folders(cache)
    assert folder.name == made.key == lazyload.plan(model, cache_dir=cache).key
    assert sorted(path.name for path in folder.iterdir()) == [made.path.name, "last-used", "manifest.json"]
    assert not lazyload.convert(shutil.copytree(model, tmp_path / "copy"), cache_dir=cache).converted


def test_a_file_that_changes_before_it_is_hashed_keeps_all_from_being_published(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = threading.Event()
    hash_one = LocalFiles._hash_one

    def hash_late(self: LocalFiles, name: str, **options: object) -> str:
        assert converted.wait(60)
        weights = model / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        return hash_one(self, name, **options)  # type: ignore[arg-type]

    def report(progress: lazyload.Progress) -> None:
        if progress.stage == "convert" and progress.done == progress.total:
            converted.set()

    monkeypatch.setattr(LocalFiles, "_hash_one", hash_late)
    with pytest.raises(CorruptSourceError, match="has been changed while it was being converted"):
        lazyload.convert(model, cache_dir=tmp_path / "cache", progress=report)
    assert entry_folders(tmp_path / "cache") == []


def test_copies_that_are_converted_at_the_same_time_become_one_entry(model: Path, tmp_path: Path) -> None:
    cache, copy = tmp_path / "cache", shutil.copytree(model, tmp_path / "copy")
    both = threading.Barrier(2)

    def convert(folder: Path) -> lazyload.CachedCheckpoint:
        met = []

        def report(progress: lazyload.Progress) -> None:
            if progress.stage == "convert" and not met:
                met.append(both.wait(60))

        return lazyload.convert(folder, cache_dir=cache, progress=report)

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(convert, (model, copy))
    assert one.key == other.key
    assert one.path == other.path
    (folder,) = entry_folders(cache)
    assert [path.name for path in folder.glob("data-*")] == [one.path.name]


def test_several_processes_convert_it_once(model: Path, tmp_path: Path) -> None:
    code = "import sys, lazyload; print(lazyload.convert(sys.argv[1], cache_dir=sys.argv[2]).converted)"
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    command = [sys.executable, "-c", code, str(model), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    assert sorted(process.communicate(timeout=120)[0] for process in processes) == ["False\n", "False\n", "True\n"]


def test_what_a_killed_conversion_left_is_removed_by_the_next_one_whatever_its_key(model: Path, tmp_path: Path) -> None:
    code = """
import os, sys, lazyload
def report(progress):
    if progress.stage == "convert" and progress.done:
        os._exit(9)
lazyload.convert(sys.argv[1], cache_dir=sys.argv[2], progress=report)
"""
    cache = tmp_path / "cache"
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    assert (
        subprocess.run([sys.executable, "-c", code, str(model), str(cache)], env=environment, check=False).returncode
        == 9
    )
    assert len(entry_folders(cache)) == 1
    os.utime(model / "model.safetensors")
    made = lazyload.convert(model, cache_dir=cache)
    assert [folder.name for folder in entry_folders(cache)] == [made.key]


def test_what_goes_wrong_with_a_device_is_raised_and_the_entry_is_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Assembly) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Assembly, "array", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            lazyload.from_pretrained(model, cache_dir=tmp_path / "cache")
    loaded = lazyload.from_pretrained(model, cache_dir=tmp_path / "cache", dtype="bfloat16")
    assert lazyload.last_report().hit
    assert np.isfinite(np.asarray(loaded.embed.embedding, np.float32)).all()


def test_what_is_delivered_is_what_is_read_again(model: Path, tmp_path: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    delivered = lazyload.from_pretrained(model, cache_dir=tmp_path / "cache", mesh=mesh)
    assert not lazyload.last_report().hit
    read = lazyload.from_pretrained(model, cache_dir=tmp_path / "cache", mesh=mesh)
    assert lazyload.last_report().hit
    pairs = zip(jax.tree.leaves(nnx.state(delivered)), jax.tree.leaves(nnx.state(read)), strict=True)
    for one, other in pairs:
        assert one.sharding == other.sharding
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
