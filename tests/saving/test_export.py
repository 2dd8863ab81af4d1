"""`lazyload.export` and its command: Orbax checkpoints of whatever program, written as the hub would hold them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from support import checkpoints, stored

import lazyload
from lazyload.errors import LayoutError, SourceNotFoundError, TensorMismatchError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("storage", [{}, {"ocdbt": False, "zarr3": False, "compression": "zstd"}])
@pytest.mark.parametrize(
    "layout",
    ["nnx", "nnx-scanned", lazyload.MaxText(), lazyload.MaxText(scan_layers=False, vocab_size=640), lazyload.Tunix()],
)
def test_what_was_converted_comes_back(layout: Any, storage: dict[str, Any], root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("qwen3", root)
    converted = lazyload.convert(source, layout=layout, storage=storage, cache_dir=root / "cache")
    exported = lazyload.export(converted.path, tmp_path / "out", like=source)
    assert same(stored.tensors(exported), stored.tensors(source))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("nemotron_h", "nnx-scanned"),
        ("gemma4_e2b", lazyload.Tunix()),
        ("deepseek_v4_7", lazyload.MaxText(scan_layers=True)),
    ],
)
def test_layouts_of_odd_models_are_recognised(name: str, layout: Any, root: Path, tmp_path: Path) -> None:
    source = checkpoints.make(name, root)
    converted = lazyload.convert(source, layout=layout, dtype="auto", cache_dir=root / "cache")
    found, before = (
        stored.tensors(lazyload.export(converted.path, tmp_path / "out", like=source)),
        stored.tensors(source),
    )
    assert found.keys() <= before.keys()
    assert all(found[key].tobytes() == before[key].tobytes() for key in found)


def test_what_a_training_loop_saves(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("qwen3", root)
    state = nnx.state(lazyload.from_pretrained(source, cache_dir=root / "cache"), nnx.Param)
    tree = nnx.to_pure_dict(state)
    ocp.PyTreeCheckpointer().save(tmp_path / "state", state)
    assert same(
        stored.tensors(lazyload.export(tmp_path / "state", tmp_path / "one", like=source)), stored.tensors(source)
    )
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(3, args=ocp.args.StandardSave(jax.tree.map(lambda array: array, tree)))
    exported = lazyload.export(tmp_path / "run" / "3", tmp_path / "two", like=source, max_shard_size="100KB")
    assert same(stored.tensors(exported), stored.tensors(source))
    assert (exported / "model.safetensors.index.json").exists()
    with pytest.raises(SourceNotFoundError, match="give the folder of one step"):
        lazyload.export(tmp_path / "run", tmp_path / "three", like=source)


def test_an_optimizer_s_state_is_left_out(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("qwen3", root)
    tree = lazyload.from_pretrained(source, layout=lazyload.MaxText(), cache_dir=root / "cache")
    ocp.PyTreeCheckpointer().save(tmp_path / "0" / "items", {**tree, "step": 7, "opt_state": {"mu": tree["params"]}})
    exported = lazyload.export(tmp_path / "0", tmp_path / "out", like=source)
    assert same(stored.tensors(exported), stored.tensors(source))
    tree["params"]["params"]["decoder"]["adapter"] = np.zeros(3, np.float32)
    ocp.PyTreeCheckpointer().save(tmp_path / "1" / "items", tree)
    with pytest.raises(TensorMismatchError, match="has arrays beside those of layout 'maxtext'"):
        lazyload.export(tmp_path / "1", tmp_path / "other", like=source)


def test_another_model(root: Path, tmp_path: Path) -> None:
    converted = lazyload.convert(checkpoints.make("qwen3", root), cache_dir=root / "cache")
    other = checkpoints.make("gemma2", root)
    with pytest.raises(LayoutError, match="give like= what it was made from"):
        lazyload.export(converted.path, tmp_path / "out", like=other)


def test_the_command(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("qwen3", root)
    converted = lazyload.convert(source, layout=lazyload.MaxText(), cache_dir=root / "cache")
    command = [sys.executable, "-m", "lazyload", "export", str(converted.path), "--to", str(tmp_path / "out")]
    ran = subprocess.run([*command, "--like", str(source)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(tmp_path / "out")
    assert same(stored.tensors(tmp_path / "out"), stored.tensors(source))
