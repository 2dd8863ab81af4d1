"""Damage anywhere in an entry: verifying names it, and a load with `verify=True` never returns other numbers.

`LAZYLOAD_TESTS=whole` makes 500 damages.
"""

import os
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from support import checkpoints

import lazyload
from lazyload.errors import LazyLoadError

DAMAGES = 500 if os.environ.get("LAZYLOAD_TESTS") == "whole" else 40
STORAGES = [lazyload.Storage(*flags) for flags in ((True, True, "none"), (False, False, "zstd"), (False, True, "none"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


def values(module: nnx.Module) -> list[np.ndarray]:
    return [np.asarray(value) for value in jax.tree.leaves(nnx.state(module, nnx.Param))]


def damage(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    kind = chance.choice(["flipped", "cut", "longer", "gone", "zeros"])
    if kind == "gone":
        path.unlink()
        return kind
    position = chance.randrange(len(content)) if content else 0
    if kind == "flipped" and content:
        content[position] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del content[position:]
    elif kind == "zeros":
        content[position:] = bytes(len(content) - position)
    else:
        content += b"\0"
    path.write_bytes(content)
    return kind


def test_no_damage_goes_unnoticed(model: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    counts = {"of no consequence": 0, "converted again": 0, "error": 0, "unnoticed by verify": 0}
    for number, storage in enumerate(STORAGES):
        kept = tmp_path / f"kept{number}"
        lazyload.convert(model, cache_dir=kept, storage=storage)
        sound = values(lazyload.from_pretrained(model, cache_dir=kept, storage=storage, verify=True))
        assert lazyload.last_report().hit
        files = sorted(path.relative_to(kept) for path in kept.glob("models--*/*/data-*/**/*") if path.is_file())
        files += [path.relative_to(kept) for path in kept.glob("models--*/*/manifest.json")] * 5
        for turn in range(DAMAGES // len(STORAGES)):
            root = shutil.copytree(kept, tmp_path / f"{number}-{turn}")
            file = root / chance.choice(files)
            before = file.read_bytes()
            kind = damage(file, chance)
            if file.exists() and file.read_bytes() == before:
                continue
            problems = [problem for found in lazyload.verify(cache_dir=root) for problem in found.problems]
            if not problems and not (file.name == "manifest.json" and kind in ("gone", "longer")):
                counts["unnoticed by verify"] += 1
                print(file.relative_to(root), kind)
            try:
                found = values(lazyload.from_pretrained(model, cache_dir=root, storage=storage, verify=True))
            except LazyLoadError:
                counts["error"] += 1
            else:
                for one, other in zip(sound, found, strict=True):
                    np.testing.assert_array_equal(one, other)
                hit = lazyload.last_report().hit
                counts["of no consequence" if hit else "converted again"] += 1
                assert not hit or (file.name == "manifest.json" and kind == "longer")
            shutil.rmtree(root)
    print(f"\n{DAMAGES} damages: {counts}")
    assert counts["unnoticed by verify"] == 0
    assert min(counts["converted again"], counts["error"]) > 0


def test_scalars_and_composite_metadata_are_verified(model: Path, tmp_path: Path) -> None:
    layout = lazyload.MaxText()
    made = lazyload.convert(model, cache_dir=tmp_path, layout=layout, storage=lazyload.Storage(ocdbt=False))
    data = made.path.parents[0] if made.manifest.item else made.path
    small = [path for path in data.rglob("*") if path.is_file() and path.name.startswith(("_", "zarr.json"))]
    assert data / "_CHECKPOINT_METADATA" in small
    for path in small:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b" ")
        ((problems),) = [found.problems for found in lazyload.verify(cache_dir=tmp_path)]
        assert any(path.relative_to(data).as_posix() in problem for problem in problems)
        path.write_bytes(content)
    assert [found.problems for found in lazyload.verify(cache_dir=tmp_path)] == [()]
