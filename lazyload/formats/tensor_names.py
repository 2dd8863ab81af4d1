"""Which tensor of one format holds what a parameter of another does, alone or among others, if nothing is computed."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lazyload.layouts.layout import Layout
from lazyload.layouts.notation import Line, PathAxis

LAYER = "*"
"""What stands in names for the layer's number."""


class _Part(NamedTuple):
    """What a tensor holds: a role, or of some of its axes one index.

    Attributes:
        role: The role.
        indices: The axes whose indices stand in the name, without the layer, and these.
        axes: All other axes, in whatever order.
    """

    role: str
    indices: frozenset[tuple[str, int]]
    axes: frozenset[str]


def tensor_names(layout: Layout, other: Layout) -> dict[str, str]:
    """For each array of a layout the tensor of another one that holds it, by name, `*` for the layer.

    Several arrays have the same name where one tensor holds them all. Where an array consists of several tensors, their
    number stands in the name by the axis that it counts, `experts.{expert}.up_proj`. Arrays that are held neither way,
    or in other values, are left out.

    Example:
        >>> own = Layout({"layers.{layer}.up.kernel": "mlp.up : embed mlp"})
        >>> hub = Layout({"model.layers.{layer}.mlp.up_proj.weight": "mlp.up : mlp embed"})
        >>> tensor_names(own, hub)
        {'layers.*.up.kernel': 'model.layers.*.mlp.up_proj.weight'}
        >>> both = Layout({"model.layers.{layer}.mlp.gate_up_proj": "mlp.gate | mlp.up : (mlp | mlp) embed"})
        >>> tensor_names(own, both)
        {'layers.*.up.kernel': 'model.layers.*.mlp.gate_up_proj'}
    """
    found = {part: name for name, part in _parts(other)}
    held = [(name, part) for table in other.tables for line in table.parsed for name, part in _held(line)]
    names = {name: found.get(part) or _holder(part, held) for name, part in _parts(layout)}
    return {name: holder for name, holder in names.items() if holder is not None}


def _holder(part: _Part, held: Sequence[tuple[str, _Part]]) -> str | None:
    """The tensor that holds an array among others, or the tensors that it consists of."""
    for name, other in held:
        inside = {axis for axis, _ in part.indices - other.indices}
        if other.role == part.role and other.indices <= part.indices and other.axes == part.axes | inside:
            return name
    return None


def _held(line: Line) -> Iterator[tuple[str, _Part]]:
    """Each single role that a line's tensors hold, and the name of these."""
    if line.operations.arithmetic or line.padded is not None:
        return
    counted = frozenset(axis.axis for axis in line.path_axes if not axis.names and axis.axis != "layer")
    for role, pattern in zip(line.roles, line.patterns, strict=True):
        axes = frozenset(axis for dimension in pattern for axis in dimension)
        for name, indices in _named(line):
            yield name, _Part(role, indices, axes | counted)


def _parts(layout: Layout) -> Iterator[tuple[str, _Part]]:
    for table in layout.tables:
        for line in table.parsed:
            if not line.operations.arithmetic and line.padded is None:
                yield from _parts_of(line)


def _parts_of(line: Line) -> Iterator[tuple[str, _Part]]:
    """Of each array that a line stands for, the name and what it holds; concatenations hold several roles as one."""
    if any(axis.axis != "layer" and not axis.names for axis in line.path_axes):
        return
    axes = frozenset(axis for pattern in line.patterns for dimension in pattern for axis in dimension)
    for name, indices in _named(line):
        yield name, _Part(" | ".join(line.roles), indices, axes)


def _named(line: Line) -> Iterator[tuple[str, frozenset[tuple[str, int]]]]:
    """The names that a line stands for, each with the indices that are written in it by names of their own."""
    named = [axis for axis in line.path_axes if axis.names]
    for choice in itertools.product(*(enumerate(axis.names) for axis in named)):
        chosen = {axis.axis: picked for axis, picked in zip(named, choice, strict=True)}
        pieces = (piece if isinstance(piece, str) else _written(piece, chosen) for piece in line.path)
        yield "".join(pieces), frozenset((axis, index) for axis, (index, _) in chosen.items())


def _written(axis: PathAxis, chosen: Mapping[str, tuple[int, str]]) -> str:
    """What stands in a name for an axis of its path."""
    if axis.axis in chosen:
        return chosen[axis.axis][1]
    return LAYER if axis.axis == "layer" else f"{{{axis.axis}}}"
