"""What is no checkpoint of Hugging Face's is told by what it is, with what to do; no secret is ever told."""

import contextlib
import io
import json
import logging
import shutil
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.hub import TOKEN, Hub

import lazyload
from lazyload import errors
from lazyload.sources import ModelReference
from lazyload.sources.secrets import without_secrets

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoints.make("qwen3", tmp_path)


def without_weights(folder: Path) -> Path:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    return folder


def adapter(folder: Path) -> None:
    without_weights(folder)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")


def adapter_beside_a_config(folder: Path) -> None:
    without_weights(folder)
    (folder / "adapter_config.json").write_text("{}")
    save_file({"a": np.zeros(1)}, folder / "adapter_model.safetensors")


def gguf(folder: Path) -> None:
    without_weights(folder)
    (folder / "config.json").unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


def consolidated(folder: Path) -> None:
    without_weights(folder)
    (folder / "consolidated.safetensors").write_bytes(b"")
    (folder / "params.json").write_text("{}")


def orbax(folder: Path) -> None:
    converted = lazyload.convert(folder, cache_dir=folder.parent / "other").path
    shutil.rmtree(folder)
    shutil.copytree(converted, folder)


def pointer(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_text(POINTER)


def pointer_of_config(folder: Path) -> None:
    (folder / "config.json").write_text(POINTER)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tensors = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    without_weights(folder)
    save_file(change(tensors), folder / "model.safetensors")


def reward(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        del tensors["lm_head.weight"]
        return {**tensors, "score.weight": np.zeros((1, 64), np.float32)}

    rewritten(folder, change)


def modelopt(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        scales = {
            f"{name.removesuffix('.weight')}.weight_scale": np.ones((), np.float32)
            for name in tensors
            if "_proj" in name
        }
        return {**tensors, **scales}

    rewritten(folder, change)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "W4A8_AWQ"}}))


KINDS: dict[Callable[[Path], None], tuple[type[errors.LazyLoadError], tuple[str, ...]]] = {
    adapter: (errors.UnsupportedFormatError, ("adapter (PEFT", "adapter=")),
    adapter_beside_a_config: (errors.UnsupportedFormatError, ("adapter (PEFT", "adapter=")),
    gguf: (errors.UnsupportedFormatError, ("GGUF", "model-Q4_K_M.gguf", "repository that they were made from")),
    consolidated: (errors.UnsupportedFormatError, ("maker's own form only", "consolidated.safetensors")),
    orbax: (errors.UnsupportedFormatError, ("Orbax checkpoint, already converted", "load_parameters_path")),
    pointer: (errors.CorruptSourceError, ("Git LFS pointer", "git lfs pull", ".safetensors")),
    pointer_of_config: (errors.CorruptSourceError, ("Git LFS pointer", "git lfs pull", "config.json")),
    reward: (errors.TensorMismatchError, ("score.weight scores texts", "reward model")),
    modelopt: (errors.UnsupportedFormatError, ("hf_quant_config.json", "W4A8_AWQ", "quantised from")),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_folder_says_what_it_is(kind: Callable[[Path], None], folder: Path, tmp_path: Path) -> None:
    error, complaints = KINDS[kind]
    kind(folder)
    with pytest.raises(error) as caught:
        lazyload.plan(folder, cache_dir=tmp_path / "cache")
    assert all(complaint in str(caught.value) for complaint in complaints), str(caught.value)


@pytest.mark.parametrize("kind", [adapter, gguf, orbax], ids=lambda kind: kind.__name__)
def test_so_does_a_repository(kind: Callable[[Path], None], folder: Path, tmp_path: Path, hub: Hub) -> None:
    error, complaints = KINDS[kind]
    kind(folder)
    hub.add("org/it", folder)
    with pytest.raises(error) as caught:
        lazyload.plan("org/it", cache_dir=tmp_path / "cache")
    assert all(complaint in str(caught.value) for complaint in ("org/it", *complaints))


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("https://huggingface.co/Qwen/Qwen3-8B", "'Qwen/Qwen3-8B'"),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/v2", "'Qwen/Qwen3-8B' with revision='v2'"),
        ("https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json?x=1", "'Qwen/Qwen3-8B' with revision='main'"),
        ("huggingface.co/Qwen/Qwen3-8B", "'Qwen/Qwen3-8B'"),
        ("http://hf.co/Qwen/Qwen3-8B", "'Qwen/Qwen3-8B'"),
    ],
)
def test_the_address_of_a_page(address: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(errors.SourceNotFoundError, match="page of the hub") as caught:
        lazyload.plan(address, cache_dir=tmp_path / "cache")
    assert complaint in str(caught.value)


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_one_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(errors.UnsupportedFormatError, match="is one file; give the folder"):
        lazyload.plan(tmp_path / name, cache_dir=tmp_path / "cache")


class _Signed(MemoryFileSystem):
    """Files behind addresses with a password and a signed query, which errors quote."""

    protocol = "signed"
    broken = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol("memory://" + without_secrets(path).split("://")[-1].removeprefix("host")))

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
        if self.broken and path.endswith("safetensors"):
            raise OSError("cannot get 'https://me:PASSWORD@host/it/x?X-Amz-Signature=SIGNED&a=b'")
        return bytes(super().cat_file(path, *args, **kwargs))


SECRETS = ("PASSWORD", "SIGNED", TOKEN)


def everything_below(folder: Path) -> str:
    files = (path for path in folder.rglob("*") if path.is_file())
    return "\n".join(f"{path} {path.read_bytes().decode('latin-1')}" for path in files)


def test_no_secret_of_a_url_is_written_or_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("signed", _Signed, clobber=True)
    for path in folder.iterdir():
        MemoryFileSystem().pipe_file(f"/it/{path.name}", path.read_bytes())
    url = "signed://me:PASSWORD@host/it?X-Amz-Signature=SIGNED"
    printed = io.StringIO()
    caplog.set_level(logging.DEBUG)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        converted = lazyload.convert(url, cache_dir=tmp_path / "cache")
        print(lazyload.last_report(), converted, lazyload.plan(url, cache_dir=tmp_path / "cache"), ModelReference(url))
        monkeypatch.setattr(_Signed, "broken", True)
        with pytest.raises(errors.LazyLoadError) as caught:
            lazyload.convert(url, cache_dir=tmp_path / "cache", dtype="float32")
        print("".join(traceback.format_exception(caught.value)))
    found = printed.getvalue() + caplog.text + everything_below(tmp_path / "cache")
    assert [secret for secret in SECRETS if secret in found] == []
    MemoryFileSystem().store.clear()


def test_no_token_is_written_or_told(folder: Path, tmp_path: Path, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.add("org/it", folder)
    hub.private.add("org/it")
    caplog.set_level(logging.DEBUG, "lazyload")
    converted = lazyload.convert("org/it", cache_dir=tmp_path / "cache", token=TOKEN + "\n")
    told = [repr(converted), str(lazyload.last_report())]
    for token in (TOKEN + "x", TOKEN + "\nx"):
        with pytest.raises(errors.LazyLoadError) as caught:
            lazyload.convert("org/it", cache_dir=tmp_path / "new", token=token)
        told += traceback.format_exception_only(caught.value)
    found = "\n".join(told) + caplog.text + everything_below(tmp_path / "cache")
    assert TOKEN not in found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a", "s3://bucket/a"),
        ("https://h/a?sig=1#x and gs://b/c", "https://h/a and gs://b/c"),
        ("no url, a@b?c", "no url, a@b?c"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
    ],
)
def test_what_is_shown_of_a_text(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
