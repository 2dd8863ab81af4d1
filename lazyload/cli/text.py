"""How the commands print things: sizes, columns, and what an entry is stored as."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lazyload.display.text import printable, size

__all__ = [
    "Column",
    "age",
    "block",
    "dtypes",
    "flags",
    "middle",
    "moment",
    "printable",
    "remark",
    "size",
    "sources",
    "spec",
    "table",
]

_AGES = (
    ("year", 365 * 86400),
    ("month", 30 * 86400),
    ("week", 7 * 86400),
    ("day", 86400),
    ("hour", 3600),
    ("minute", 60),
)


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


def moment(seconds: float) -> str:
    """A point in time, given in seconds since 1970, in ISO 8601."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def age(seconds: float) -> str:
    """How long ago something was, as people say it: `3 days ago`.

    Example:
        >>> age(5), age(90), age(36 * 3600), age(20 * 86400), age(800 * 86400)
        ('just now', '1 minute ago', '1 day ago', '2 weeks ago', '2 years ago')
    """
    for unit, length in _AGES:
        if seconds >= length:
            count = int(seconds / length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def middle(text: str, width: int) -> str:
    """A text in so many characters at most, without its middle if need be.

    Example:
        >>> middle("meta-llama/Llama-3.2-1B-Instruct", 20)
        'meta-llama…-Instruct'
    """
    if len(text) <= width:
        return text
    tail = max(0, (width - 1) // 2)
    return f"{text[: max(0, width - 1 - tail)]}…{text[len(text) - tail :]}"


@dataclass(frozen=True)
class Column:
    """A column of a table, and how it is shown on a terminal.

    Attributes:
        name: Its heading.
        style: As rich names it, such as `cyan`.
        right: Whether cells end at the same place.
        least: How narrow its cells may become, losing their middles; None for never.
        optional: Whether it may be left out where there is no room; the last one goes first.
    """

    name: str
    style: str = ""
    right: bool = False
    least: int | None = None
    optional: bool = False


def remark(line: str) -> None:
    """Prints what is for people only: nothing where another program reads."""
    if sys.stdout.isatty():
        print(line)


def block(fields: Mapping[str, Any]) -> None:
    """Prints names with their values, those of a mapping indented below its name."""
    width = max(map(len, fields)) + 2
    for field, value in fields.items():
        name = field.replace("_", " ")
        if isinstance(value, Mapping) and value:
            print(f"{name}:")
            for line in _lines(value):
                print(f"  {line}")
        else:
            print(f"{f'{name}:'.ljust(width)}{_value(name, value)}")


def _lines(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and value:
            yield from _lines(value, path)
        else:
            yield f"{path}: {_value(path, value)}"


def _value(name: str, value: Any) -> str:
    if name in ("nbytes", "size on disk") and isinstance(value, int):
        return f"{value} ({size(value)})"
    if isinstance(value, str):
        return printable(value)
    return "-" if value in (None, [], {}) else json.dumps(value)


def table(columns: Sequence[str | Column], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns: on a terminal as wide as that is, in colours; else as wide as they need to be."""
    header = [column if isinstance(column, Column) else Column(column) for column in columns]
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _show(header, cells)
        return
    names = [column.name for column in header]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in (names, *cells))
    print("\n".join(lines))


def _show(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns on a terminal."""
    # It takes a while to import, and what is read by another program is not coloured.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    kept = _fitting(columns, rows, console.width)
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, width in kept.items():
        column = columns[number]
        shown.add_column(
            column.name, style=column.style, justify="right" if column.right else "left", no_wrap=True, max_width=width
        )
    for row in rows:
        shown.add_row(*(Text(middle(row[number], width)) for number, width in kept.items()))
    console.print(shown)


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> dict[int, int]:
    """The columns that there is room for, by number, each with its width."""
    natural = {
        number: max(len(column.name), *(len(row[number]) for row in rows), 1) for number, column in enumerate(columns)
    }
    optional = [number for number, column in enumerate(columns) if column.optional]
    while True:
        widths = _narrowed(columns, natural, width)
        if not optional or _needed(widths) <= width:
            return widths
        del natural[optional.pop()]


def _narrowed(columns: Sequence[Column], natural: Mapping[int, int], width: int) -> dict[int, int]:
    """The widths after taking from the widest of the columns that may become narrower, until they fit if they can."""
    widths = dict(natural)
    while _needed(widths) > width:
        wider = [number for number, size in widths.items() if size > (columns[number].least or size)]
        if not wider:
            break
        widths[max(wider, key=lambda number: widths[number])] -= 1
    return widths


def _needed(widths: Mapping[int, int]) -> int:
    return sum(widths.values()) + 2 * (len(widths) - 1)
