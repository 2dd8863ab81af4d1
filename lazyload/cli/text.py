"""How the commands print things: sizes, columns, and what an entry is stored as."""

from collections.abc import Sequence
from typing import Any

from lazyload.display.text import size

__all__ = ["dtypes", "flags", "size", "sources", "spec", "table"]


def dtypes(described: Any) -> str:
    """A key's dtype, or its dtypes by pattern, in a word each."""
    return " ".join(map(str, described)) if isinstance(described, list) else str(described)


def flags(storage: Any) -> str:
    """How an entry is stored, such as `ocdbt+zarr3`."""
    if not isinstance(storage, dict):
        return "?"
    names = [name for name in ("ocdbt", "zarr3") if storage.get(name)] or ["zarr2"]
    compression = storage.get("compression")
    return "+".join([*names, *([str(compression)] if compression not in (None, "none") else [])])


def sources(names: Sequence[str]) -> str:
    """The tensors that an array is made of, in short."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def spec(spec: Sequence[Any], dimensions: int) -> str:
    """The mesh axes of each dimension, `fsdp,-,tp`; `-` for none."""
    entries = [*spec, *[None] * (dimensions - len(spec))]
    return ",".join("-" if entry is None else entry if isinstance(entry, str) else "+".join(entry) for entry in entries)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
