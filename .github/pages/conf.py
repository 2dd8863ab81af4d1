"""Sphinx's settings for the pages; `build.py` beside it lays out what they are made of."""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

project = "lazyload"
html_title = "lazyload"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
# Code of 88 columns fits beside the sidebar.
html_theme_options = {"light_css_variables": {"code-font-size": "81.25%"}}
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Notebooks are shown with the outputs that they are committed with; CI executes them elsewhere.
nb_execution_mode = "off"
myst_heading_anchors = 4
# The README's table of contents leads the way on GitHub; here the sidebar does.
suppress_warnings = ["myst.header"]
# As the docstrings say in words; overloads would hide the arguments that have defaults.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_ivar = True
# From accessible-pygments, which furo brings along; comments in most other styles are faint.
pygments_style = "a11y-high-contrast-light"

_CODE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)(\w?)")

_RETURNS = re.compile(r"^Returns:\n((?: {4}.*\n?)+)", re.MULTILINE)


def setup(app: Sphinx) -> None:
    """Connects what makes docstrings, which are Markdown, readable for Sphinx."""
    app.connect("autodoc-process-docstring", _as_rst, priority=0)
    app.connect("autodoc-process-signature", _public_parameters)


def _as_rst(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Turns Markdown's code, between backticks or indented, into that of reStructuredText."""
    text = _CODE.sub(lambda match: f"``{match[1]}``" + (f"\\ {match[2]}" if match[2] else ""), "\n".join(lines))
    text = re.sub(r"^( *)(\S.*):\n\n(?=\1    )", r"\1\2::\n\n", text, flags=re.MULTILINE)
    # Napoleon takes what stands before a colon for the type.
    text = _RETURNS.sub(lambda match: f":returns: {' '.join(match[1].split())}\n", text)
    lines[:] = text.replace("  # doctest: +SKIP", "").split("\n")


def _public_parameters(app: Sphinx, what: str, name: str, thing: Any, *_: object) -> tuple[str, str] | None:
    """Leaves private parameters out of what is shown."""
    if what not in ("class", "function", "method"):
        return None
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    shown = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if not parameter.name.startswith("_") and parameter.name != "self"
    ]
    return str(signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)), ""
