"""Imports point one way: no circles between modules, and every room knows only what lies below it.

Every `import` statement counts as an arrow, those inside functions and those for types only, too.
"""

import ast
import graphlib
import importlib.util
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lazyload"

# From top to bottom: a room (a package, or a module at the root) imports from itself and from the rows below its own.
ROWS = (
    ("__main__",),
    ("cli", "integrations"),
    ("lazyload",),
    ("repairing",),
    ("loader", "planning", "explanation", "saving", "tokenizing"),
    ("together",),
    ("obtaining", "restoring"),
    ("low_rank", "placement", "shown"),
    ("filling", "kernels"),
    ("request", "team", "verification"),
    ("targets",),
    ("arguments",),
    ("adapting", "monitoring", "options", "recalling", "results"),
    ("cache", "checkpoint", "sources", "families", "models"),
    ("formats", "config_json"),
    ("architecture",),
    ("layouts",),
    ("log", "progress", "report", "sharding", "storage"),
    ("bucket", "display"),
    ("errors", "importing", "partition"),
)
ROW_OF = {room: number for number, rooms in enumerate(ROWS) for room in rooms}

JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "tensorstore"}
FILES = {"fsspec", "huggingface_hub", "io", "mmap", "os", "pathlib", "safetensors", "shutil", "tempfile"}
# What a room does not import, neither by itself nor through others.
UNKNOWN_TO = {
    "errors": JAX | FILES | {"numpy", "ml_dtypes"},
    "display": JAX | FILES | {"numpy", "ml_dtypes"},
    "layouts": JAX | FILES,
    "architecture": JAX | FILES,
    "config_json": JAX | FILES,
    "families": JAX | FILES,
    "cache": JAX | {"numpy", "ml_dtypes", "safetensors"},
}

Arrows = Mapping[str, Set[str]]
"""What every module imports, by the module's name."""


def texts() -> dict[str, str]:
    """The text of every module of the package, by name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(module: str, modules: Mapping[str, str]) -> Iterator[str]:
    """What a module imports anywhere in it: modules of the package, and of others."""
    is_package = any(name.startswith(f"{module}.") for name in modules)
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(modules[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = (f"{base}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else base for name in names)


def complaints(modules: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports of a package, given as its modules' texts: one sentence each."""
    if homeless := {room(module) for module in modules} - ROW_OF.keys():
        return [f"{name} has no row" for name in sorted(homeless)]
    arrows = {module: set(imports(module, modules)) for module in modules}
    inside = {module: names & modules.keys() for module, names in arrows.items()}
    return [*upwards(inside), *forbidden(arrows), *circle(inside)]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def upwards(inside: Arrows) -> Iterator[str]:
    """Arrows that do not point down; a family's that point to another format than Hugging Face's."""
    for module, names in inside.items():
        for name in names:
            above, below = room(module), room(name)
            points_down = above == below or ROW_OF[above] < ROW_OF[below]
            if not points_down or (above == "families" and below == "formats" and not name.endswith(".huggingface")):
                yield f"{module} imports {name}"


def forbidden(arrows: Arrows) -> Iterator[str]:
    """Imports of what a room must not know, by its own modules or by those that they import."""
    for module in arrows:
        for name in reached(module, arrows):
            for library in {other.split(".")[0] for other in arrows[name]} & UNKNOWN_TO.get(room(module), set()):
                yield f"{module} must not know {library}, which {name} imports"


def reached(module: str, arrows: Arrows) -> set[str]:
    """A module, and the modules of the package that it imports directly or through others."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in arrows and name not in found:
            found.add(name)
            waiting += arrows[name]
    return found


def circle(inside: Arrows) -> Iterator[str]:
    try:
        graphlib.TopologicalSorter(inside).prepare()
    except graphlib.CycleError as error:
        names = error.args[1][1:]
        start = names.index(min(names))
        yield f"a circle: {' <- '.join([*names[start:], *names[: start + 1]])}"


def test_imports_point_one_way() -> None:
    assert complaints(texts()) == []


SMALL = {
    "lazyload": "from lazyload.loader import load",
    "lazyload.cli": "import lazyload",
    "lazyload.loader": "from lazyload.request import Request\nfrom lazyload.cache.key import Key",
    "lazyload.request": "from lazyload.families import qwen\nimport jax",
    "lazyload.cache": "",
    "lazyload.cache.key": "import json\nfrom pathlib import Path\nfrom lazyload.storage import Storage",
    "lazyload.checkpoint.write": "import numpy",
    "lazyload.families": "from lazyload.families import qwen",
    "lazyload.families.qwen": "from lazyload.formats import huggingface",
    "lazyload.formats.huggingface": "from lazyload.architecture.decoder import Decoder",
    "lazyload.formats.nnx": "",
    "lazyload.architecture.decoder": "from lazyload.layouts.lazy import LazyTensor",
    "lazyload.layouts.lazy": "from lazyload.layouts.source import Box",
    "lazyload.layouts.source": "import numpy as np",
    "lazyload.storage": "from lazyload import errors",
    "lazyload.errors": "",
}


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("errors", "import lazyload.layouts.source", "lazyload.errors imports lazyload.layouts.source"),
        ("cache.key", "from ..checkpoint import write", "lazyload.cache.key imports lazyload.checkpoint.write"),
        (
            "cache.key",
            "import ml_dtypes",
            "lazyload.cache.key must not know ml_dtypes, which lazyload.cache.key imports",
        ),
        ("storage", "import jax.numpy", "lazyload.cache.key must not know jax, which lazyload.storage imports"),
        ("families.qwen", "from lazyload.formats import nnx", "lazyload.families.qwen imports lazyload.formats.nnx"),
        ("formats.nnx", "import lazyload.families.qwen", "lazyload.formats.nnx imports lazyload.families.qwen"),
        ("cache", "import lazyload", "lazyload.cache imports lazyload"),
        (
            "layouts.source",
            "def read():\n    import os",
            "lazyload.architecture.decoder must not know os, which lazyload.layouts.source imports",
        ),
        (
            "request",
            "if TYPE_CHECKING:\n    from lazyload.loader import Plan",
            "a circle: lazyload.loader <- lazyload.request <- lazyload.loader",
        ),
        (
            "layouts.source",
            "def read():\n    from . import lazy",
            "a circle: lazyload.layouts.lazy <- lazyload.layouts.source <- lazyload.layouts.lazy",
        ),
        ("crew", "", "crew has no row"),
    ],
)
def test_an_arrow_that_points_elsewhere_is_noticed(module: str, line: str, complaint: str) -> None:
    assert complaints(SMALL) == []
    name = f"lazyload.{module}"
    found = complaints(SMALL | {name: f"{SMALL.get(name, '')}\n{line}\n"})
    assert complaint in found, found
