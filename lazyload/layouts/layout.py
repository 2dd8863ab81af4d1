"""A layout: the description of one checkpoint format by tables of entries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lazyload.layouts.notation import Entry, PathTemplate, parse_entry, parse_path


@dataclass(frozen=True)
class Table:
    """Entries that hold for the whole format, or for a range of an axis.

    Attributes:
        entries: From path template to entry (see `lazyload.layouts.notation`).
        only: For some axes, the indices that the table holds for; in patterns the axis counts from their start.
        split: For some axes, the names of two or more axes that make it up, outermost first.
        sizes: The sizes of the axes that `split` introduces, all but the outermost, which follows.
    """

    entries: Mapping[str, str]
    only: Mapping[str, Sequence[int]] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    def parsed(self) -> list[tuple[PathTemplate, Entry]]:
        """The entries in order, parsed.

        Raises:
            LayoutError: An entry does not follow the notation.
        """
        return [(parse_path(path), parse_entry(entry)) for path, entry in self.entries.items()]

    def description(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {
            "entries": dict(self.entries),
            "only": {axis: list(indices) for axis, indices in self.only.items()},
            "split": {axis: list(parts) for axis, parts in self.split.items()},
            "sizes": dict(self.sizes),
        }


@dataclass(frozen=True, init=False)
class Layout:
    """The description of one checkpoint format.

    Example:
        >>> layout = Layout({"layers.{layer}.query": "attn.q : embed (head head_dim)"}, name="mine")
        >>> layout.tables[0].entries["layers.{layer}.query"]
        'attn.q : embed (head head_dim)'

    Attributes:
        tables: The tables; given as one table, several, or just the entries of a single one.
        name: What messages and keys call it.
        skipped: Patterns, in the manner of `fnmatch`, of source tensors that are knowingly not used; one such as
            `"layers.9.* if layers.9.mark"` counts only where the checkpoint has the tensor `layers.9.mark`.
        general: Whether it describes many models: rows of roles that a model does not have then hold for nothing.
            Otherwise they are errors.
        aliases: `(prefix, other)`: a path that starts with the prefix may start with the other one in files.
    """

    tables: tuple[Table, ...]
    name: str
    skipped: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]
    general: bool

    def __init__(
        self,
        tables: Mapping[str, str] | Sequence[Table] | Table,
        *,
        name: str = "custom",
        skipped: Sequence[str] = (),
        aliases: Sequence[tuple[str, str]] = (),
        general: bool = False,
    ):
        if isinstance(tables, Mapping):
            tables = Table(tables)
        values = {
            "tables": (tables,) if isinstance(tables, Table) else tuple(tables),
            "name": name,
            "skipped": tuple(skipped),
            "aliases": tuple(aliases),
            "general": general,
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    def description(self) -> dict[str, Any]:
        """Everything of the layout that decides bytes on disk, as JSON values; for the cache's key."""
        return {
            "name": self.name,
            "tables": [table.description() for table in self.tables],
            "skipped": list(self.skipped),
            "aliases": [list(pair) for pair in self.aliases],
        }
