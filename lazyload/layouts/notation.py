"""One line of a layout's table, parsed: where an array lies, the roles it holds, and the pattern of their axes.

    "model.layers.{layer}.self_attn.q_proj.weight":        "attn.q : (head head_dim) embed"
    "decoder.layers.self_attention.query.kernel":          "attn.q : embed layer head (pair half)"
    "model.layers.{layer}.mlp.{gate_up:gate,up}_proj.weight": "mlp.in : mlp embed"
    "model.layers.{layer}.self_attn.qkv_proj.weight":
        "attn.q | attn.k | attn.v : (head head_dim | kv_head head_dim | kv_head head_dim) embed"
    "layers.{layer}.attention.in_proj_ba.kernel":          "delta.b | delta.a : embed (key_head (group | group))"
    "layers.{layer}.attn.qkv_einsum.w":
        "attn.q | attn.k | attn.v : (1 | 1 | 1) (head | kv_head | kv_head) embed head_dim"
    "token_embedder.embedding":                            "embed : vocab embed ; scale 8.0 ; pad vocab 256128"

An index stands either in the path or in the pattern. In a path, `{axis}` stands for the axis's index, `{axis:a,b}` for
names in place of indices, and `{axis:0..}` for the position in the range that the table is restricted to. A pattern has
a word a dimension, as in einops: an axis, `1` for a dimension of that size, or a composite axis `(a b)`, row-major; `(a
| b)` concatenates arrays of several roles, and `(c (a | b))` does so at every index of `c`. `(1 | 1)` stacks them on a
dimension of its own; beside it, `(a | b)` is one dimension, of the same size in all roles, for which each has an axis
of its own. After `;` come the operations that lead from the role's values to the stored ones: `scale X`, `offset X`,
`pad AXIS SIZE` with zeros at the end, `as DTYPE`, and `unrounded`, which keeps values that the dtype asked for cannot
hold in float32. `fill X` stores a number in place of all values: what a format makes up has the place and the dtype of
a role's, and nothing of it.

Example:
    >>> line = parse_line("model.layers.{layer}.self_attn.q_proj.weight", "attn.q : (head head_dim) embed")
    >>> line.path
    ('model.layers.', PathAxis(axis='layer', names=(), relative=False), '.self_attn.q_proj.weight')
    >>> line.roles, line.patterns
    (('attn.q',), ((('head', 'head_dim'), ('embed',)),))
"""

import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import ml_dtypes
import numpy as np

from lazyload.errors import LayoutError

AxisNames = tuple[str, ...]
"""What stands for one dimension in a pattern: an axis, or those that a composite axis is made of, outermost first.

None stand for a dimension of size 1.
"""

ONE = "1"
"""How a pattern writes a dimension of size 1, which is no axis."""

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "int32": np.dtype(np.int32),
}
"""What `as DTYPE` may say."""

_PATH_AXIS = re.compile(r"\{(\w+)(?::([^{}]*))?\}")
_TOKEN = re.compile(r"\s*(\w+|[()|])")


@dataclass(frozen=True)
class Operations:
    """How a role's values are stored: `value * scale + offset`, in a dtype.

    Attributes:
        scale: Factor; 0 where `offset` is stored in place of all values.
        offset: Added after scaling.
        dtype: The stored dtype; None for the one that the conversion is asked for.
        unrounded: Whether values that the dtype asked for cannot hold are stored in float32.
    """

    scale: float = 1.0
    offset: float = 0.0
    dtype: np.dtype | None = None
    unrounded: bool = False

    @property
    def made_up(self) -> bool:
        """Whether nothing of the values is stored."""
        return self.scale == 0

    @property
    def arithmetic(self) -> bool:
        """Whether values change."""
        return self.scale != 1.0 or self.offset != 0.0


@dataclass(frozen=True)
class PathAxis:
    """An axis whose index stands in the path.

    Attributes:
        axis: The axis.
        names: Names written in place of the numbers; empty for numbers.
        relative: Whether numbers count from the start of the table's range.
    """

    axis: str
    names: tuple[str, ...] = ()
    relative: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        template: The path as it is written.
        path: The path: literal text and axes, in turn.
        roles: What the array holds; several where it is a concatenation.
        patterns: For each role, the axes of every dimension.
        concatenated: The dimension along which the roles follow each other, or are stacked; None for a single role.
        turns: How many axes of that dimension come first and are common to all roles, which take turns at every index
            of them.
        padded: A dimension, and the size that zeros fill it up to; None without padding.
        operations: From the role's values to the stored ones.
    """

    template: str
    path: tuple[str | PathAxis, ...]
    roles: tuple[str, ...]
    patterns: tuple[tuple[AxisNames, ...], ...]
    concatenated: int | None
    turns: int
    padded: tuple[int, int] | None
    operations: Operations

    @property
    def path_axes(self) -> tuple[PathAxis, ...]:
        """The axes whose indices stand in the path."""
        return tuple(piece for piece in self.path if isinstance(piece, PathAxis))


def parse_line(path: str, array: str) -> Line:
    """Parses one line of a table.

    Args:
        path: Such as `"layers.{layer}.mlp.{gate_up:gate,up}.kernel"`.
        array: `"ROLE [| ROLE ...] : DIMENSIONS [; OPERATION ...]"`.

    Raises:
        LayoutError: The line does not follow the notation; the message quotes it and says where.
    """
    if not isinstance(path, str) or not isinstance(array, str):
        raise LayoutError(f"line {path!r}: {array!r}: give a path and 'role : axes', both as text")
    return _parse_line(path, array)


# Every call of a process reads the same few tables.
@functools.lru_cache(maxsize=4096)
def _parse_line(path: str, array: str) -> Line:
    try:
        pieces = _parse_path(path)
        head, *operations = array.split(";")
        roles, patterns, concatenated, turns = _parse_patterns(head)
        parsed, pad = _parse_operations(operations)
        padded = _padded(*pad, patterns, concatenated) if pad else None
    except LayoutError as error:
        raise LayoutError(f"line {path!r}: {array!r}: {error}") from None
    return Line(path, pieces, roles, patterns, concatenated, turns, padded, parsed)


def outermost(axes: AxisNames) -> str:
    """What a dimension is called by: its axis, the outermost of a composite one; `1` where it has none."""
    return axes[0] if axes else ONE


def _parse_path(text: str) -> tuple[str | PathAxis, ...]:
    pieces: list[str | PathAxis] = []
    end = 0
    for match in _PATH_AXIS.finditer(text):
        axis, rest = match.groups()
        relative = rest == "0.."
        names = () if rest is None or relative else tuple(rest.split(","))
        if not all(names):
            raise LayoutError(f"an empty name for {axis} in the path; write {{{axis}:a,b}}, or {{{axis}}} for numbers")
        pieces += [text[end : match.start()], PathAxis(axis, names, relative)]
        end = match.end()
    pieces.append(text[end:])
    if any("{" in piece or "}" in piece for piece in pieces if isinstance(piece, str)):
        raise LayoutError("a brace without its partner in the path; write an index as {axis} or {axis:a,b}")
    _require_once("path", [piece.axis for piece in pieces if isinstance(piece, PathAxis)])
    return tuple(piece for piece in pieces if piece != "")


class _Dimension(NamedTuple):
    """One dimension of a pattern.

    Attributes:
        parts: What it concatenates: the axes of each part; one part for a plain dimension.
        common: How many axes come first in every part.
    """

    parts: tuple[AxisNames, ...]
    common: int = 0


@functools.lru_cache(maxsize=1024)
def _parse_patterns(text: str) -> tuple[tuple[str, ...], tuple[tuple[AxisNames, ...], ...], int | None, int]:
    """The roles, a pattern for each, the dimension along which they are concatenated, and its common axes."""
    names, colon, pattern = text.partition(":")
    roles = tuple(name.strip() for name in names.split("|"))
    if not colon or not all(re.fullmatch(r"[\w.]+", role) for role in roles):
        raise LayoutError("expected 'role : axes'")
    dimensions = _parse_dimensions(pattern)
    by_role = [number for number, dimension in enumerate(dimensions) if len(dimension.parts) > 1]
    stacked = [number for number in by_role if not any(dimensions[number].parts)]
    concatenated = stacked or by_role
    if len(roles) == 1 and by_role:
        raise LayoutError("a dimension has parts between '|', but there is one role")
    if len(roles) > 1 and (len(concatenated) != 1 or any(len(dimensions[n].parts) != len(roles) for n in by_role)):
        raise LayoutError(f"{len(roles)} roles need one dimension with as many parts between '|'")
    patterns = tuple(
        tuple(parts[number] if len(parts) > 1 else parts[0] for parts, _ in dimensions) for number in range(len(roles))
    )
    for axes in patterns:
        _require_once("pattern", [axis for composite in axes for axis in composite])
    if not concatenated:
        return roles, patterns, None, 0
    return roles, patterns, concatenated[0], dimensions[concatenated[0]].common


def _parse_dimensions(pattern: str) -> list[_Dimension]:
    """The dimensions of a pattern."""
    tokens, end = [], 0
    while match := _TOKEN.match(pattern, end):
        tokens.append(match[1])
        end = match.end()
    if pattern[end:].strip():
        raise LayoutError(f"cannot read {pattern[end:].strip()!r}")
    dimensions = []
    tokens.reverse()
    while tokens:
        match tokens.pop():
            case "(" if count := _stacked(tokens):
                dimensions.append(_Dimension(((),) * count))
            case "(":
                dimensions.append(_parse_composite(tokens))
            case ")":
                raise LayoutError("')' without axes before it")
            case "|":
                raise LayoutError("'|' between axes stands inside parentheses only")
            case "1":
                dimensions.append(_Dimension(((),)))
            case axis:
                dimensions.append(_Dimension(((_axis(axis),),)))
    return dimensions


def _stacked(tokens: list[str]) -> int:
    """How many roles `1 | 1)` stacks, taken off the tokens; 0 where what stands between parentheses is something else.

    Args:
        tokens: What is left of the pattern behind `(`, the next token last.
    """
    inside = list(itertools.takewhile(lambda token: token != ")", reversed(tokens)))
    count = inside.count(ONE)
    if count < 2 or inside != ([ONE, "|"] * count)[:-1] or len(inside) == len(tokens):
        return 0
    del tokens[-len(inside) - 1 :]
    return count


def _parse_composite(tokens: list[str]) -> _Dimension:
    """What stands between parentheses.

    Args:
        tokens: What is left of the pattern behind `(`, the next token last; taken off up to `)`.
    """
    parts: list[list[str]] = [[]]
    while tokens:
        match tokens.pop():
            case ")" if all(parts):
                return _Dimension(tuple(tuple(part) for part in parts))
            case ")":
                raise LayoutError("')' without axes before it")
            case "|":
                parts.append([])
            case "(":
                inner, outer = _parse_composite(tokens), tuple(parts[0])
                if not outer or len(parts) > 1 or len(inner.parts) < 2 or inner.common or tokens[-1:] != [")"]:
                    raise LayoutError("parentheses do not nest, but around what a composite axis ends in: (c (a | b))")
                tokens.pop()
                return _Dimension(tuple(outer + part for part in inner.parts), len(outer))
            case axis:
                parts[-1].append(_axis(axis))
    raise LayoutError("'(' without ')'")


def _axis(token: str) -> str:
    if token.isdecimal():
        raise LayoutError(f"{token} is no axis; there is '1', for a dimension of its own")
    return token


def _parse_operations(texts: Sequence[str]) -> tuple[Operations, tuple[str, int] | None]:
    """The operations on values, and the axis to pad with its size."""
    parsed, pad = Operations(), None
    for text in texts:
        match text.split():
            case ["scale", number] if _is_finite(number) and float(number) != 0:
                parsed = replace(parsed, scale=float(number))
            case ["offset", number] if _is_finite(number):
                parsed = replace(parsed, offset=float(number))
            case ["fill", number] if _is_finite(number):
                parsed = replace(parsed, scale=0.0, offset=float(number))
            case ["pad", axis, size] if size.isdecimal():
                pad = (axis, int(size))
            case ["as", dtype] if dtype in DTYPES:
                parsed = replace(parsed, dtype=DTYPES[dtype])
            case ["as", dtype]:
                raise LayoutError(f"unknown dtype {dtype!r}; 'as' knows {', '.join(DTYPES)}")
            case ["unrounded"]:
                parsed = replace(parsed, unrounded=True)
            case _:
                raise LayoutError(
                    f"cannot read the operation {text.strip()!r}; "
                    "there are 'scale X', 'offset X', 'fill X', 'pad AXIS SIZE', 'as DTYPE' and 'unrounded'"
                )
    names = [text.split()[0] for text in texts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise LayoutError(f"the operation {min(twice)!r} is given twice")
    if "fill" in names and {"scale", "offset"} & set(names):
        raise LayoutError("'fill' and 'scale' or 'offset' exclude each other: both say what the values are")
    if parsed.unrounded and parsed.dtype is not None:
        raise LayoutError("'as' and 'unrounded' exclude each other: both say which dtype is stored")
    return parsed, pad


def _padded(
    axis: str, size: int, patterns: Sequence[tuple[AxisNames, ...]], concatenated: int | None
) -> tuple[int, int]:
    """The dimension that is padded, and the size it is padded to."""
    if concatenated is not None or (axis,) not in patterns[0]:
        raise LayoutError(f"'pad {axis} {size}' needs a dimension that is {axis} alone, in an array of one role")
    return patterns[0].index((axis,)), size


def _require_once(where: str, axes: Sequence[str]) -> None:
    if twice := {axis for axis in axes if axes.count(axis) > 1}:
        raise LayoutError(f"axis {min(twice)!r} stands in the {where} twice")


def _is_finite(number: str) -> bool:
    try:
        return math.isfinite(float(number))
    except ValueError:
        return False
