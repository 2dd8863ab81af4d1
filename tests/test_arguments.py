"""Arguments of a call: those of transformers, subfolders and variants, and what is none."""

import dataclasses
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.hub import Hub

import lazyload
from lazyload import errors
from lazyload.arguments import ModelArguments
from lazyload.options import INSTEAD
from lazyload.sources import ModelReference

CALLS: tuple[Callable[..., Any], ...] = (lazyload.from_pretrained, lazyload.convert, lazyload.plan)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", INSTEAD)
def test_arguments_of_transformers_are_refused_with_what_there_is_instead(call: Callable[..., Any], name: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        call("org/model", **{name: True})
    assert isinstance(caught.value, TypeError)
    assert f"{call.__name__} has no argument {name!r}: {INSTEAD[name]}" in str(caught.value)
    assert name not in inspect.signature(call).parameters


def test_what_is_mistyped_is_told() -> None:
    with pytest.raises(errors.ArgumentError, match="no argument 'meshes'; is 'mesh' meant"):
        lazyload.from_pretrained("org/model", meshes=None)  # type: ignore[call-overload]
    with pytest.raises(errors.ArgumentError, match="convert has no argument 'zzz'; it has model, revision"):
        lazyload.convert("org/model", zzz=1)  # type: ignore[call-arg]
    with pytest.raises(errors.ArgumentError, match="positional"):
        lazyload.plan("org/model", "v1")  # type: ignore[misc]


@pytest.mark.parametrize("call", [*CALLS, lazyload.explain, lazyload.config])
def test_every_argument_that_decides_the_checkpoint_is_handed_on(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_on: dict[str, Any] = {}

    def made(**arguments: Any) -> None:
        handed_on.update(arguments)
        raise RuntimeError("made")

    monkeypatch.setattr(f"{call.__module__}.ModelArguments", made)
    accepted = inspect.signature(call).parameters.keys() & {field.name for field in dataclasses.fields(ModelArguments)}
    given: dict[str, Any] = {name: object() for name in accepted} | ({"layout": "nnx"} if "layout" in accepted else {})
    given |= {"compute_dtype": np.dtype("float32")} if "compute_dtype" in accepted else {}
    with pytest.raises(RuntimeError, match="made"):
        call(**given)
    assert handed_on == given


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"storage": {"ocdbt": False, "zarr": 3}}, errors.StorageError, "give lazyload.Storage\\(ocdbt=, zarr3="),
        ({"storage": "zarr3"}, errors.StorageError, "storage='zarr3': give lazyload.Storage"),
        ({"storage": {"compression": "lz4"}}, errors.StorageError, "compression='lz4'"),
        ({"rules": "fsdp"}, errors.ShardingError, "give mesh axes by logical axis"),
        ({"progress": "tqdm"}, errors.ArgumentError, "progress='tqdm': give True, False, None, or a function"),
        ({"model": 7}, errors.ArgumentError, "model=7: give a hub id"),
        ({"model": ""}, errors.ArgumentError, "model='': give a hub id"),
        ({"model": b"x"}, errors.ArgumentError, "give a hub id"),
        ({"revision": 3}, errors.ArgumentError, "revision=3"),
        ({"token": 3}, errors.ArgumentError, "token=: give a text"),
        ({"subfolder": "../x"}, errors.SourceNotFoundError, "subfolder='../x'"),
        ({"subfolder": "/etc"}, errors.SourceNotFoundError, "subfolder='/etc'"),
        ({"variant": "a/b"}, errors.SourceNotFoundError, "variant='a/b'"),
    ],
    ids=str,
)
def test_what_an_argument_cannot_be(
    folder: Path, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lazyload.from_pretrained(**{"model": folder, "cache_dir": tmp_path / "cache", **arguments})
    assert not list(tmp_path.rglob("manifest.json"))


def test_storage_is_given_as_a_dictionary_too(folder: Path, tmp_path: Path) -> None:
    flags = lazyload.Storage(ocdbt=False, compression="zstd")
    key = lazyload.plan(folder, cache_dir=tmp_path, storage=flags).key
    assert lazyload.plan(folder, cache_dir=tmp_path, storage={"ocdbt": False, "compression": "zstd"}).key == key


def test_a_token_from_a_file_has_no_newline() -> None:
    assert ModelReference("m", token="hf_x\n").token == "hf_x"
    assert ModelReference("m", token="\n").token is None


def served(folder: Path, tmp_path: Path, hub: Hub, kind: str) -> str:
    """Makes the folder available below `text/inner` of a model of a kind."""
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole / "text" / "inner")
    (whole / "README.md").write_text("not this")
    if kind == "folder":
        return str(whole)
    if kind == "hub":
        hub.add("org/whole", whole)
        return "org/whole"
    memory = fsspec.filesystem("memory")
    memory.put(str(whole), "/whole", recursive=True)
    return "memory://whole"


@pytest.mark.parametrize("kind", ["folder", "hub", "url"])
def test_a_checkpoint_in_a_subfolder(folder: Path, tmp_path: Path, hub: Hub, kind: str) -> None:
    model, cache = served(folder, tmp_path, hub, kind), tmp_path / "cache"
    expected = lazyload.convert(folder, cache_dir=cache).manifest.arrays
    there = lazyload.convert(model, subfolder="text/inner", cache_dir=cache)
    assert there.manifest.arrays == expected
    assert not lazyload.convert(model, subfolder="text/inner", cache_dir=cache).converted
    with pytest.raises(errors.SourceNotFoundError, match=r"config\.json"):
        lazyload.convert(model, cache_dir=cache)
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("kind", ["folder", "hub"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_variant_of_the_weights(folder: Path, tmp_path: Path, hub: Hub, kind: str, shards: bool) -> None:
    both, cache = tmp_path / "both", tmp_path / "cache"
    shutil.copytree(folder, both)
    other: dict[str, Any] = {}
    for number, file in enumerate(sorted(folder.glob("*.safetensors"))):
        tensors = {name: array[::-1].copy() for name, array in load_file(file).items()}
        other |= tensors
        if shards:
            save_file(tensors, both / f"model.rev-{number}.safetensors")
    if shards:
        index = (folder / "model.safetensors.index.json").read_text()
        for number, file in enumerate(sorted(folder.glob("*.safetensors"))):
            index = index.replace(file.name, f"model.rev-{number}.safetensors")
        (both / "model.safetensors.index.rev.json").write_text(index)
    else:
        save_file(other, both / "model.rev.safetensors")
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone, ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(other, alone / "model.safetensors")
    model = str(both)
    if kind == "hub":
        hub.add("org/both", both)
        model = "org/both"
    plain = lazyload.convert(model, cache_dir=cache)
    assert plain.manifest.arrays == lazyload.convert(folder, cache_dir=cache).manifest.arrays
    variant = lazyload.convert(model, variant="rev", cache_dir=cache)
    assert variant.converted
    assert variant.manifest.arrays == lazyload.convert(alone, cache_dir=cache).manifest.arrays
    for _ in range(2):
        assert lazyload.convert(model, variant="rev", cache_dir=cache).key == variant.key
        assert lazyload.convert(model, cache_dir=cache).key == plain.key
    with pytest.raises(errors.SourceNotFoundError, match="has no variant 'fp16'"):
        lazyload.convert(model, variant="fp16", cache_dir=cache)
