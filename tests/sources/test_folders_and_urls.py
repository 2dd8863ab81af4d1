"""Checkpoints in folders and behind fsspec URLs: one behaviour, and what is said of those that are broken."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints

import lazyload
from lazyload import errors
from lazyload.sources import ModelReference, open_source

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


Put = Callable[[Path], str]


@pytest.fixture(params=["folder", "relative", "file://", "memory://"])
def put(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Makes a folder's content available in some way; gives what a user would type."""

    def put(folder: Path) -> str:
        if request.param == "folder":
            return str(folder)
        if request.param == "relative":
            monkeypatch.chdir(folder.parent)
            return f"./{folder.name}"
        if request.param == "file://":
            return f"file://{folder}"
        memory = fsspec.filesystem("memory")
        if memory.exists("/models"):
            memory.rm("/models", recursive=True)
        for path in folder.iterdir():
            memory.pipe_file(f"/models/it/{path.name}", path.read_bytes())
        return "memory://models/it"

    yield put
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_all_give_the_same_arrays(put: Put, original: Path, folder: Path, tmp_path: Path) -> None:
    expected = lazyload.convert(original, cache_dir=tmp_path / "other").manifest.arrays
    model = put(folder)
    converted = lazyload.convert(model, cache_dir=tmp_path / "cache")
    assert converted.manifest.arrays == expected
    assert not lazyload.convert(model, cache_dir=tmp_path / "cache").converted
    assert lazyload.last_report().bytes_read == 0


def test_other_content_is_another_key(put: Put, folder: Path, tmp_path: Path) -> None:
    model = put(folder)
    before = lazyload.plan(model, cache_dir=tmp_path / "cache").key
    assert lazyload.plan(model, cache_dir=tmp_path / "cache").key == before
    tensors = load_file(shards(folder)[0])
    name = min(tensors, key=lambda name: tensors[name].size)
    save_file(tensors | {name: tensors[name] + tensors[name]}, shards(folder)[0], metadata={"format": "pt"})
    assert lazyload.plan(put(folder), cache_dir=tmp_path / "cache").key != before


def fails(model: str, tmp_path: Path, error: type[Exception], *complaints: str) -> None:
    """Every entrance says the same, and leaves no trace."""
    for call in (lazyload.plan, lazyload.convert, lazyload.from_pretrained):
        with pytest.raises(error) as caught:
            call(model, cache_dir=tmp_path / "cache")
        assert isinstance(caught.value, errors.LazyLoadError)
        for complaint in complaints:
            assert complaint in str(caught.value)
        assert not list((tmp_path / "cache").rglob("manifest.json"))


def test_a_missing_shard(put: Put, folder: Path, tmp_path: Path) -> None:
    name = shards(folder)[-1].name
    shards(folder)[-1].unlink()
    fails(put(folder), tmp_path, errors.SourceNotFoundError, name, "download the checkpoint again")


def test_a_truncated_shard(put: Put, folder: Path, tmp_path: Path) -> None:
    shard = shards(folder)[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    fails(put(folder), tmp_path, errors.CorruptSourceError, shard.name, "truncated")


def test_a_shard_that_is_no_safetensors_file(put: Put, folder: Path, tmp_path: Path) -> None:
    shards(folder)[0].write_bytes(b"<html>404</html>" * 10)
    fails(put(folder), tmp_path, errors.CorruptSourceError, shards(folder)[0].name, "download it again")


@pytest.mark.parametrize("name", ["../../etc/x", "/etc/passwd", "a\\..\\x.safetensors", "C:x", "", 7, "a/../../b"])
def test_an_index_that_leads_outside(folder: Path, tmp_path: Path, name: object) -> None:
    rewrite(folder / INDEX, weight_map={"model.norm.weight": name})
    fails(str(folder), tmp_path, errors.CorruptSourceError, INDEX, repr(name), "do not trust")


def test_an_index_that_names_pickles(put: Put, folder: Path, tmp_path: Path) -> None:
    rewrite(folder / INDEX, weight_map={"model.norm.weight": "pytorch_model-1.bin"})
    fails(put(folder), tmp_path, errors.UnsupportedFormatError, "pytorch_model-1.bin", "save_pretrained")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": []}', '{"metadata": {}}'])
def test_a_malformed_index(folder: Path, tmp_path: Path, content: str) -> None:
    (folder / INDEX).write_text(content)
    fails(str(folder), tmp_path, errors.CorruptSourceError, INDEX)


def test_an_index_that_contradicts_the_files(put: Put, folder: Path, tmp_path: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.bias"] = shards(folder)[0].name
    (folder / INDEX).write_text(json.dumps(index))
    fails(put(folder), tmp_path, errors.CorruptSourceError, "model.norm.bias", shards(folder)[0].name)


def test_a_tensor_in_two_files_without_an_index(put: Put, folder: Path, tmp_path: Path) -> None:
    first, second = (load_file(path) for path in shards(folder)[:2])
    name = next(iter(first))
    save_file(second | {name: first[name]}, shards(folder)[1])
    (folder / INDEX).unlink()
    fails(put(folder), tmp_path, errors.CorruptSourceError, name, "no index says which one counts")


def test_pickled_weights_only(put: Put, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    fails(put(folder), tmp_path, errors.UnsupportedFormatError, "pytorch_model.bin", "save_pretrained")


def test_weights_of_another_program_only(put: Put, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "model-q4.gguf").write_bytes(b"GGUF")
    fails(put(folder), tmp_path, errors.UnsupportedFormatError, "model-q4.gguf")


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"model_type": 7}', "{}"])
def test_a_malformed_config(folder: Path, tmp_path: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    fails(str(folder), tmp_path, ValueError, "config.json")


def test_a_packing_that_is_not_read(put: Put, folder: Path, tmp_path: Path) -> None:
    rewrite(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    fails(put(folder), tmp_path, errors.UnsupportedFormatError, "bitsandbytes", "repository that the weights")


def test_no_config_and_no_folder(put: Put, folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    fails(put(folder), tmp_path, errors.SourceNotFoundError, "config.json")
    fails("/nowhere/at/all", tmp_path, errors.SourceNotFoundError, "/nowhere/at/all is not a folder")
    fails("memory://nowhere", tmp_path, errors.SourceNotFoundError, "memory://nowhere")


def test_a_protocol_that_nobody_knows(tmp_path: Path) -> None:
    fails("nonsense://bucket/model", tmp_path, errors.SourceNotFoundError, "nonsense://bucket/model", "fsspec knows")


def test_a_folder_has_no_revisions(put: Put, folder: Path) -> None:
    with pytest.raises(errors.SourceNotFoundError, match="no revision 'v2'"):
        lazyload.plan(put(folder), revision="v2")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder: Path, tmp_path: Path) -> None:
    shards(folder)[0].chmod(0)
    fails(str(folder), tmp_path, errors.AccessDeniedError, shards(folder)[0].name)


def test_a_single_file_needs_no_index_and_no_special_name(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "single"
    folder.mkdir()
    shutil.copy(original / "config.json", folder)
    tensors = {name: array for shard in shards(original) for name, array in load_file(shard).items()}
    save_file(tensors, folder / "adapter-free.safetensors")
    expected = lazyload.convert(original, cache_dir=tmp_path / "cache").manifest.arrays
    assert lazyload.convert(folder, cache_dir=tmp_path / "cache").manifest.arrays == expected


def test_files_that_change_under_a_conversion_are_not_published(put: Put, folder: Path, tmp_path: Path) -> None:
    model = put(folder)

    def meanwhile(progress: lazyload.Progress) -> None:
        if progress.stage == "convert" and progress.done == progress.total:
            flip_last_byte(shards(folder)[0])
            put(folder)

    # The other is said where all of it is converted before all of it has been hashed.
    with pytest.raises(errors.CorruptSourceError, match=r"has been changed while it was being conv|is being written"):
        lazyload.convert(model, cache_dir=tmp_path / "cache", progress=meanwhile)
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    assert not list((tmp_path / "cache").rglob("data-*"))


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_file_replaced_by_one_of_the_same_size_and_time_is_another(
    folder: Path, tmp_path: Path, in_place: bool
) -> None:
    """As `cp -p` and `rsync -t` leave it."""
    before = lazyload.plan(folder, cache_dir=tmp_path / "cache").key
    shard = shards(folder)[0]
    content, status = bytearray(shard.read_bytes()), shard.stat()
    content[-1] ^= 1
    other = shard if in_place else shard.with_suffix(".new")
    other.write_bytes(content)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, shard)
    assert (shard.stat().st_size, shard.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert lazyload.plan(folder, cache_dir=tmp_path / "cache").key != before


def test_a_file_that_is_cut_under_a_conversion(folder: Path, tmp_path: Path) -> None:
    source = open_source(ModelReference(folder))
    name, info = next(iter(source.tensors.items()))
    for shard in shards(folder):
        os.truncate(shard, 100)
    with contextlib.closing(source), pytest.raises(errors.CorruptSourceError, match="truncated"):
        source.read(name, tuple(slice(0, size) for size in info.shape))
