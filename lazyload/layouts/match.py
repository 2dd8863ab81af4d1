"""Which source arrays fill a target array: the step from two unrolled layouts to the regions of lazy tensors.

In the worked example of this folder, `embed layer head (pair half)` is filled from `(head head_dim) embed`: `embed`,
`head` and `head_dim` stand whole in both patterns and are shared, `head_dim` by the parts that the target tells apart.
`layer` stands in the paths of the source and is walked: its index 1 leads to `model.layers.1.self_attn.q_proj.weight`.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lazyload.errors import LayoutError
from lazyload.layouts.lazy import Contribution, Region
from lazyload.layouts.pattern import Array, Axis, Pattern


class _Location(NamedTuple):
    """Where the source has some indices of a role's walked axes: in which array, and at which of its axes' indices."""

    array: Array
    pattern: Pattern
    indices: Mapping[str, int]


class StoredRole:
    """The source arrays that hold one role in one group of layers.

    Attributes:
        patterns: Their patterns.
        axes: The role's axes.
    """

    def __init__(self, arrays: Sequence[tuple[Array, Pattern]]):
        """Takes arrays, each with the role's pattern in it.

        Raises:
            LayoutError: They do not have the same axes.
        """
        self._arrays = arrays
        self._locations: dict[tuple[str, ...], dict[tuple[int, ...], _Location]] = {}
        examples = {pattern: array.path for array, pattern in reversed(arrays)}
        self.patterns = tuple(reversed(examples))
        self.axes = frozenset(self.patterns[0].indices)
        for pattern in self.patterns:
            if frozenset(pattern.indices) != self.axes:
                raise LayoutError(
                    f"role {pattern.role!r} has other axes at {examples[pattern]!r} than at {arrays[0][0].path!r}"
                )

    def shared(self, wanted: Pattern) -> dict[str, tuple[Axis, ...]]:
        """The axes that stand whole, with the same indices, in all patterns of both sides; by parts that all can tell.

        Args:
            wanted: The target's pattern.
        """
        shared = {}
        for axis, indices in wanted.indices.items():
            if all(pattern.is_whole(axis) and pattern.indices[axis] == indices for pattern in (wanted, *self.patterns)):
                written = {pattern.parts(axis) for pattern in (wanted, *self.patterns)}
                # An axis that stands undivided on one side can be written as the other side divides it.
                divided = {parts for parts in written if len(parts) > 1}
                if len(divided) <= 1:
                    shared[axis] = max(written, key=len)
        return shared

    def locations(self, axes: Sequence[str]) -> Mapping[tuple[int, ...], _Location]:
        """Where each combination of indices of the given axes is."""
        key = tuple(axes)
        if key not in self._locations:
            self._locations[key] = dict(self._walk(key))
        return self._locations[key]

    def _walk(self, axes: tuple[str, ...]) -> Iterator[tuple[tuple[int, ...], _Location]]:
        steps = {pattern: [pattern.steps(axis) for axis in axes] for pattern in self.patterns}
        for array, pattern in self._arrays:
            for indices, parts in _walk(array, pattern, axes, steps[pattern]):
                yield indices, _Location(array, pattern, parts)


def fill(pattern: Pattern, arrays: Sequence[Array], stored: StoredRole) -> list[Region]:
    """The regions of target arrays that one role fills.

    Args:
        pattern: How the role lies in these arrays.
        arrays: The arrays.
        stored: The role in the source.

    Raises:
        LayoutError: The source has other axes, or lacks some of the indices.
    """
    if frozenset(pattern.indices) != stored.axes:
        raise LayoutError(
            f"role {pattern.role!r} has axes {', '.join(sorted(stored.axes))} in the source, "
            f"but {', '.join(sorted(pattern.indices))} at {arrays[0].path!r}"
        )
    shared = stored.shared(pattern)
    axes = [axis for axis in pattern.indices if axis not in shared]
    locations = stored.locations(axes)
    written, patterns = pattern.rewritten(shared), {every: every.rewritten(shared) for every in stored.patterns}
    walked = tuple(axis.name for axis in written.axes if axis.of not in shared)
    steps = [pattern.steps(axis) for axis in axes]
    regions = []
    for array in arrays:
        contributions = {}
        for indices, parts in _walk(array, pattern, axes, steps):
            if indices not in locations:
                lacking = ", ".join(f"{axis} {index}" for axis, index in zip(axes, indices, strict=True))
                raise LayoutError(f"{array.path}: the source has no {pattern.role!r} for {lacking}")
            location = locations[indices]
            contribution = Contribution(location.array.path, patterns[location.pattern], location.indices)
            contributions[tuple(parts[name] for name in walked)] = contribution
        regions.append(Region(written, walked, contributions))
    return regions


def _walk(
    array: Array, pattern: Pattern, axes: Sequence[str], steps: Sequence[list[tuple[int, dict[str, int]]]]
) -> Iterator[tuple[tuple[int, ...], dict[str, int]]]:
    """The combinations of indices of some axes that an array holds, each with the indices of the axes' parts in it.

    Args:
        array: The array.
        pattern: Of the role.
        axes: The axes to walk.
        steps: For each of them, `pattern.steps(axis)`.
    """
    starts = [array.positions.get(axis, 0) for axis in axes]
    every = [pattern.indices[axis] for axis in axes]
    for combination in itertools.product(*steps):
        indices = tuple(
            here[start + position] for here, start, (position, _) in zip(every, starts, combination, strict=True)
        )
        yield indices, {name: index for _, parts in combination for name, index in parts.items()}
