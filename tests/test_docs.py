"""What the documentation says: examples in docstrings run, and the README speaks of what there is."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from support import readme_tables

import lazyload
from lazyload.formats import maxtext

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CHANGELOG = (ROOT / ".github" / "CHANGELOG.md").read_text()
MODULES = [module.name for module in pkgutil.walk_packages(lazyload.__path__, "lazyload.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    names = {"lazyload": lazyload, **vars(module)}
    assert doctest.testmod(module, extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("name", lazyload.__all__)
def test_every_public_name_has_a_docstring(name: str) -> None:
    doc = getattr(lazyload, name).__doc__
    assert doc, name
    assert not doc.startswith(f"{name}("), "a dataclass without a docstring writes itself one like this"


def test_the_readme_s_table_of_models_is_that_of_the_registry() -> None:
    assert readme_tables.written("models") == readme_tables.models(), "PYTHONPATH=tests python -m support.readme_tables"
    families_in_maxtext = [row for row in readme_tables.models() if "| yes |" in row]
    assert len(families_in_maxtext) == len(maxtext.families())


def test_every_family_says_what_the_table_needs() -> None:
    found = re.findall(r"^## \[(\d+)\.(\d+)\.", CHANGELOG, re.MULTILINE)
    releases = {(int(major), int(minor)) for major, minor in found}
    for family in readme_tables.own_families():
        assert family.title, family.name
        assert "|" not in family.title + family.covered, family.name
        major, minor = map(int, family.since.split("."))
        assert (major, minor) in releases or (major, minor) > max(releases), family.name


def test_the_readme_s_table_has_every_argument_and_no_other() -> None:
    table = README.split("| argument | meaning |\n")[1].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert ["model", *named] == list(inspect.signature(lazyload.from_pretrained).parameters)
