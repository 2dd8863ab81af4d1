"""`lazyload.export` and its command: Orbax checkpoints of whatever program, written as the hub would hold them."""

import contextlib
import errno
import math
import os
import shutil
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
from support.hub import Hub

import lazyload
from lazyload.errors import (
    ArgumentError,
    InputError,
    LayoutError,
    SaveError,
    SourceNotFoundError,
    TensorMismatchError,
)
from lazyload.saving import files, unpacked
from lazyload.saving import stored as stored_arrays
from lazyload.saving.stored import StoredArrays


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


@pytest.mark.parametrize(("layout", "threads"), [("nnx", 1), (lazyload.MaxText(), 4)])
def test_large_arrays_are_decoded_once(
    layout: Any, threads: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk for each shard of a mesh, of stacked layers, too, and arrays that are too large to be kept."""
    monkeypatch.setattr(files, "WRITES_AT_ONCE", threads)
    monkeypatch.setattr(stored_arrays, "_CACHED_BYTES", 1 << 12)
    pieces: list[tuple[int, ...]] = []
    folders: set[Path] = set()
    held: list[int] = []
    said: list[int] = []
    make, write, read, say = (
        unpacked.Unpacked.__init__,
        unpacked.Unpacked._write,
        StoredArrays._read_unpacked,
        StoredArrays.scratch_bytes,
    )

    def made(self: unpacked.Unpacked, array: Any, folder: Path) -> None:
        folders.add(folder)
        make(self, array, folder)

    def written(self: unpacked.Unpacked, index: Any, values: np.ndarray) -> None:
        pieces.append(values.shape)
        write(self, index, values)

    def watched(self: StoredArrays, name: str, index: Any) -> np.ndarray:
        values = read(self, name, index)
        held.append(sum(self._nbytes(name) for name in list(self._unpacked)))
        return values

    def remembered(self: StoredArrays, readers: Any, at_once: int) -> int:
        said.append(say(self, readers, at_once))
        return said[-1]

    monkeypatch.setattr(unpacked.Unpacked, "__init__", made)
    monkeypatch.setattr(unpacked.Unpacked, "_write", written)
    monkeypatch.setattr(StoredArrays, "_read_unpacked", watched)
    monkeypatch.setattr(StoredArrays, "scratch_bytes", remembered)
    monkeypatch.setattr(unpacked, "_PIECE_BYTES", 1 << 10)
    source, mesh = checkpoints.make("qwen3", root), jax.make_mesh((4, 2), ("fsdp", "tp"))
    model = lazyload.from_pretrained(source, layout=layout, mesh=mesh, cache_dir=root / "cache")
    tree = nnx.to_pure_dict(nnx.state(model, nnx.Param)) if layout == "nnx" else model
    ocp.PyTreeCheckpointer().save(tmp_path / "1", tree)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "out")
    exported = lazyload.export(tmp_path / "1", tmp_path / "link", like=source)
    assert same(stored.tensors(exported), stored.tensors(source))
    large = [array for array in jax.tree.leaves(tree) if array.nbytes > 1 << 12]
    assert len(large) > 5
    assert sum(map(math.prod, pieces)) == sum(array.size for array in large)
    assert folders == {tmp_path / "deep"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    # Of stacked layers, all that every layer takes a part of.
    together = sum(array.nbytes for array in large)
    # A thread that the system forgets keeps its array the longer.
    assert max(held) <= (said[0] if threads == 1 else together)
    assert said[0] > together / 2 if layout != "nnx" else said[0] < together / 2


def test_a_disk_that_has_no_room_for_large_arrays(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoints.make("qwen3", root)
    entry = lazyload.convert(source, layout=lazyload.MaxText(), cache_dir=root / "cache")
    monkeypatch.setattr(stored_arrays, "_CACHED_BYTES", 1 << 12)
    begun: list[Path] = []
    make, write = unpacked.Unpacked.__init__, unpacked.Unpacked._write

    def made(self: unpacked.Unpacked, array: Any, folder: Path) -> None:
        begun.append(folder)
        make(self, array, folder)

    def written(self: unpacked.Unpacked, index: Any, values: np.ndarray) -> None:
        if len(begun) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, index, values)

    monkeypatch.setattr(unpacked.Unpacked, "__init__", made)
    monkeypatch.setattr(unpacked.Unpacked, "_write", written)
    with pytest.raises(SaveError, match="cannot be written: No space left on device") as caught:
        lazyload.export(entry.path, tmp_path / "out", like=source)
    # Nobody has begun after the first who has failed; and the disk is free again, while the error is there still.
    assert len(begun) == 4
    assert caught.value.__traceback__ is not None
    if sys.platform == "linux":
        assert not [file for file in open_files() if file.startswith(str(tmp_path))]
    monkeypatch.setattr(unpacked.Unpacked, "_write", lambda *_: None)
    with pytest.raises(SaveError, match="cannot be written: an array that was unpacked has been cut off"):
        lazyload.export(entry.path, tmp_path / "out", like=source)
    usage = shutil.disk_usage(tmp_path)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size + (size >> 3)))
    with pytest.raises(SaveError, match=r"and, while it is written, .* more; its disk has"):
        lazyload.export(entry.path, tmp_path / "out", like=source)
    assert list(tmp_path.iterdir()) == []


def open_files() -> list[str]:
    """What this process has open, files without a name among it."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(descriptor))
    return found


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
    with pytest.raises(SourceNotFoundError, match=r"give the folder of one step, of which the last is .*/run/3$"):
        lazyload.export(tmp_path / "run", tmp_path / "three", like=source)
    with pytest.raises(SourceNotFoundError, match="give the folder of one step, such as checkpoints/100"):
        lazyload.export(tmp_path / "none", tmp_path / "three", like=source)


def test_from_one_trainer_to_another(root: Path, tmp_path: Path) -> None:
    """What comes back is a model as any other, in the layout of whichever program goes on with it."""
    source = checkpoints.make("qwen3", root)
    layouts: list[Any] = ["nnx", lazyload.MaxText(), lazyload.Tunix()]
    entries = [lazyload.convert(source, layout=layout, cache_dir=root / "cache") for layout in layouts]
    for number, entry in enumerate(entries):
        exported = lazyload.export(entry.path, tmp_path / str(number), like=source)
        for layout, other in zip(layouts, entries, strict=True):
            again = lazyload.convert(exported, layout=layout, cache_dir=root / "cache")
            assert again.manifest.arrays == other.manifest.arrays


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


@pytest.mark.parametrize("before", ["base", None])
def test_what_maxtext_saves_of_its_module(before: str | None, root: Path, tmp_path: Path) -> None:
    """As Tunix's trainers save it, in MaxText's adapter, and as MaxText's own engine does: with random states."""
    source, layout = checkpoints.make("qwen3", root), lazyload.MaxText()
    tree = lazyload.from_pretrained(source, layout=layout, cache_dir=root / "cache")["params"]["params"]
    random = {"params": {"count": np.zeros((), np.uint32), "key": np.zeros(2, np.uint32)}}
    module = {**tree, "decoder": {**tree["decoder"], "rngs": random}}
    saved = module if before is None else {before: module}
    ocp.PyTreeCheckpointer().save(tmp_path / "1" / "model_params", saved)
    exported = lazyload.export(tmp_path / "1", tmp_path / "out", like=source)
    assert same(stored.tensors(exported), stored.tensors(source))
    held = lazyload.save_pretrained(saved, tmp_path / "held", like=source, layout=layout)
    assert same(stored.tensors(held), stored.tensors(source))
    module["decoder"] = {**tree["decoder"], "more": np.zeros(3, np.float32)}
    ocp.PyTreeCheckpointer().save(tmp_path / "2", saved)
    with pytest.raises(TensorMismatchError, match=r"params\.params\.decoder\.more"):
        lazyload.export(tmp_path / "2", tmp_path / "other", like=source)


def test_what_maxtext_s_trainer_saves_beside_the_parameters(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("deepseek_v4_7", root)
    mesh = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    tree = lazyload.from_pretrained(
        source, layout=lazyload.MaxText(), mesh=mesh, dtype="auto", cache_dir=root / "cache"
    )
    collections = jax.tree.map(np.asarray, tree["params"])
    others: dict[str, Any] = {}
    for name in collections.keys() - {"params"}:
        others = merged(others, collections[name])
    ocp.PyTreeCheckpointer().save(
        tmp_path / "1" / "items", {"params": {"params": collections["params"]}, "nnx_aux": {"model": others}, "step": 1}
    )
    found = stored.tensors(lazyload.export(tmp_path / "1", tmp_path / "out", like=source))
    before = stored.tensors(source)
    assert all(values.tobytes() == before[name].tobytes() for name, values in found.items())


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys()}
    return {**one, **other, **both}


def test_what_is_quantised_or_holds_adapters_is_refused(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("qwen3", root)
    state = nnx.to_pure_dict(nnx.state(lazyload.from_pretrained(source, cache_dir=root / "cache"), nnx.Param))
    kernel = state["layers"][0]["mlp"]["up_proj"].pop("kernel")
    narrow = np.zeros(kernel.shape, np.int8)
    forms: list[tuple[dict[str, Any], str]] = [
        # As qwix has it.
        ({"kernel": {"array": {"qvalue": narrow, "scale": np.ones((1, 1), np.float32)}}}, r"qvalue is quantised: "),
        ({"kernel": narrow}, r"up_proj\.kernel is int8: quantised arrays are not saved"),
        (
            {"kernel": kernel, "kernel_lora_a": np.zeros((kernel.shape[0], 2), np.float32)},
            "is one of LoRA's parameters",
        ),
    ]
    for number, (form, message) in enumerate(forms):
        state["layers"][0]["mlp"]["up_proj"] = form
        ocp.PyTreeCheckpointer().save(tmp_path / str(number), state)
        with pytest.raises(InputError, match=message):
            lazyload.export(tmp_path / str(number), tmp_path / "out", like=source)
    assert not (tmp_path / "out").exists()


def test_what_an_entry_was_made_from_is_known(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("qwen3", root)
    entry = lazyload.convert(source, cache_dir=root / "cache")
    assert same(stored.tensors(lazyload.export(entry.path, tmp_path / "out")), stored.tensors(source))
    shutil.copytree(entry.path, tmp_path / "elsewhere")
    with pytest.raises(ArgumentError, match="is no entry of the cache, which says what it was made from: give like="):
        lazyload.export(tmp_path / "elsewhere", tmp_path / "other")


def test_where_an_entry_s_model_lies_in_its_repository_is_known(root: Path, tmp_path: Path, hub: Hub) -> None:
    source, inner = checkpoints.make("qwen3", root), tmp_path / "whole" / "text" / "inner"
    shutil.copytree(source, inner)
    for path in inner.glob("*.safetensors*"):
        path.rename(path.with_name(path.name.replace("model-", "model.fp16-").replace(".index", ".index.fp16", 1)))
    index = inner / "model.safetensors.index.fp16.json"
    index.write_text(index.read_text().replace('"model-', '"model.fp16-'))
    hub.add("org/whole", tmp_path / "whole")
    entry = lazyload.convert("org/whole", subfolder="text/inner", variant="fp16", cache_dir=tmp_path / "cache")
    assert same(stored.tensors(lazyload.export(entry.path, tmp_path / "out")), stored.tensors(source))
    with pytest.raises(SourceNotFoundError, match=r"config\.json"):
        lazyload.export(entry.path, tmp_path / "other", subfolder="text")


def test_another_model(root: Path, tmp_path: Path) -> None:
    converted = lazyload.convert(checkpoints.make("qwen3", root), cache_dir=root / "cache")
    other = checkpoints.make("gemma2", root)
    with pytest.raises(LayoutError, match="give like= what it was made from"):
        lazyload.export(converted.path, tmp_path / "out", like=other)


def test_the_command(root: Path, tmp_path: Path) -> None:
    source = checkpoints.make("qwen3", root)
    converted = lazyload.convert(source, layout=lazyload.MaxText(), cache_dir=root / "cache")
    command = [sys.executable, "-m", "lazyload", "export", str(converted.path), "--to", str(tmp_path / "out")]
    # What an entry was made from stands beside it.
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == str(tmp_path / "out")
    assert same(stored.tensors(tmp_path / "out"), stored.tensors(source))
