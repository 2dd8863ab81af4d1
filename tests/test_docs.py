"""What the documentation says: examples in docstrings run, and the README speaks of what there is."""

import doctest
import importlib
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


def test_every_public_name_has_a_docstring() -> None:
    for name in lazyload.__all__:
        assert getattr(lazyload, name).__doc__, name


def test_the_readme_names_every_model_type() -> None:
    for family in families.known():
        for kind in family.model_types:
            assert f"`{kind}`" in README, kind


def test_the_readme_names_every_argument() -> None:
    import inspect

    for name in inspect.signature(lazyload.from_pretrained).parameters:
        assert re.search(rf"`{name}`|{name}=|\({name}\)", README), name
