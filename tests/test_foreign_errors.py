"""Whatever a user can meet is a `LazyLoadError`: also what one's own family or layout does, and a forked process."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints

import lazyload
from lazyload import errors, families

EMBEDDING = {"t": "embed : vocab embed"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


def layout(**lines: str) -> lazyload.Layout:
    return lazyload.Layout(lines or EMBEDDING, skipped=["*"])


def nope(*_: Any) -> Any:
    raise KeyError("nope")


WRONG: dict[str, Callable[[], dict[str, Any]]] = {
    "a path that is a folder": lambda: {
        "layout": lazyload.Layout({**EMBEDDING, "t.b": "final_norm : embed"}, skipped=["*"])
    },
    "an empty path": lambda: {"layout": lazyload.Layout({"": "embed : vocab embed"}, skipped=["*"])},
    "a path with two dots": lambda: {"layout": lazyload.Layout({"a..b": "embed : vocab embed"}, skipped=["*"])},
    "a path that leads out": lambda: {"layout": lazyload.Layout({"../x": "embed : vocab embed"}, skipped=["*"])},
    "a path that is a number": lambda: {"layout": lazyload.Layout({7: "embed : vocab embed"})},
    "a line that is a number": lambda: {"layout": lazyload.Layout({"a": 7})},
    "a table that is a dictionary": lambda: {"layout": lazyload.Layout([EMBEDDING])},
    "indices that are text": lambda: {"layout": lazyload.Layout([lazyload.Table(EMBEDDING, only={"vocab": ["x"]})])},
    "an unknown dtype": lambda: {"layout": layout(t="embed : vocab embed ; as bf16")},
    "metadata that is not JSON": lambda: {"layout": lazyload.Target(layout(), nope, metadata={"a": object()})},
    "an item that leads out": lambda: {"layout": lazyload.Target(layout(), nope, item="../x")},
    "a scalar that is text": lambda: {"layout": lazyload.Target(layout(), nope, scalars={"t": "x"})},
    "a build that fails": lambda: {"layout": lazyload.Target(layout(), nope)},
    "no build": lambda: {"layout": lazyload.Target(layout(), 7)},
    "a vocabulary that is text": lambda: {"layout": lazyload.MaxText(vocab_size="x")},
    "a family that is text": lambda: {"family": "qwen3"},
    "a family whose config fails": lambda: {"family": family(config=nope)},
    "a family whose config is nothing": lambda: {"family": family(config=lambda values: None)},
    "a family whose names fail": lambda: {"family": family(huggingface=nope)},
    "a family without names": lambda: {"family": family(huggingface=lambda config: None)},
    "a cache that is a number": lambda: {"cache_dir": 7},
    "a model whose name is too long": lambda: {"model": "x" * 5000},
    "a path that is too long": lambda: {"model": "/" + "x" * 5000},
    "a file": lambda: {"model": __file__},
    "a home that nobody has": lambda: {"model": "~nobody-at-all/model"},
}


def family(**changes: Any) -> lazyload.Family:
    values = json.loads((checkpoints.GOLDEN / "specs" / "qwen3.json").read_text())["config"]
    return dataclasses.replace(families.find(values), **changes)


@pytest.mark.parametrize("what", WRONG)
def test_it_is_an_error_of_ours(what: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.LazyLoadError) as caught:
        lazyload.from_pretrained(**({"model": folder, "cache_dir": tmp_path / "cache"} | WRONG[what]()))
    if "fail" in what:
        assert "KeyError: 'nope'" in str(caught.value)
        assert isinstance(caught.value.__cause__, KeyError)
    if what != "a build that fails":
        assert not list(tmp_path.rglob("manifest.json"))


def test_only_families_are_registered() -> None:
    with pytest.raises(errors.ArgumentError, match=r"is no lazyload\.Family"):
        lazyload.register("qwen3")  # type: ignore[arg-type]


def test_a_report_is_not_lost_with_its_thread(folder: Path, tmp_path: Path) -> None:
    thread = threading.Thread(target=lazyload.convert, args=(folder,), kwargs={"cache_dir": tmp_path})
    thread.start()
    thread.join()
    found = []
    other = threading.Thread(target=lambda: found.append(lazyload.last_report()))
    other.start()
    other.join()
    assert found[0].path.is_relative_to(tmp_path)
    lazyload.convert(folder, cache_dir=tmp_path)
    assert lazyload.last_report().hit


FORKED = """
import os, sys, warnings
import lazyload
from lazyload import errors
warnings.simplefilter("ignore")
model, cache, flavour, compression = sys.argv[1:]
storage = lazyload.Storage(ocdbt=flavour == "ocdbt", compression=compression)
lazyload.convert(model, cache_dir=cache, storage=storage)
child = os.fork()
if child == 0:
    code = 0
    for call in (lambda: lazyload.convert(model, cache_dir=cache, storage=storage, dtype="float32"),
                 lambda: lazyload.verify(cache_dir=cache) if storage.compression == "zstd" else None):
        try:
            call()
        except errors.CacheError as error:
            code += "spawn" in str(error)
    os._exit(code)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("storage", ["ocdbt", "zarr"])
@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_forked_process_is_told_where_tensorstore_is_needed(
    folder: Path, tmp_path: Path, storage: str, compression: str
) -> None:
    command = [sys.executable, "-c", FORKED, str(folder), str(tmp_path / "cache"), storage, compression]
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1])}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    # Both calls say so, or what verifies reads damage in what it cannot read; none ends the process.
    assert int(result.stdout) in ((1, 2) if compression == "zstd" else (0,)), result.stderr
