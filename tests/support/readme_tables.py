"""The tables of the documentation that follow from the code.

    PYTHONPATH=tests python -m support.readme_tables

writes them into `README.md` and `lazyload/README.md`, each between `<!-- NAME -->` and `<!-- end of NAME -->`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lazyload import families
from lazyload.families import Family
from lazyload.formats import maxtext
from support.checkpoints import GOLDEN
from support.decoders import FULL_BLOCKS

ROOT = Path(__file__).parents[2]
PAGES = {"models": ROOT / "README.md", "roles": ROOT / "lazyload" / "README.md"}
HUB_CONFIGS = Path(__file__).parents[1] / "families" / "hub_configs"


def models() -> list[str]:
    """The families in the order of the registry: what is covered, packed forms, MaxText, since when."""
    rows = ["| models | `model_type` | covered | packed | MaxText | since |", "|---|---|---|---|---|---|"]
    packed = _packed()
    for family in own_families():
        kinds = ", ".join(f"`{kind}`" for kind in family.model_types)
        methods = ", ".join(f"`{method}`" for method in sorted(packed.get(family.name, ())))
        in_maxtext = "yes" if family.name in maxtext.families() else ""
        cells = (family.title, kinds, family.covered, methods, in_maxtext, family.since)
        rows.append("|".join(["", *(f" {cell} " if cell else " " for cell in cells), ""]))
    return rows


def roles() -> list[str]:
    """The parameters that blocks declare."""
    rows = ["| module | parameter | role and axes |", "|---|---|---|"]
    for block in FULL_BLOCKS:
        for path, text in block.parameters.items():
            escaped = text.replace("|", "\\|")
            rows.append(f"| `{block.name}` | `{path}` | `{escaped}` |")
    return rows


TABLES = {"models": models, "roles": roles}


def own_families() -> list[Family]:
    """The families that come with this library."""
    return [family for family in families.known() if family.config.__module__.startswith("lazyload.")]


def written(name: str) -> list[str]:
    """A table as its page has it."""
    _, table, _ = _parts(name)
    return table.strip().splitlines()


def write(name: str) -> None:
    """Writes a table into its page."""
    before, _, after = _parts(name)
    PAGES[name].write_text("\n".join([before.rstrip("\n"), *TABLES[name](), after.lstrip("\n")]))


def _parts(name: str) -> tuple[str, str, str]:
    """A page up to a table, the table, and the rest."""
    page = PAGES[name].read_text()
    before, start, rest = page.partition(f"<!-- {name} -->\n")
    table, end, after = rest.partition(f"<!-- end of {name} -->")
    return before + start, table, end + after


def _packed() -> Mapping[str, set[str]]:
    """By family, the `quant_method`s of its golden cases, and of its public repositories that the tests read."""
    found: dict[str, set[str]] = {}
    for config in _configs():
        quantised = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
        if quantised:
            found.setdefault(families.find(config).name, set()).add(quantised["quant_method"])
    return found


def _configs() -> Iterator[Mapping[str, Any]]:
    for folder in (GOLDEN / "specs", HUB_CONFIGS):
        for file in sorted(folder.glob("*.json")):
            yield json.loads(file.read_text())["config"]


if __name__ == "__main__":
    for table in TABLES:
        write(table)
