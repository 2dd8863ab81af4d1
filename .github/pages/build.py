"""Builds the pages: the README by sections, what is beside this file, examples, the reference from docstrings, ...

    python .github/pages/build.py OUT

Needs `pip install '.[docs]'`, and no network. A warning is an error: a link that leads nowhere, a docstring that does
not render, a public name without an entry in `reference.rst`.
"""

import ast
import json
import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sphinx.cmd.build import main as sphinx

import lazyload

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REPOSITORY = "https://github.com/lazyload/lazyload"
BELOW = {
    **{f".github/pages/{path.name}": path.stem for path in sorted(HERE.glob("*.md"))},
    ".github/CHANGELOG.md": "changelog",
    ".github/CONTRIBUTING.md": "contributing",
    "lazyload/README.md": "house",
}
"""Markdown files that are a page each: more of the guide, and what else there is to read."""

_FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


def main() -> int:
    """Builds the pages into the folder that the command line names; returns the exit code."""
    (out,) = sys.argv[1:]
    require_entries((HERE / "reference.rst").read_text())
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder)
        lay_out(sources)
        return sphinx(["-q", "-W", "--keep-going", "-d", f"{folder}/.doctrees", "-c", str(HERE), folder, out])


def require_entries(reference: str) -> None:
    """Makes sure that the reference has every public name, and no other of the package itself."""
    entries = set(re.findall(r"^\.\. auto\w+:: lazyload\.(\w+)$", reference, re.MULTILINE))
    if entries != set(lazyload.__all__):
        sys.exit(f"reference.rst: names without an entry, or entries without a name: {entries ^ {*lazyload.__all__}}")


def lay_out(sources: Path) -> None:
    """Writes the sources of all pages below a folder."""
    sections = dict(readme_sections((ROOT / "README.md").read_text()))
    pages = {f"README.md#{slug}": page for page, text in sections.items() for slug in slugs(text)}
    pages |= {path: page for path, page in BELOW.items()} | {"README.md": "index"}
    examples = [example for example in (ROOT / "examples").iterdir() if example.suffix in (".py", ".ipynb")]
    examples.sort(key=lambda example: (example.stem != "quickstart", example.name))
    pages |= {f"examples/{example.name}": f"examples/{example.name.replace('.', '_')}" for example in examples}
    for page, text in sections.items():
        (sources / f"{page}.md").write_text(with_links(text, "README.md", page, pages))
    for path, page in BELOW.items():
        (sources / f"{page}.md").write_text(with_links((ROOT / path).read_text(), path, page, pages))
    (sources / "examples").mkdir()
    for example in examples:
        page = sources / pages[f"examples/{example.name}"]
        if example.suffix == ".py":
            page.with_suffix(".md").write_text(example_page(example))
        else:
            notebook = json.loads(example.read_text())
            # Cells may hold commands, which are no Python.
            notebook["metadata"]["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
            page.with_suffix(".ipynb").write_text(json.dumps(notebook))
    shutil.copy(HERE / "reference.rst", sources)
    guide = [page for page in sections if page != "index"]
    more = [page for path, page in BELOW.items() if (ROOT / path).parent == HERE]
    notebooks = [pages[f"examples/{example.name}"] for example in examples if example.suffix == ".ipynb"]
    programs = [pages[f"examples/{example.name}"] for example in examples if example.suffix == ".py"]
    with (sources / "index.md").open("a") as index:
        for caption, documents in (
            ("Guide", [*guide, *more]),
            ("Notebooks", notebooks),
            ("Programs", programs),
            ("Reference", ["reference", *(page for page in BELOW.values() if page not in more)]),
        ):
            if documents:
                lines = ["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *documents, "```", ""]
                index.write("\n".join(lines))


def readme_sections(text: str) -> Iterator[tuple[str, str]]:
    """The README as pages, by name: what is above its first section, and each section with its headings one up."""
    first, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    yield "index", first
    for section in sections:
        (slug, *_) = slugs(section)
        parts = _FENCE.split(section)
        parts[::2] = [re.sub(r"^##", "#", part, flags=re.MULTILINE) for part in parts[::2]]
        yield slug, "".join(parts)


def slugs(text: str) -> list[str]:
    """The anchors of a text's headings, as GitHub makes them."""
    headings = _HEADING.findall("".join(_FENCE.split(text)[::2]))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for _, heading in headings]


def with_links(text: str, path: str, page: str, pages: Mapping[str, str]) -> str:
    """A text whose links to files of the repository lead to their pages, or to the repository.

    Args:
        text: Markdown.
        path: The file it is from.
        page: The page it becomes.
        pages: The pages of files, and of the README's anchors.
    """

    def replaced(match: re.Match[str]) -> str:
        target = match[1]
        if re.match(r"[a-z]+:", target):
            return match[0]
        file, mark, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
        found = pages.get(file + mark + anchor, pages.get(file))
        if found is None:
            if not (ROOT / file).exists():
                sys.exit(f"{path}: there is no {file}")
            kind = "tree" if (ROOT / file).is_dir() else "raw" if file.endswith(".svg") else "blob"
            return f"]({REPOSITORY}/{kind}/main/{file}{mark}{anchor})"
        relative = posixpath.relpath(found, posixpath.dirname(page) or ".")
        suffix = ".ipynb" if file.endswith(".ipynb") else ".md"
        return f"]({relative}{suffix}{mark}{anchor})"

    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


def example_page(program: Path) -> str:
    """A program as a page: what its docstring says, and the code."""
    code = program.read_text()
    doc = ast.get_docstring(ast.parse(code)) or ""
    headline, _, rest = doc.partition("\n")
    body = code.split('"""\n', 2)[-1].lstrip("\n")
    return f"# {program.name}\n\n{headline}\n{rest}\n\n```python\n{body}```\n"


if __name__ == "__main__":
    sys.exit(main())
