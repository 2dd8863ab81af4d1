"""The notebooks run, and what they are kept with is what they say."""

import re
from collections.abc import Callable

import nbformat
import pytest
from support.notebooks import EXAMPLES, NAMES, says

pytestmark = pytest.mark.xdist_group("notebooks")

Executed = Callable[[str], nbformat.NotebookNode]


def kept(name: str) -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / name, as_version=4)


def test_there_are_notebooks() -> None:
    assert set(NAMES) >= {"quickstart.ipynb", "rl.ipynb", "cache.ipynb"}


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_kept_are_those_of_the_code(name: str, executed: Executed) -> None:
    fresh = dict(says(executed(name)))
    old = dict(says(kept(name)))
    assert old.keys() == fresh.keys()
    for cell, outputs in fresh.items():
        assert old[cell] == outputs, f"{cell}: `PYTHONPATH=tests python -m support.notebooks {name}` keeps new outputs"


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_kept_from_one_run_and_from_no_particular_machine(name: str) -> None:
    cells = [cell for cell in kept(name).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = (EXAMPLES / name).read_text()
    assert not re.findall(r"/tmp/|--tmp--|/home/|127\.0\.0\.1", text)
    assert "application/vnd.jupyter.widget-view" not in text, "shown by nothing but the kernel that made it"


@pytest.mark.parametrize("name", NAMES)
def test_no_output_is_a_flood(name: str) -> None:
    for cell in kept(name).cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            assert len(data.get("text/plain", "")) < 4_000, cell.id
            assert sum(len(str(value)) for value in data.values()) < 60_000, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_in_colab(name: str) -> None:
    first, install, *_ = kept(name).cells
    address = f"https://colab.research.google.com/github/lazyload/lazyload/blob/main/examples/{name}"
    assert first.source.startswith(
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
    )
    assert "git+https://github.com/lazyload/lazyload" in install.source
    assert install.outputs == []
