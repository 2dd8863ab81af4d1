"""Where the roles of a layout lie: its tables unrolled into one placement for every role of every array."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lazyload.errors import LayoutError
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.notation import Entry, Operations, PathTemplate, Place, Product


class Group(NamedTuple):
    """Layers that have a role in the same sizes.

    Attributes:
        layers: Their indices of the axis `layer`; none for a role that no layer has, such as the embedding.
        sizes: The size of every axis, in these layers.
    """

    layers: Sequence[int]
    sizes: Mapping[str, int]


class Axes(Protocol):
    """The roles that a model has, and the sizes of their axes."""

    @property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        """Axes that may also be written by their parts, outermost first."""

    def groups(self, role: str) -> Sequence[Group]:
        """The layers that have the role, those of the same sizes together; empty where the model has no such role."""


@dataclass(frozen=True)
class Digit:
    """An axis, or a part of one, as a table sees it: the axis's position is the sum of index times stride.

    Attributes:
        name: The word of the notation.
        axis: The axis that it is, or is a part of.
        size: Its extent.
        stride: What one step means in positions of the axis.
    """

    name: str
    axis: str
    size: int
    stride: int


@dataclass(frozen=True)
class Placement:
    """One role in one array: how the role's axes lie in its dimensions, and which of them the path fixes.

    Attributes:
        path: The array.
        role: The role.
        group: Which of the model's groups of layers with that role it belongs to.
        dimensions: For each dimension the digits that it merges, outermost first.
        indices: For each axis of the role, the indices that the table holds for, in order of position.
        fixed: The positions, on each axis, that the path amounts to.
        operations: How values are stored.
        concatenated: The dimension along which several roles share the array; None where it holds this role alone.
        offset: Where the role starts in that dimension.
        padded: The dimensions that are padded, and the sizes they are padded to.
    """

    path: str
    role: str
    group: int
    dimensions: tuple[tuple[Digit, ...], ...]
    indices: Mapping[str, Sequence[int]]
    fixed: Mapping[str, int]
    operations: Operations
    concatenated: int | None = None
    offset: int = 0
    padded: Mapping[int, int] = field(default_factory=dict)

    def digits_of(self, axis: str) -> frozenset[Digit]:
        """The digits of an axis that stand in the pattern."""
        return frozenset(digit for dimension in self.dimensions for digit in dimension if digit.axis == axis)

    def whole(self, axis: str) -> bool:
        """Whether the whole of the axis stands in the pattern."""
        count = len(self.indices[axis])
        extent = math.prod(digit.size for digit in self.digits_of(axis))
        return bool(self.digits_of(axis)) and extent == count and self.indices[axis] == range(count)

    def extents(self) -> list[int]:
        """The extent of each dimension, without padding and the other roles."""
        return [math.prod(digit.size for digit in dimension) for dimension in self.dimensions]


def unroll(layout: Layout, model: Axes) -> dict[str, list[Placement]]:
    """All arrays of a layout: by path, the placement of each role that the array holds.

    Raises:
        LayoutError: A table is malformed, speaks of unknown axes, or leads to one path twice.
    """
    arrays: dict[str, list[Placement]] = {}
    for table in layout.tables:
        for template, entry in table.parsed():
            for number, groups in enumerate(_groups(entry, model)):
                for placements in _unrolled(table, template, entry, number, groups, model.splits):
                    path = placements[0].path
                    if path in arrays:
                        raise LayoutError(f"layout {layout.name!r}: two entries lead to {path!r}")
                    arrays[path] = placements
    return arrays


def walk(placement: Placement, axis: str) -> Iterator[tuple[int, dict[str, int]]]:
    """The indices of an axis that lie in an array, each with the values of the axis's digits in the pattern."""
    digits = sorted(placement.digits_of(axis), key=lambda digit: -digit.stride)
    for values in itertools.product(*(range(digit.size) for digit in digits)):
        position = placement.fixed[axis] + sum(v * digit.stride for v, digit in zip(values, digits, strict=True))
        yield placement.indices[axis][position], {d.name: v for d, v in zip(digits, values, strict=True)}


def shape_of(placements: Sequence[Placement]) -> tuple[int, ...]:
    """The shape of the array that holds these roles.

    Raises:
        LayoutError: A dimension is to be padded to less than it has.
    """
    first = placements[0]
    shape = first.extents()
    if first.concatenated is not None:
        shape[first.concatenated] = sum(placement.extents()[first.concatenated] for placement in placements)
    for dimension, size in first.padded.items():
        if size < shape[dimension]:
            raise LayoutError(
                f"{first.path}: {shape[dimension]} cannot be padded to {size}; ask for at least that many"
            )
        shape[dimension] = size
    return tuple(shape)


def logical_axes(placements: Sequence[Placement]) -> tuple[str, ...]:
    """The axis of each dimension; the outermost where it merges several."""
    return tuple(dimension[0].axis for dimension in placements[0].dimensions)


def _groups(entry: Entry, model: Axes) -> list[tuple[Group, ...]]:
    """For each group of layers that have all of an entry's roles, that group of each role."""
    groups = [model.groups(role) for role in entry.roles]
    if not all(groups):
        return []
    for role, others in zip(entry.roles, groups, strict=True):
        if [list(group.layers) for group in others] != [list(group.layers) for group in groups[0]]:
            raise LayoutError(f"roles {entry.roles[0]!r} and {role!r} share an array, but exist at other layers")
    return list(zip(*groups, strict=True))


def _unrolled(
    table: Table,
    template: PathTemplate,
    entry: Entry,
    number: int,
    groups: Sequence[Group],
    splits: Mapping[str, tuple[str, ...]],
) -> Iterator[list[Placement]]:
    """The arrays of one entry: one for each combination of the indices in its path."""
    readings = [
        _Reading(table, template.places, pattern, role, group, splits)
        for role, pattern, group in zip(entry.roles, entry.patterns, groups, strict=True)
    ]
    places = [(place, readings[0].digit(place.axis)) for place in template.places]
    padded = _padded(entry)
    if not all(indices for reading in readings for indices in reading.indices.values()):
        return
    for values in itertools.product(*(range(digit.size) for _, digit in places)):
        words = {place: readings[0].written(place, value) for (place, _), value in zip(places, values, strict=True)}
        path = "".join(piece if isinstance(piece, str) else words[piece] for piece in template.pieces)
        placements: list[Placement] = []
        offset = 0
        for role, reading in zip(entry.roles, readings, strict=True):
            fixed = dict.fromkeys(reading.indices, 0)
            for (_, digit), value in zip(places, values, strict=True):
                fixed[digit.axis] += value * digit.stride
            placement = Placement(
                path,
                role,
                number,
                reading.dimensions,
                reading.indices,
                fixed,
                entry.operations,
                entry.concatenated,
                offset,
                padded,
            )
            placements.append(placement)
            if entry.concatenated is not None:
                offset += placement.extents()[entry.concatenated]
        yield placements


class _Reading:
    """How an entry of a table reads the axes of a role: which indices there are, and by which digits they are written.

    Attributes:
        indices: For each axis, the indices that the table holds for.
        dimensions: The pattern, in digits.
    """

    def __init__(
        self,
        table: Table,
        places: Sequence[Place],
        pattern: Sequence[Product],
        role: str,
        group: Group,
        splits: Mapping[str, tuple[str, ...]],
    ):
        self._where = f"role {role!r}"
        named = {place.axis: len(place.names) for place in places if place.names}
        sizes = {**named, **group.sizes, **table.sizes}
        splits = {**splits, **table.split}
        words = [*(place.axis for place in places), *(word for product in pattern for word in product)]
        owner = {part: axis for axis, parts in splits.items() for part in parts}
        self.indices: dict[str, Sequence[int]] = {}
        self._digits: dict[str, Digit] = {}
        for axis in dict.fromkeys(owner.get(word, word) for word in words):
            self.indices[axis] = self._range(axis, table, group, sizes)
            parts = [part for part in splits.get(axis, ()) if part in words]
            if parts and (axis in words or len(parts) < len(splits[axis])):
                raise LayoutError(f"{self._where}: write {axis} alone or all of ({' '.join(splits[axis])})")
            self._add_digits(axis, parts or [axis], sizes)
        for place in places:
            if place.names and len(place.names) != self._digits[place.axis].size:
                raise LayoutError(f"{self._where}: {len(place.names)} names for {place.axis}, see {list(place.names)}")
        self.dimensions = tuple(tuple(self._digits[word] for word in product) for product in pattern)

    def _range(self, axis: str, table: Table, group: Group, sizes: Mapping[str, int]) -> Sequence[int]:
        if axis not in sizes:
            raise LayoutError(f"{self._where}: unknown axis {axis!r}; axes known: {', '.join(sorted(sizes))}")
        indices = list(table.only.get(axis, range(sizes[axis])))
        if any(not 0 <= index < sizes[axis] for index in indices):
            raise LayoutError(f"{self._where}: a table for {axis} {indices}, but there are {sizes[axis]}")
        if axis == "layer":
            layers = set(group.layers)
            indices = [index for index in indices if index in layers]
        return range(len(indices)) if indices == list(range(len(indices))) else tuple(indices)

    def _add_digits(self, axis: str, parts: Sequence[str], sizes: Mapping[str, int]) -> None:
        stride, count = 1, len(self.indices[axis])
        for part in reversed(parts[1:]):
            if part not in sizes:
                raise LayoutError(f"{self._where}: the size of {part!r}, a part of {axis!r}, is not given")
            self._digits[part] = Digit(part, axis, sizes[part], stride)
            stride *= sizes[part]
        if count % stride:
            raise LayoutError(f"{self._where}: {count} indices of {axis} are not a multiple of {stride}")
        self._digits[parts[0]] = Digit(parts[0], axis, count // stride, stride)

    def digit(self, word: str) -> Digit:
        """What a word of the notation stands for."""
        return self._digits[word]

    def written(self, place: Place, value: int) -> str:
        """How a path writes an index."""
        digit = self._digits[place.axis]
        if place.names:
            return place.names[value]
        if place.relative or digit.name != digit.axis:
            return str(value)
        return str(self.indices[digit.axis][value])


def _padded(entry: Entry) -> dict[int, int]:
    """The dimension that is padded, and the size it is padded to."""
    if entry.operations.pad is None:
        return {}
    axis, size = entry.operations.pad
    dimensions = [number for number, product in enumerate(entry.patterns[0]) if product == (axis,)]
    if len(dimensions) != 1 or entry.concatenated is not None:
        raise LayoutError(f"'pad {axis} {size}' needs a dimension that is {axis} alone, in an array of one role")
    return {dimensions[0]: size}
