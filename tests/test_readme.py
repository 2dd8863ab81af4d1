"""Every snippet of the README and the pages runs as it is written, each section by itself, on a hub of small models."""

import collections
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import fsspec
import jax
import pytest
import yaml
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from support import checkpoints, snippets
from support.hub import Hub
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / ".github" / "pages").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in snippets.blocks(page)]
SECTIONS = {
    section: list(blocks)
    for section, blocks in itertools.groupby(BLOCKS, key=lambda block: f"{block.page.stem}: {block.section}")
}
MODELS = {
    "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen3-8B": "qwen3",
    "Qwen/Qwen3-30B-A3B": "qwen3_moe",
    "meta-llama/Llama-3.1-8B": "llama3",
}
"""The small models that stand for those that the pages name."""

SHOWN = {"text"}
"""The languages of blocks that are nothing to run."""

NOT_RUN = {"needs a TPU or a GPU": 1, "needs Tunix": 2, "needs a bucket": 1}
"""Why blocks are not run, and how many each: a block that is left out shows here."""

IS_OURS = re.compile(r"(?:--mount=\S+ )?(lazyload .+)")
"""A command that is run, without what Docker makes of it."""

OTHERS = {
    # Run by `.ci/run`, as they are written, in new environments.
    "pip install git+https://github.com/lazyload/lazyload",
    "git clone https://github.com/lazyload/lazyload",
    "pip install ./lazyload safetensors",
    "python lazyload/examples/quickstart.py",
    # So does `.ci/run`, in one environment.
    "pip install '.[test]' && pytest -n auto --dist loadgroup",
    "pip install '.[test,compare]' && pytest -n auto --dist loadgroup  # compares with transformers, too",
    "pip install '.[test,buckets]' && pytest -n auto --dist loadgroup  # tests caches in buckets, too",
    # What a reader's own project does.
    "pytest",
    "export LAZYLOAD_CACHE=/shared/lazyload:$HOME/.cache/lazyload",
}
"""All other commands."""


class Bucket(MemoryFileSystem):
    """What stands for a bucket: a file system whose paths begin with its protocol."""

    protocol = ("gs",)
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol("memory://" + path.removeprefix("gs://")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small models, each in a folder with a tokenizer that knows bytes."""
    root = tmp_path_factory.mktemp("models")
    made = {name: checkpoints.make(name, root) for name in {*MODELS.values()}}
    tokenizer = Tokenizer(BPE({letter: n for n, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    for folder in made.values():
        tokenizer.save(str(folder / "tokenizer.json"))
    return made


@pytest.fixture
def desk(hub: Hub, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a reader works in: the hub and a bucket have the models, and nothing has been loaded."""
    for model, name in MODELS.items():
        hub.add(model, folders[name])
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "Qwen3-8B").symlink_to(folders["qwen3"])
    # What is registered as `fsspec` documents it stays for all tests after this one.
    monkeypatch.setitem(_registry, "gs", Bucket)
    for file in folders["qwen3"].iterdir():
        fsspec.filesystem("gs").pipe_file(f"gs://bucket/Qwen3-8B/{file.name}", file.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAZYLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with mock.patch.dict(os.environ):
        yield tmp_path
    Bucket.store.clear()
    jax.monitoring.clear_event_listeners()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_runs_as_it_is_written(section: str, desk: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in SECTIONS[section]:
        if block.not_run:
            continue
        if block.language == "python":
            # Lines are counted as in the page.
            code = "\n" * (block.line - 1) + block.text
            exec(compile(code, str(block.page), "exec"), names)
        for command in block.commands():
            if ours := IS_OURS.fullmatch(command):
                ran = subprocess.run(["bash", "-c", ours[1]], input="y\n", capture_output=True, text=True, check=False)
                assert ran.returncode == 0, f"{block.page}:{block.line}: {command}\n{ran.stdout}{ran.stderr}"
            else:
                assert command in OTHERS, f"{block.page}:{block.line}"


def test_the_first_snippet_runs_on_one_device(desk: Path) -> None:
    first = next(block for block in BLOCKS if block.language == "python")
    environment = {**os.environ, "XLA_FLAGS": ""}
    ran = subprocess.run(
        [sys.executable, "-c", first.text], capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("(1, 3, 512)\n")
    assert "miss" in ran.stdout


def test_no_block_is_left_out_without_a_reason() -> None:
    assert collections.Counter(block.not_run for block in BLOCKS if block.not_run) == NOT_RUN
    run = {block.language for block in BLOCKS if not block.not_run}
    assert run <= {"python", "sh", "dockerfile", "yaml", *SHOWN}
    assert sum(block.language == "python" for block in BLOCKS) >= 20
    assert sum(map(len, SECTIONS.values())) == len(BLOCKS), "two sections have one name"


def test_what_is_yaml_reads_as_such() -> None:
    for block in BLOCKS:
        if block.language == "yaml":
            assert yaml.safe_load(block.text)
