"""Arrays as patterns of sized axes: what a table's lines come to for one model.

In the worked example of this folder, `(head head_dim) embed` is an array of two dimensions, the first a composite axis
of 4 heads of 8; `embed layer head (pair half)` has four dimensions. A head's width is one axis in the first pattern and
two parts of it in the second: the index of `head_dim` is 4 times that of `half`, plus that of `pair`.

Where roles take turns in a dimension, as in `(kv_head (group | one))`, it counts as two here, `kv_head` and `(group |
one)`: so each role is a box of the array, which is stored with the two as one.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lazyload.layouts.notation import ONE, Operations


@dataclass(frozen=True)
class Axis:
    """An axis, or a part of one, as it stands in an array.

    Example:
        >>> half, pair = Axis("half", of="head_dim", size=2, stride=4), Axis("pair", of="head_dim", size=4, stride=1)

    Attributes:
        name: The word of the notation.
        of: The role's axis that it is, or is a part of.
        size: Its extent.
        stride: How far one step of it leads on that axis.
    """

    name: str
    of: str
    size: int
    stride: int


CompositeAxis = tuple[Axis, ...]
"""The axes that one dimension is made of, outermost first, row-major."""


def extent(axes: CompositeAxis) -> int:
    """The size of a composite axis."""
    return math.prod(axis.size for axis in axes)


@dataclass(frozen=True, eq=False)
class Pattern:
    """How a role lies in arrays that one line describes; they differ in the indices that their paths give.

    Attributes:
        role: The role.
        group: Which of the model's groups of layers with that role the arrays belong to.
        dimensions: The axes of each dimension.
        offsets: Where the role starts in each dimension; not 0 only where it follows other roles.
        sizes: The extent of each dimension, with the other roles and padding.
        joined: The dimension that is stored as one with the next, because roles take turns in them; None for none.
        indices: For each axis of the role, the indices that the table holds for, in order of position.
        operations: How values are stored.
    """

    role: str
    group: int
    dimensions: tuple[CompositeAxis, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    joined: int | None
    indices: Mapping[str, Sequence[int]]
    operations: Operations

    @functools.cached_property
    def stored(self) -> tuple[tuple[int, ...], ...]:
        """The dimensions of the arrays, each by the number of the one that it is here, or the numbers of the two."""
        numbers = range(len(self.dimensions))
        if self.joined is None:
            return tuple((number,) for number in numbers)
        first, second = self.joined, self.joined + 1
        return tuple((first, second) if number == first else (number,) for number in numbers if number != second)

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """The arrays' shape."""
        return tuple(math.prod(self.sizes[number] for number in numbers) for numbers in self.stored)

    @functools.cached_property
    def logical_axes(self) -> tuple[str, ...]:
        """The axis of each of the arrays' dimensions; the outermost of a composite one, `1` where it has none."""
        outermost = (self.dimensions[numbers[0]] for numbers in self.stored)
        return tuple(composite[0].of if composite else ONE for composite in outermost)

    @functools.cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of all dimensions in order."""
        return tuple(axis for composite in self.dimensions for axis in composite)

    @functools.cached_property
    def extents(self) -> tuple[int, ...]:
        """What the role takes of each dimension."""
        return tuple(extent(composite) for composite in self.dimensions)

    def parts(self, axis: str) -> tuple[Axis, ...]:
        """An axis by those parts of it that stand in the pattern, outermost first; empty if the path has them all."""
        return tuple(sorted((part for part in self.axes if part.of == axis), key=lambda part: -part.stride))

    def is_whole(self, axis: str) -> bool:
        """Whether the axis stands in the pattern with all indices that the table holds for."""
        parts = self.parts(axis)
        return bool(parts) and extent(parts) == len(self.indices[axis])

    def steps(self, axis: str) -> list[tuple[int, dict[str, int]]]:
        """All positions on an axis that one array holds, from its first, each with the indices of the axis's parts."""
        parts = self.parts(axis)
        return [
            (
                sum(index * part.stride for index, part in zip(indices, parts, strict=True)),
                {part.name: index for index, part in zip(indices, parts, strict=True)},
            )
            for indices in itertools.product(*(range(part.size) for part in parts))
        ]

    def rewritten(self, parts: Mapping[str, tuple[Axis, ...]]) -> "Pattern":
        """The same pattern, where some axes are written by their parts.

        Example:
            >>> half, pair = Axis("half", "head_dim", 2, 4), Axis("pair", "head_dim", 4, 1)
            >>> rows = (Axis("head", "head", 4, 1), Axis("head_dim", "head_dim", 8, 1))
            >>> columns = (Axis("embed", "embed", 16, 1),)
            >>> pattern = Pattern("attn.q", 0, (rows, columns), (0, 0), (32, 16), None, {}, Operations())
            >>> [axis.name for axis in pattern.rewritten({"head_dim": (half, pair)}).axes]
            ['head', 'half', 'pair', 'embed']
        """
        dimensions = tuple(
            tuple(
                part
                for axis in composite
                for part in (parts[axis.of] if axis.name == axis.of and axis.of in parts else (axis,))
            )
            for composite in self.dimensions
        )
        return replace(self, dimensions=dimensions)


@dataclass(frozen=True)
class Array:
    """One array of a layout.

    Attributes:
        path: Where it lies.
        patterns: How each of its roles lies in it.
        positions: On axes whose index the path gives, or a part of it: the position that this comes to.
    """

    path: str
    patterns: tuple[Pattern, ...]
    positions: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.patterns[0].shape

    @property
    def logical_axes(self) -> tuple[str, ...]:
        """The axis of each dimension; the outermost of a composite one, `1` where it has none."""
        return self.patterns[0].logical_axes
