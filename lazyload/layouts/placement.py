"""Where the roles of a layout lie: its tables unrolled into one placement for every role of every array."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lazyload.errors import LayoutError
from lazyload.layouts.layout import Layout, Table
from lazyload.layouts.notation import Entry, Operations, PathTemplate, Place, Product


class Axes(Protocol):
    """The sizes that a model gives to the axes of its layouts."""

    @property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis."""

    @property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        """Axes that may also be written by their parts, outermost first."""

    def layers_of(self, role: str) -> Sequence[int]:
        """The indices of the axis `layer` at which the role exists."""


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
            for placements in _unrolled(table, template, entry, model):
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


def _unrolled(table: Table, template: PathTemplate, entry: Entry, model: Axes) -> Iterator[list[Placement]]:
    """The arrays of one entry: one for each combination of the indices in its path."""
    readings = [
        _Reading(table, template.places, pattern, role, model)
        for role, pattern in zip(entry.roles, entry.patterns, strict=True)
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

    def __init__(self, table: Table, places: Sequence[Place], pattern: Sequence[Product], role: str, model: Axes):
        self._where = f"role {role!r}"
        named = {place.axis: len(place.names) for place in places if place.names}
        sizes = {**named, **model.axes, **table.sizes}
        splits = {**model.splits, **table.split}
        words = [*(place.axis for place in places), *(word for product in pattern for word in product)]
        owner = {part: axis for axis, parts in splits.items() for part in parts}
        self.indices: dict[str, Sequence[int]] = {}
        self._digits: dict[str, Digit] = {}
        for axis in dict.fromkeys(owner.get(word, word) for word in words):
            self.indices[axis] = self._range(axis, table, role, model, sizes)
            parts = [part for part in splits.get(axis, ()) if part in words]
            if parts and (axis in words or len(parts) < len(splits[axis])):
                raise LayoutError(f"{self._where}: write {axis} alone or all of ({' '.join(splits[axis])})")
            self._add_digits(axis, parts or [axis], sizes)
        for place in places:
            if place.names and len(place.names) != self._digits[place.axis].size:
                raise LayoutError(f"{self._where}: {len(place.names)} names for {place.axis}, see {list(place.names)}")
        self.dimensions = tuple(tuple(self._digits[word] for word in product) for product in pattern)

    def _range(self, axis: str, table: Table, role: str, model: Axes, sizes: Mapping[str, int]) -> Sequence[int]:
        if axis not in sizes:
            raise LayoutError(f"{self._where}: unknown axis {axis!r}; axes known: {', '.join(sorted(sizes))}")
        indices = list(table.only.get(axis, range(sizes[axis])))
        if any(not 0 <= index < sizes[axis] for index in indices):
            raise LayoutError(f"{self._where}: a table for {axis} {indices}, but there are {sizes[axis]}")
        if axis == "layer":
            layers = set(model.layers_of(role))
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
