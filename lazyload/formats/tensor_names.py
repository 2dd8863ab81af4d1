"""Which tensor of one format holds what a parameter of another does, where it is one tensor and nothing is computed."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from lazyload.layouts.layout import Layout
from lazyload.layouts.notation import Line

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
    """For each array of a layout the tensor of another one that holds the same, by name, `*` for the layer.

    Arrays that correspond to no single tensor, or to one whose values are others, are left out.

    Example:
        >>> own = Layout({"layers.{layer}.up.kernel": "mlp.up : embed mlp"})
        >>> hub = Layout({"model.layers.{layer}.mlp.up_proj.weight": "mlp.up : mlp embed"})
        >>> tensor_names(own, hub)
        {'layers.*.up.kernel': 'model.layers.*.mlp.up_proj.weight'}
    """
    found = {part: name for name, part in _parts(other)}
    return {name: found[part] for name, part in _parts(layout) if part in found}


def _parts(layout: Layout) -> Iterator[tuple[str, _Part]]:
    for table in layout.tables:
        for line in table.parsed:
            if not line.operations.arithmetic and line.padded is None:
                yield from _parts_of(line)


def _parts_of(line: Line) -> Iterator[tuple[str, _Part]]:
    """Of each array that a line stands for, the name and what it holds; concatenations hold several roles as one."""
    named = [axis for axis in line.path_axes if axis.names]
    if any(axis.axis != "layer" and not axis.names for axis in line.path_axes):
        return
    axes = frozenset(axis for pattern in line.patterns for dimension in pattern for axis in dimension)
    for choice in itertools.product(*(enumerate(axis.names) for axis in named)):
        chosen = {axis.axis: picked for axis, picked in zip(named, choice, strict=True)}
        pieces = (p if isinstance(p, str) else LAYER if p.axis not in chosen else chosen[p.axis][1] for p in line.path)
        indices = frozenset((axis, index) for axis, (index, _) in chosen.items())
        yield "".join(pieces), _Part(" | ".join(line.roles), indices, axes)
