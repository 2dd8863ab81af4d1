"""The notebooks executed once, in a process of their own: their kernels are none of pytest's business."""

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], nbformat.NotebookNode]:
    """Executes a notebook, or says with what it was executed already."""
    folder = tmp_path_factory.mktemp("executed")

    @functools.cache
    def execute(name: str) -> nbformat.NotebookNode:
        command = [sys.executable, "-m", "support.notebooks", "--narrow", "--into", str(folder), name]
        run = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-10_000:]
        return nbformat.read(folder / name, as_version=4)

    return execute
