"""What the documentation says: examples in docstrings run, and the README speaks of what there is."""

import doctest
import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import pytest
from support import readme_tables

import lazyload
from lazyload import errors
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


def test_the_readme_s_table_has_every_error_and_what_it_is() -> None:
    table = README.split("## Errors\n")[1].split("| error |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", table, re.MULTILINE)
    known = [
        error for error in vars(errors).values() if isinstance(error, type) and error.__module__ == errors.__name__
    ]
    bases = {error.__name__: error.__bases__[-1].__name__ for error in known if error is not errors.LazyLoadError}
    assert dict(rows) == bases


def test_the_readme_s_table_has_every_environment_variable() -> None:
    table = README.split("| variable | meaning |\n")[1].split("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([A-Z_]{3,})`", row.split("|")[1])}
    code = "\n".join(path.read_text() for path in Path(lazyload.__file__).parent.rglob("*.py"))
    read = {*re.findall(r'environ(?:ment)?(?:\.get\(|\[)"([A-Z_]+)"', code), *re.findall(r'envvar="(\w+)"', code)}
    # Those of the hub's library are its constants, and named in messages.
    read |= {*re.findall(r"\bHF_(?:HUB_[A-Z_]+|ENDPOINT)\b", code)}
    assert named >= read
    assert [name for name in named - read if name.startswith("LAZYLOAD_")] == []


def test_the_readme_s_sizes_are_those_of_the_models() -> None:
    table = README.split("<!-- sizes -->\n")[1].split("<!-- end of sizes -->")[0]
    rows = re.findall(r"^\| `(.+?)` \| ([\d.]+) billion \| ([\d.]+) GB \| ([\d.]+) GB \|", table, re.MULTILINE)
    configs = [json.loads(file.read_text()) for file in readme_tables.HUB_CONFIGS.glob("*.json")]
    parameters = {config["model"]: config["parameters"] for config in configs}
    assert len(rows) == table.count("\n") - 2
    for model, *numbers in rows:
        billions = parameters[model] / 1e9
        assert numbers == [f"{billions * nbytes:.1f}" for nbytes in (1, 2, 4)], model


def test_the_pages_have_an_entry_for_every_public_name() -> None:
    reference = (ROOT / ".github" / "pages" / "reference.rst").read_text()
    entries = re.findall(r"^\.\. auto(?:class|function|module):: lazyload\.(\w+)$", reference, re.MULTILINE)
    assert sorted(entries) == sorted(lazyload.__all__)
