"""A layout's tables unrolled for one model: every array that they describe.

Example:
    The worked example of this folder, a model of 2 layers with 4 heads of 8:

    >>> from types import SimpleNamespace
    >>> from lazyload.layouts.axes import Group
    >>> sizes = {"layer": 2, "head": 4, "head_dim": 8, "half": 2, "pair": 4, "embed": 16}
    >>> model = SimpleNamespace(splits={"head_dim": ("half", "pair")}, groups=lambda role: [Group(range(2), sizes)])
    >>> hub = Layout({"model.layers.{layer}.self_attn.q_proj.weight": "attn.q : (head head_dim) embed"})
    >>> for array in unroll(hub, model).values():
    ...     print(array.path, array.shape, array.positions)
    model.layers.0.self_attn.q_proj.weight (32, 16) {'layer': 0}
    model.layers.1.self_attn.q_proj.weight (32, 16) {'layer': 1}
    >>> scanned = Layout({"decoder.layers.self_attention.query.kernel": "attn.q : embed layer head (pair half)"})
    >>> [(array.shape, array.logical_axes) for array in unroll(scanned, model).values()]
    [((16, 2, 4, 8), ('embed', 'layer', 'head', 'head_dim'))]
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from lazyload.errors import LayoutError
from lazyload.layouts.axes import Axes, Group
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.notation import Line, PathAxis
from lazyload.layouts.pattern import Array, Axis, CompositeAxis, Pattern, extent

LAYER = "layer"
"""The axis whose indices a model's groups speak of."""

_PATH = re.compile(r"[^./\\\0]+(?:\.[^./\\\0]+)*")
"""A dotted path, none of whose names can lead elsewhere where it becomes a folder."""


def unroll(layout: Layout, model: Axes) -> dict[str, Array]:
    """All arrays of a layout by path, in the order of its lines.

    Raises:
        LayoutError: A line does not fit the model, two lead to one path, or an array would hold layers of different
            sizes.
    """
    arrays: dict[str, Array] = {}
    for table in layout.tables:
        for line in table.parsed:
            for array in _arrays(table, line, model):
                if array.path in arrays:
                    raise LayoutError(f"layout {layout.name!r}: two lines lead to {array.path!r}")
                arrays[array.path] = array
    return arrays


def unroll_tree(layout: Layout, model: Axes) -> dict[str, Array]:
    """All arrays of a layout whose dotted paths are to become a tree.

    Raises:
        LayoutError: As for `unroll`, or the path of one array is a folder of another's, or is no path.
    """
    arrays = unroll(layout, model)
    inside: dict[str, str] = {}
    for path in arrays:
        if _PATH.fullmatch(path) is None:
            raise LayoutError(f"layout {layout.name!r}: {path!r} is no path: give names with single dots between them")
        folder = path.rpartition(".")[0]
        while folder and folder not in inside:
            inside[folder] = path
            folder = folder.rpartition(".")[0]
    for folder in arrays.keys() & inside.keys():
        raise LayoutError(
            f"layout {layout.name!r}: {folder!r} and {inside[folder]!r} cannot both be arrays of one tree; rename one"
        )
    return arrays


class _Words(NamedTuple):
    """What a line's words mean for one of its roles.

    Attributes:
        axes: By word, of the path and of the pattern.
        indices: For each axis of the role, the indices that the table holds for, in order of position.
    """

    axes: Mapping[str, Axis]
    indices: Mapping[str, Sequence[int]]


class _RoleInGroup(NamedTuple):
    """A role in layers that have it in the same sizes.

    Attributes:
        number: Which of the model's groups with the role it is.
        group: The group.
        layers: Those of its layers that the table holds for.
    """

    number: int
    group: Group
    layers: Sequence[int]


def _arrays(table: Table, line: Line, model: Axes) -> Iterator[Array]:
    """The arrays of one line: for each group of layers, one for each combination of the indices in its path."""
    try:
        groups = _groups(table, line, model)
        layers = sorted(layer for of_roles in groups for layer in of_roles[0].group.layers)
        splits = {**model.splits, **table.split}
        held = [frozenset(of_roles[0].group.layers) for of_roles in groups]
        for of_roles, own in zip(groups, held, strict=True):
            words = [
                _words(table, line, role, every.group.sizes, layers, splits) for role, every in enumerate(of_roles)
            ]
            patterns = _patterns(line, [every.number for every in of_roles], words)
            if all(some for every in words for some in every.indices.values()):
                for array in _arrays_at(line, words[0], patterns):
                    if len(groups) == 1 or _is_of_group(array, own, [every[0].group for every in groups]):
                        yield array
    except LayoutError as error:
        raise LayoutError(f"line {line.template!r}: {error}") from None


def _groups(table: Table, line: Line, model: Axes) -> list[tuple[_RoleInGroup, ...]]:
    """For each group of layers with a line's roles, that group of each role; none if the model has no such role."""
    groups = [_held(table, model.groups(role)) for role in line.roles]
    if not any(groups):
        return []
    for role, others in zip(line.roles, groups, strict=True):
        if [every.layers for every in others] != [every.layers for every in groups[0]]:
            raise LayoutError(
                f"{line.roles[0]!r} and {role!r} share an array, but not all layers with one have the other"
            )
    return list(zip(*groups, strict=True))


def _held(table: Table, groups: Sequence[Group]) -> list[_RoleInGroup]:
    """The groups of which a table holds for some layers, or that are of no layer."""
    only = table.only.get(LAYER)
    found = []
    for number, group in enumerate(groups):
        layers = [layer for layer in group.layers if only is None or layer in only]
        if layers or not group.layers:
            found.append(_RoleInGroup(number, group, layers))
    return found


def _words(
    table: Table,
    line: Line,
    role: int,
    sizes: Mapping[str, int],
    layers: Sequence[int],
    splits: Mapping[str, tuple[str, ...]],
) -> _Words:
    """What the words of the path and of one role's pattern mean in layers of the given sizes."""
    named = {path_axis.axis: len(path_axis.names) for path_axis in line.path_axes if path_axis.names}
    sizes = {**named, **sizes, **table.sizes}
    words = [*(path_axis.axis for path_axis in line.path_axes), *itertools.chain(*line.patterns[role])]
    owner = {part: axis for axis, parts in splits.items() for part in parts}
    axes: dict[str, Axis] = {}
    indices = {}
    for axis in dict.fromkeys(owner.get(word, word) for word in words):
        indices[axis] = _indices(axis, table, sizes, layers)
        parts = [part for part in splits.get(axis, ()) if part in words]
        if parts and (axis in words or len(parts) < len(splits[axis])):
            raise LayoutError(f"write {axis} alone or all of ({' '.join(splits[axis])})")
        axes |= _strided(axis, parts or [axis], len(indices[axis]), sizes)
    for path_axis in line.path_axes:
        if path_axis.names and len(path_axis.names) != axes[path_axis.axis].size:
            size = axes[path_axis.axis].size
            raise LayoutError(
                f"{len(path_axis.names)} names for {path_axis.axis} of size {size}: {', '.join(path_axis.names)}"
            )
    return _Words(axes, indices)


def _indices(axis: str, table: Table, sizes: Mapping[str, int], layers: Sequence[int]) -> Sequence[int]:
    """The indices of an axis that a table holds for."""
    if axis not in sizes:
        raise LayoutError(f"unknown axis {axis!r}; axes known: {', '.join(sorted(sizes))}")
    # An axis may be long, and only layers and what a table names are looked at one by one.
    if axis != LAYER and axis not in table.only:
        return range(sizes[axis])
    indices = list(table.only.get(axis, range(sizes[axis])))
    if any(not 0 <= index < sizes[axis] for index in indices):
        raise LayoutError(f"a table for {axis} {indices}, but there are {sizes[axis]}")
    if axis == LAYER:
        present = set(layers)
        indices = [index for index in indices if index in present]
    return range(len(indices)) if indices == list(range(len(indices))) else tuple(indices)


def _strided(axis: str, parts: Sequence[str], count: int, sizes: Mapping[str, int]) -> dict[str, Axis]:
    """The parts of an axis of `count` positions by name; the size of the outermost follows from the others'."""
    axes, stride = {}, 1
    for part in reversed(parts[1:]):
        if part not in sizes:
            raise LayoutError(f"the size of {part!r}, a part of {axis!r}, is not given")
        axes[part] = Axis(part, axis, sizes[part], stride)
        stride *= sizes[part]
    if count % stride:
        raise LayoutError(f"{count} indices of {axis} are not a multiple of {stride}")
    axes[parts[0]] = Axis(parts[0], axis, count // stride, stride)
    return axes


def _patterns(line: Line, groups: Sequence[int], words: Sequence[_Words]) -> tuple[Pattern, ...]:
    """The patterns of a line's roles, each of one of its groups, one beside the other."""
    concatenated, joined = line.concatenated, None
    dimensions = [
        tuple(tuple(axes[name] for name in names) for names in pattern)
        for (axes, _), pattern in zip(words, line.patterns, strict=True)
    ]
    if concatenated is not None and line.turns:
        dimensions = [_with_turns(composites, concatenated, line.turns) for composites in dimensions]
        concatenated, joined = concatenated + 1, concatenated
    extents = [[extent(composite) for composite in composites] for composites in dimensions]
    offsets = [[0] * len(extents[0]) for _ in extents]
    sizes = extents[0].copy()
    if concatenated is not None:
        *starts, sizes[concatenated] = itertools.accumulate((every[concatenated] for every in extents), initial=0)
        for role, start in zip(offsets, starts, strict=True):
            role[concatenated] = start
        _require_alike(line, extents, concatenated)
    if line.padded:
        dimension, size = line.padded
        if size < sizes[dimension]:
            raise LayoutError(f"{sizes[dimension]} cannot be padded to {size}; ask for at least that many")
        sizes[dimension] = size
    return tuple(
        Pattern(role, group, composites, tuple(offset), tuple(sizes), joined, every.indices, line.operations)
        for role, group, composites, offset, every in zip(line.roles, groups, dimensions, offsets, words, strict=True)
    )


def _require_alike(line: Line, extents: Sequence[Sequence[int]], concatenated: int) -> None:
    """Makes sure that roles in one array have the same sizes but where they follow each other."""
    for role, sizes in zip(line.roles, extents, strict=True):
        for number, (size, first) in enumerate(zip(sizes, extents[0], strict=True)):
            if number != concatenated and size != first:
                raise LayoutError(
                    f"{line.roles[0]!r} and {role!r} share an array, but are {first} and {size} long in dimension "
                    f"{number}"
                )


def _with_turns(composites: tuple[CompositeAxis, ...], dimension: int, turns: int) -> tuple[CompositeAxis, ...]:
    """The axes at whose indices roles take turns, as a dimension of their own before the one that they share."""
    together = composites[dimension]
    return (*composites[:dimension], together[:turns], together[turns:], *composites[dimension + 1 :])


def _arrays_at(line: Line, words: _Words, patterns: tuple[Pattern, ...]) -> Iterator[Array]:
    """An array for each combination of the indices in the path."""
    # Text in a path has no braces.
    template = "".join(piece if isinstance(piece, str) else "{}" for piece in line.path)
    axes = [words.axes[path_axis.axis] for path_axis in line.path_axes]
    written = [
        [_written(path_axis, number, words) for number in range(axis.size)]
        for path_axis, axis in zip(line.path_axes, axes, strict=True)
    ]
    names = itertools.product(*written)
    for numbers, chosen in zip(itertools.product(*(range(axis.size) for axis in axes)), names, strict=True):
        positions: dict[str, int] = {}
        for axis, number in zip(axes, numbers, strict=True):
            positions[axis.of] = positions.get(axis.of, 0) + number * axis.stride
        yield Array(template.format(*chosen), patterns, positions)


def _written(path_axis: PathAxis, number: int, words: _Words) -> str:
    """How a path writes an index."""
    axis = words.axes[path_axis.axis]
    if path_axis.names:
        return path_axis.names[number]
    if path_axis.relative or axis.name != axis.of:
        return str(number)
    return str(words.indices[axis.of][number])


def _is_of_group(array: Array, layers: AbstractSet[int], groups: Sequence[Group]) -> bool:
    """Whether the layers of an array are those of its group; an error if they are those of several."""
    pattern = array.patterns[0]
    start, every = array.positions.get(LAYER, 0), pattern.indices.get(LAYER)
    held = {every[start + step] for step, _ in pattern.steps(LAYER)} if every else None
    if held is None or (held & layers and held - layers):
        sizes = _differing_sizes(groups)
        raise LayoutError(
            f"{array.path!r} cannot hold layers of different sizes ({sizes}) of {pattern.role!r}; write {{layer}} in "
            "the path, or give each kind of layers a table of their own: only={'layer': ...}"
        )
    return bool(held & layers)


def _differing_sizes(groups: Sequence[Group]) -> str:
    """The axes whose sizes tell groups of layers apart: `head_dim 8 in layers 0, 2; head_dim 16 in layers 1, 3`."""
    differing = [axis for axis in groups[0].sizes if len({group.sizes.get(axis) for group in groups}) > 1]
    return "; ".join(
        f"{', '.join(f'{axis} {group.sizes.get(axis)}' for axis in differing)} in layers "
        f"{', '.join(map(str, group.layers))}"
        for group in groups
    )
