"""One entry of a layout's table: a path template, and the roles and axis pattern of the array that lies there.

    path      "model.layers.{layer}.mlp.{gate_up:gate,up}_proj.weight"
    entry     "mlp.in : mlp embed"
    entry     "attn.q | attn.k | attn.v : (head head_dim | kv_head head_dim | kv_head head_dim) embed"
    entry     "embed : vocab embed ; scale 8.0 ; pad vocab 256128"

In a path, `{axis}` stands for the axis's index, `{axis:a,b}` for names in place of indices, and `{axis:0..}` for the
position in the range that the table is restricted to. In a pattern, every word is an axis; `(a b)` merges axes in
row-major order, and `(a | b)` concatenates arrays of several roles. After `;` come the operations that lead from the
role's values to the stored ones.
"""

import math
import re
from dataclasses import dataclass, replace

from lazyload.errors import LayoutError

Product = tuple[str, ...]
"""Axes that one dimension merges, outermost first."""

_PLACE = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
_TOKEN = re.compile(r"\s*(\w+|[()|])")


@dataclass(frozen=True)
class Operations:
    """What is stored, from a role's value: `value * scale + offset`, padded with zeros, in a dtype of its own.

    Attributes:
        scale: Factor.
        offset: Added after scaling.
        pad: `(axis, size)`: the dimension of that axis is filled with zeros up to the size.
        dtype: Name of the stored dtype where it is not the one asked for.
    """

    scale: float = 1.0
    offset: float = 0.0
    pad: tuple[str, int] | None = None
    dtype: str | None = None

    @property
    def arithmetic(self) -> bool:
        """Whether values change."""
        return self.scale != 1.0 or self.offset != 0.0


@dataclass(frozen=True)
class Entry:
    """The parsed right side of a table's line.

    Attributes:
        roles: What the array holds; several where it is a concatenation.
        patterns: For each role, the axes of every dimension.
        concatenated: The dimension along which the roles follow each other; None for a single role.
        operations: From the role's values to the stored ones.
    """

    roles: tuple[str, ...]
    patterns: tuple[tuple[Product, ...], ...]
    concatenated: int | None
    operations: Operations


@dataclass(frozen=True)
class Place:
    """An index in a path template.

    Attributes:
        axis: The axis it is an index of.
        names: Names written in place of the numbers; empty for numbers.
        relative: Whether numbers count from the start of the table's range.
    """

    axis: str
    names: tuple[str, ...] = ()
    relative: bool = False


@dataclass(frozen=True)
class PathTemplate:
    """The parsed left side of a table's line: literal text and places, in turn."""

    pieces: tuple[str | Place, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """The indices that stand in the path."""
        return tuple(piece for piece in self.pieces if isinstance(piece, Place))


def parse_path(text: str) -> PathTemplate:
    """Parses a path template.

    Args:
        text: Such as `"layers.{layer}.mlp.{gate_up:gate,up}.kernel"`.

    Raises:
        LayoutError: The braces are not balanced, or an axis stands in the path twice.
    """
    pieces: list[str | Place] = []
    end = 0
    for match in _PLACE.finditer(text):
        pieces.append(text[end : match.start()])
        axis, rest = match.groups()
        relative = rest == "0.."
        names = () if rest is None or relative else tuple(rest.split(","))
        pieces.append(Place(axis, names, relative))
        end = match.end()
    pieces.append(text[end:])
    if any("{" in piece or "}" in piece for piece in pieces if isinstance(piece, str)):
        raise LayoutError(f"path {text!r}: a brace without its partner; write an index as {{axis}} or {{axis:a,b}}")
    template = PathTemplate(tuple(piece for piece in pieces if piece != ""))
    axes = [place.axis for place in template.places]
    if len(set(axes)) < len(axes):
        raise LayoutError(f"path {text!r}: an axis stands in it twice")
    return template


def parse_entry(text: str) -> Entry:
    """Parses `"ROLE [| ROLE ...] : DIMENSIONS [; OPERATION ...]"`.

    Raises:
        LayoutError: The text does not follow the notation; the message quotes it and says where.
    """
    head, *operations = text.split(";")
    names, colon, pattern = head.partition(":")
    roles = tuple(name.strip() for name in names.split("|"))
    if not colon or not all(re.fullmatch(r"[\w.]+", role) for role in roles):
        raise LayoutError(f"entry {text!r}: expected 'role : axes'")
    dimensions = _parse_dimensions(text, pattern)
    concatenated = [number for number, parts in enumerate(dimensions) if len(parts) > 1]
    if len(roles) > 1 and (len(concatenated) != 1 or len(dimensions[concatenated[0]]) != len(roles)):
        raise LayoutError(f"entry {text!r}: {len(roles)} roles need one dimension with as many parts between '|'")
    if len(roles) == 1 and concatenated:
        raise LayoutError(f"entry {text!r}: a dimension has parts between '|', but there is one role")
    patterns = tuple(
        tuple(parts[number] if len(parts) > 1 else parts[0] for parts in dimensions) for number in range(len(roles))
    )
    for axes in patterns:
        flat = [axis for product in axes for axis in product]
        if len(set(flat)) < len(flat):
            raise LayoutError(f"entry {text!r}: an axis stands in it twice")
    return Entry(roles, patterns, concatenated[0] if concatenated else None, _parse_operations(text, operations))


def _parse_dimensions(text: str, pattern: str) -> list[tuple[Product, ...]]:
    """The dimensions of a pattern, each as its parts between `|` (one for a plain dimension)."""
    tokens, end = [], 0
    while match := _TOKEN.match(pattern, end):
        tokens.append(match[1])
        end = match.end()
    if pattern[end:].strip():
        raise LayoutError(f"entry {text!r}: cannot read {pattern[end:].strip()!r}")
    dimensions: list[tuple[Product, ...]] = []
    group: list[list[str]] | None = None
    for token in tokens:
        if token == "(":
            if group is not None:
                raise LayoutError(f"entry {text!r}: parentheses do not nest")
            group = [[]]
        elif token == ")":
            if group is None or not all(group):
                raise LayoutError(f"entry {text!r}: ')' without axes before it")
            dimensions.append(tuple(tuple(part) for part in group))
            group = None
        elif token == "|":
            if group is None:
                raise LayoutError(f"entry {text!r}: '|' between axes stands inside parentheses only")
            group.append([])
        elif group is None:
            dimensions.append(((token,),))
        else:
            group[-1].append(token)
    if group is not None:
        raise LayoutError(f"entry {text!r}: '(' without ')'")
    return dimensions


def _parse_operations(text: str, operations: list[str]) -> Operations:
    parsed = Operations()
    seen = set()
    for operation in operations:
        match operation.split():
            case ["scale", number] if _is_finite(number) and float(number) != 0:
                parsed = replace(parsed, scale=float(number))
            case ["offset", number] if _is_finite(number):
                parsed = replace(parsed, offset=float(number))
            case ["pad", axis, size] if size.isdecimal():
                parsed = replace(parsed, pad=(axis, int(size)))
            case ["as", dtype]:
                parsed = replace(parsed, dtype=dtype)
            case _:
                raise LayoutError(
                    f"entry {text!r}: cannot read the operation {operation.strip()!r}; "
                    "there are 'scale X', 'offset X', 'pad AXIS SIZE' and 'as DTYPE'"
                )
        name = operation.split()[0]
        if name in seen:
            raise LayoutError(f"entry {text!r}: the operation {name!r} is given twice")
        seen.add(name)
    return parsed


def _is_finite(number: str) -> bool:
    try:
        return math.isfinite(float(number))
    except ValueError:
        return False
