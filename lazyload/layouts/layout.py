"""A layout: the description of one checkpoint format by tables, a line for each kind of array.

Example:
    The two formats of the worked example of this folder, and what stands on each side of a line:

    >>> hub = Layout({"model.layers.{layer}.self_attn.q_proj.weight": "attn.q : (head head_dim) embed"}, name="hub")
    >>> scanned = Layout({"decoder.layers.self_attention.query.kernel": "attn.q : embed layer head (pair half)"})
    >>> [line.patterns for layout in (hub, scanned) for table in layout.tables for line in table.parsed]
    [((('head', 'head_dim'), ('embed',)),), ((('embed',), ('layer',), ('head',), ('pair', 'half')),)]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lazyload.display.text import ranges
from lazyload.display.values import named
from lazyload.errors import LayoutError
from lazyload.layouts.notation import Line, parse_line

_SHOWN = 4
"""How many of its tables a layout's repr shows."""


@dataclass(frozen=True)
class Table:
    """Lines that hold for the whole format, or for some indices of an axis.

    Example:
        Of every three layers, the first two are stacked within their block, and the blocks again; the third has a table
        of its own:

        >>> local = Table(
        ...     {"blocks.local.query": "attn.q : embed block local head head_dim"},
        ...     only={"layer": (0, 1, 3, 4)},
        ...     split={"layer": ("block", "local")},
        ...     sizes={"local": 2},
        ... )
        >>> last = Table({"blocks.last.query": "attn.q : embed layer head head_dim"}, only={"layer": (2, 5)})

    Attributes:
        lines: From path to what the array there holds (see `lazyload.layouts.notation`).
        only: For some axes, the indices that the table holds for; in patterns the axis counts from their start.
        split: For some axes, the names of two or more axes that make it up, outermost first.
        sizes: The sizes of the axes that `split` introduces, all but the outermost, which follows.
        parsed: The lines in order, parsed.

    Raises:
        LayoutError: A line does not follow the notation.
    """

    lines: Mapping[str, str]
    only: Mapping[str, Sequence[int]] = field(default_factory=dict)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    parsed: tuple[Line, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.lines, Mapping):
            raise LayoutError(f"a table is a mapping from path to 'role : axes', not {self.lines!r:.200}")
        for axis, indices in self.only.items():
            if not all(isinstance(index, int) for index in indices):
                raise LayoutError(f"a table for {axis} {indices!r:.200}: give whole numbers")
        parsed = tuple(parse_line(path, array) for path, array in self.lines.items())
        object.__setattr__(self, "parsed", parsed)

    def __repr__(self) -> str:
        only = {axis: ranges(tuple(indices)) for axis, indices in self.only.items()}
        return named(self, f"{len(self.lines)} lines", **({"only": only} if only else {}))

    def description(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {
            "lines": dict(self.lines),
            "only": {axis: list(indices) for axis, indices in self.only.items()},
            "split": {axis: list(parts) for axis, parts in self.split.items()},
            "sizes": dict(self.sizes),
        }


@dataclass(frozen=True, init=False)
class Layout:
    """The description of one checkpoint format.

    Example:
        >>> layout = Layout({"layers.{layer}.query": "attn.q : embed (head head_dim)"}, name="mine")
        >>> layout.tables[0].lines["layers.{layer}.query"]
        'attn.q : embed (head head_dim)'

    Attributes:
        tables: The tables; given as one table, several, or just the lines of a single one.
        name: What messages and keys call it.
        skipped: Globs, as `fnmatch` reads them, of source tensors that are knowingly not used; one such as
            `"layers.9.* if layers.9.mark"` counts only where the checkpoint has the tensor `layers.9.mark`.
        general: Whether it describes many models: rows of roles that a model does not have then hold for nothing.
            Otherwise they are errors.
        aliases: `(prefix, other)`: a path that starts with the prefix may start with the other one in files.
        alternatives: Tables of further forms of some roles, for formats whose files come in several: one counts in
            place of the lines with its roles where it fits a checkpoint's tensors, their names and shapes, better.
    """

    tables: tuple[Table, ...]
    name: str
    skipped: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]
    general: bool
    alternatives: tuple[Table, ...]

    def __init__(
        self,
        tables: Mapping[str, str] | Sequence[Table] | Table,
        *,
        name: str = "custom",
        skipped: Sequence[str] = (),
        aliases: Sequence[tuple[str, str]] = (),
        general: bool = False,
        alternatives: Sequence[Table] = (),
    ):
        if isinstance(tables, Mapping):
            tables = Table(tables)
        several = (tables,) if isinstance(tables, Table) else tuple(tables)
        if not all(isinstance(table, Table) for table in several):
            raise LayoutError(
                f"a layout's tables are a mapping, or lazyload.Table(...), one or several; not {tables!r:.200}"
            )
        values = {
            "tables": several,
            "name": name,
            "skipped": tuple(skipped),
            "aliases": tuple(aliases),
            "general": general,
            "alternatives": tuple(alternatives),
        }
        for attribute, value in values.items():
            object.__setattr__(self, attribute, value)

    def __repr__(self) -> str:
        return named(self, repr(self.name), *map(repr, self.tables[:_SHOWN]), *["..."] * (len(self.tables) > _SHOWN))

    @property
    def roles(self) -> frozenset[str]:
        """Every role that the tables speak of."""
        return frozenset(role for table in self.tables for line in table.parsed for role in line.roles)

    def description(self) -> dict[str, Any]:
        """Everything of the layout that decides bytes on disk, as JSON values; for the cache's key."""
        description = {
            "name": self.name,
            "tables": [table.description() for table in self.tables],
            "skipped": list(self.skipped),
            "aliases": [list(pair) for pair in self.aliases],
        }
        if self.alternatives:
            description["alternatives"] = [table.description() for table in self.alternatives]
        return description
