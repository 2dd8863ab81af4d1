"""What the documentation says: examples in docstrings run, and the README speaks of what there is."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import lazyload
from lazyload import families

README = (Path(__file__).parents[1] / "README.md").read_text()
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


def test_the_readme_names_every_model_type() -> None:
    for family in families.known():
        for kind in family.model_types:
            assert f"`{kind}`" in README, kind


def test_the_readme_s_table_has_every_argument_and_no_other() -> None:
    table = README.split("| argument | meaning |\n")[1].split("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert ["model", *named] == list(inspect.signature(lazyload.from_pretrained).parameters)
