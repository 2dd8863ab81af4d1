"""Docstrings of public names say what there is, in the Google style that mkdocstrings and napoleon render."""

import builtins
import dataclasses
import doctest
import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from typing import Any

import griffe
import pytest

import lazyload
from lazyload import errors

Documented = Callable[..., Any] | type[Any]
SECTIONS = ("Args", "Returns", "Yields", "Raises", "Attributes", "Example")


def public() -> dict[str, Documented]:
    """Public functions, classes and their public methods and properties, and every error, by name."""
    found: dict[str, Documented] = {}
    for name in lazyload.__all__:
        value = getattr(lazyload, name)
        if inspect.ismodule(value):
            found |= {f"{name}.{error.__name__}": error for error in vars(value).values() if inspect.isclass(error)}
            continue
        found[name] = value
        if inspect.isclass(value):
            found |= {f"{name}.{member}": function for member, function in members(value)}
    return found


def members(cls: type[Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What a class defines itself and shows; a dataclass writes its `__init__` by itself."""
    for name, value in vars(cls).items():
        function = inspect.unwrap(value.fget if isinstance(value, property) else getattr(value, "__func__", value))
        function = getattr(function, "func", function)
        is_shown = not name.startswith("_") or (name in ("__init__", "__call__") and not dataclasses.is_dataclass(cls))
        if is_shown and inspect.isfunction(function):
            yield name, function


PUBLIC = public()


def docstring(name: str) -> str:
    """The docstring of a public name; that of a class counts for an `__init__` without one."""
    found = inspect.getdoc(PUBLIC[name]) if PUBLIC[name].__doc__ else None
    return found or (inspect.getdoc(PUBLIC[name.removesuffix(".__init__")]) or "" if "." in name else "")


def section(name: str, kind: str) -> list[Any]:
    """The entries of a docstring's sections of a kind."""
    parsed = griffe.Docstring(docstring(name)).parse("google", warnings=False)
    return [entry for part in parsed if part.kind.value == kind for entry in part.value]


def parameters(name: str) -> list[str]:
    return [name for name in inspect.signature(PUBLIC[name]).parameters if name not in ("self", "cls")]


FUNCTIONS = [name for name, value in PUBLIC.items() if inspect.isfunction(value)]
CLASSES = [name for name, value in PUBLIC.items() if inspect.isclass(value)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_documented_and_no_other(name: str) -> None:
    documented = [entry.name.lstrip("*") for entry in section(name, "parameters")]
    if documented:
        assert documented == parameters(name)
    for parameter in parameters(name):
        assert re.search(rf"\b{parameter}\b", docstring(name)), f"{parameter} is not spoken of"
    assert all(entry.description.strip() for entry in section(name, "parameters"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_raised_is_an_error_that_there_is(name: str) -> None:
    for entry in section(name, "raises"):
        raised = getattr(errors, str(entry.annotation), None) or getattr(builtins, str(entry.annotation), None)
        raised = raised or inspect.getmodule(PUBLIC[name]).__dict__.get(str(entry.annotation))
        assert inspect.isclass(raised), entry.annotation
        assert issubclass(raised, Exception)


@pytest.mark.parametrize("name", [name for name in CLASSES if dataclasses.is_dataclass(PUBLIC[name])])
def test_every_field_of_a_value_is_documented_and_no_other(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(PUBLIC[name]) if not field.name.startswith("_")}
    assert {entry.name for entry in section(name, "attributes")} == fields


@pytest.mark.parametrize("name", PUBLIC)
def test_it_has_a_summary_in_one_line_and_sections_that_are_known(name: str) -> None:
    text = docstring(name)
    summary, *rest = text.split("\n")
    assert summary.endswith((".", ":")), summary
    assert not rest or rest[0] == "", "an empty line follows the summary"
    headings = re.findall(r"^([A-Z][a-z]+):$", text, re.MULTILINE)
    assert [heading for heading in headings if heading not in SECTIONS] == []
    for heading in headings:
        assert re.search(rf"(?:^|\n\n){heading}:\n {{4}}\S", text), f"{heading} begins after an empty line, indented"


@pytest.mark.parametrize("name", PUBLIC)
def test_code_is_marked_as_code(name: str) -> None:
    text = docstring(name)
    assert text.count("`") % 2 == 0, "a backtick is not closed"
    prose = re.sub(r"`[^`]*`", "", text)
    assert "``" not in text, "Markdown's code has one backtick"
    assert not re.search(
        r"\w\(\)", "\n".join(line for line in prose.split("\n") if ">>>" not in line and "    " not in line)
    )
    for example in doctest.DocTestParser().get_examples(text):
        compile(example.source, name, "exec")
    assert (">>>" in text) == bool(re.search(r"^(Example:$|>>>)", text, re.MULTILINE)), "examples have a section"


@pytest.mark.parametrize("name", ["from_pretrained", "convert", "plan", "config"])
def test_help_shows_the_signature_with_its_defaults(name: str) -> None:
    shown = pydoc.plain(pydoc.render_doc(getattr(lazyload, name)))
    for parameter in inspect.signature(getattr(lazyload, name)).parameters.values():
        assert parameter.name in shown
        if parameter.default is not inspect.Parameter.empty:
            assert f"= {parameter.default!r}" in shown, parameter
    assert "explained" not in shown, "the wrapper shows"


def test_the_overloads_of_from_pretrained_have_its_arguments() -> None:
    from typing import get_overloads

    from lazyload.loader import from_pretrained
    from lazyload.options import ConfigOptions, LoadOptions

    for function, options, decide in (
        (from_pretrained, LoadOptions, {"model", "layout", "into"}),
        (lazyload.config, ConfigOptions, {"model", "family"}),
    ):
        names = set(inspect.signature(function).parameters)
        assert set(options.__annotations__) | decide == names
        for overload in get_overloads(inspect.unwrap(function)):
            assert set(inspect.signature(overload).parameters) - {"options"} <= decide
