"""A conversion: two layouts resolved against a checkpoint's tensors into one lazy tensor for each target path.

Both tables are unrolled into *placements*: one array each, with what is known of every axis: in the pattern, or fixed
by the path. A target array is then filled, role by role, from the source placements of the same role. An axis that
stands whole in both patterns stays loose; every other one is walked through index by index.
"""

import fnmatch
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lazyload.errors import LayoutError, TensorMismatchError
from lazyload.layouts.layout import Layout
from lazyload.layouts.lazy import Atom, Dimension, LazyTensor, Part, Piece
from lazyload.layouts.notation import Operations
from lazyload.layouts.placement import Axes, Digit, Placement, logical_axes, shape_of, unroll, walk
from lazyload.layouts.source import TensorSource

NOTATION_VERSION = 1
"""Raised whenever the same tables come to mean other bytes."""


@dataclass(frozen=True)
class Conversion:
    """Everything that a target layout asks for, as lazy tensors over a source.

    Attributes:
        tensors: By target path, in the order of the target's tables.
        axes: By target path, the logical axis of every dimension, for sharding.
        skipped: Source tensors that are knowingly not used.
    """

    tensors: Mapping[str, LazyTensor]
    axes: Mapping[str, tuple[str, ...]]
    skipped: tuple[str, ...] = ()


def digest(source: Layout, target: Layout, model: Axes) -> str:
    """Identifies how the source's tensors become the target's bytes, without looking at the tensors."""
    entries = [entry for layout in (source, target) for table in layout.tables for _, entry in table.parsed()]
    roles = sorted({role for entry in entries for role in entry.roles})
    description = {
        "notation": NOTATION_VERSION,
        "source": source.description(),
        "target": target.description(),
        "splits": {axis: list(parts) for axis, parts in model.splits.items()},
        "roles": {role: [[list(g.layers), dict(g.sizes)] for g in model.groups(role)] for role in roles},
    }
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def target_axes(target: Layout, model: Axes) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """The shape and the logical axes of every array of a layout, by path, without a source."""
    arrays = unroll(target, model)
    return {path: (shape_of(placements), logical_axes(placements)) for path, placements in arrays.items()}


def resolve(source: TensorSource, source_layout: Layout, target: Layout, model: Axes, dtype: np.dtype) -> Conversion:
    """Resolves the conversion of a checkpoint.

    Args:
        source: The checkpoint.
        source_layout: How its tensors are named and laid out.
        target: The layout wanted.
        model: The sizes of the axes.
        dtype: What floating-point tensors become, where the target does not name a dtype of its own.

    Raises:
        LayoutError: A table is malformed, or the layouts do not fit each other.
        TensorMismatchError: Tensors are missing, unexpected or of the wrong shape; all of them are listed.
    """
    stored = unroll(source_layout, model)
    names = {path: _stored_name(path, source, source_layout) for path in stored}
    problems = _shape_problems(source, stored, names)
    by_role: dict[tuple[str, int], list[Placement]] = {}
    for placements in stored.values():
        for placement in placements:
            by_role.setdefault((placement.role, placement.group), []).append(placement)
    holders = {role: _Holders(placements) for role, placements in by_role.items()}
    _require_roles(source_layout, target, model)
    wanted = unroll(target, model)
    parts = {
        path: [_part(p, holders.get((p.role, p.group)), names) for p in placements]
        for path, placements in wanted.items()
    }
    used = {piece.name for some in parts.values() for part in some for piece in part.pieces.values()}
    patterns = _patterns((*source_layout.skipped, *target.skipped), source)
    left = [name for name in source.tensors if name not in used]
    skipped = tuple(sorted(name for name in left if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)))
    unexpected = sorted(set(left) - set(skipped))
    problems += [f"{name}: in the checkpoint, but layout {target.name!r} has no use for it" for name in unexpected]
    if problems:
        raise TensorMismatchError(
            f"the checkpoint does not fit layout {source_layout.name!r}; check that config.json belongs to these "
            "files, and that they are complete",
            problems,
        )
    tensors = {}
    for path, placements in wanted.items():
        kinds = [source.tensors[piece.name].dtype for part in parts[path] for piece in part.pieces.values()]
        operations = placements[0].operations
        tensors[path] = LazyTensor(
            shape_of(placements), _dtype(path, operations, kinds, dtype), tuple(parts[path]), operations, source
        )
    axes = {path: logical_axes(placements) for path, placements in wanted.items()}
    return Conversion(tensors, axes, skipped)


def _require_roles(source: Layout, target: Layout, model: Axes) -> None:
    """Makes sure that the source has every role that the target wants of this model."""
    declared, wanted = (
        {role for table in layout.tables for _, entry in table.parsed() for role in entry.roles}
        for layout in (source, target)
    )
    there = {role for role in declared if model.groups(role)}
    missing = {role for role in wanted - there if model.groups(role) or not target.general}
    if missing:
        raise LayoutError(
            f"layout {target.name!r} wants {', '.join(sorted(missing))}, which layout {source.name!r} does "
            f"not have for this model; it has {', '.join(sorted(there))}"
        )


def _part(placement: Placement, holders: "_Holders | None", names: Mapping[str, str]) -> Part:
    """The pieces that fill one role of a target array."""
    if holders is None:
        raise LayoutError(f"{placement.path}: the source has no {placement.role!r} in these layers")
    if set(placement.indices) != holders.axes:
        raise LayoutError(
            f"role {placement.role!r} has axes {', '.join(sorted(holders.axes))} in the source, "
            f"but {', '.join(sorted(placement.indices))} at {placement.path!r}"
        )
    loose = {}
    for axis in placement.indices:
        digits = _common_digits(placement.digits_of(axis), holders.digits(axis))
        if digits and placement.whole(axis) and holders.whole(axis):
            loose[axis] = digits
    walked = [axis for axis in placement.indices if axis not in loose]
    dimensions = _dimensions(placement, loose)
    order = [atom.name for dimension in dimensions for atom in dimension.atoms if atom.fixed]
    seen: dict[int, tuple[Dimension, ...]] = {}
    pieces = {}
    for steps in itertools.product(*(list(walk(placement, axis)) for axis in walked)):
        indices = dict(zip(walked, (index for index, _ in steps), strict=True))
        values = {name: value for _, digits in steps for name, value in digits.items()}
        holder, fixed = holders.find(indices, placement)
        if id(holder) not in seen:
            seen[id(holder)] = _dimensions(holder, loose)
        piece = Piece(names[holder.path], seen[id(holder)], fixed, holder.operations)
        pieces[tuple(values[name] for name in order)] = piece
    return Part(dimensions, pieces)


def _dimensions(placement: Placement, loose: Mapping[str, tuple[Digit, ...]]) -> tuple[Dimension, ...]:
    """An array's dimensions as atoms: the digits of loose axes as both sides can tell them apart, the rest fixed."""
    dimensions = []
    for number, merged in enumerate(placement.dimensions):
        atoms: list[Atom] = []
        for digit in merged:
            if digit.axis not in loose:
                atoms.append(Atom(digit.name, digit.size, fixed=True))
                continue
            parts = loose[digit.axis] if digit.name == digit.axis else (digit,)
            atoms += [Atom(part.name, part.size, fixed=False) for part in parts]
        dimensions.append(Dimension(tuple(atoms), placement.offset if number == placement.concatenated else 0))
    return tuple(dimensions)


def _common_digits(ours: frozenset[Digit], theirs: frozenset[Digit] | None) -> tuple[Digit, ...]:
    """The digits of an axis that both sides can be written in, outermost first; none if there are no such."""
    if theirs is None or (len(ours) > 1 and len(theirs) > 1 and ours != theirs):
        return ()
    return tuple(sorted(theirs if len(theirs) > len(ours) else ours, key=lambda digit: -digit.stride))


class _Holders:
    """The source arrays that hold a role, and which of them holds which indices."""

    def __init__(self, placements: Sequence[Placement]):
        self._placements = placements
        self.axes = set(placements[0].indices)
        for placement in placements:
            if set(placement.indices) != self.axes:
                raise LayoutError(
                    f"role {placement.role!r} has other axes at {placement.path!r} than at {placements[0].path!r}"
                )
        self._whole = {axis: all(placement.whole(axis) for placement in placements) for axis in self.axes}
        self._found: dict[tuple[str, ...], dict[tuple[int, ...], tuple[Placement, dict[str, int]]]] = {}

    def whole(self, axis: str) -> bool:
        """Whether every one of the arrays has all of the axis."""
        return self._whole[axis]

    def digits(self, axis: str) -> frozenset[Digit] | None:
        """The digits in which all of the arrays write the axis; None if they differ."""
        return self._digits_of[axis]

    @functools.cached_property
    def _digits_of(self) -> dict[str, frozenset[Digit] | None]:
        digits = {axis: {placement.digits_of(axis) for placement in self._placements} for axis in self.axes}
        return {axis: next(iter(some)) if len(some) == 1 else None for axis, some in digits.items()}

    def find(self, indices: Mapping[str, int], wanted: Placement) -> tuple[Placement, dict[str, int]]:
        """The array that holds the indices, and the values of their axes' digits in it."""
        axes = tuple(indices)
        if axes not in self._found:
            self._found[axes] = dict(self._index(axes))
        found = self._found[axes].get(tuple(indices.values()))
        if found is None:
            place = ", ".join(f"{axis} {index}" for axis, index in indices.items())
            raise LayoutError(f"{wanted.path}: the source has no {wanted.role!r} for {place}")
        return found

    def _index(self, axes: tuple[str, ...]) -> Iterator[tuple[tuple[int, ...], tuple[Placement, dict[str, int]]]]:
        for placement in self._placements:
            for steps in itertools.product(*(list(walk(placement, axis)) for axis in axes)):
                values = {name: value for _, digits in steps for name, value in digits.items()}
                yield tuple(index for index, _ in steps), (placement, values)


def _patterns(skipped: Sequence[str], source: TensorSource) -> list[str]:
    """The patterns of skipped tensors that count for this checkpoint: `PATTERN`, or `PATTERN if TENSOR`."""
    conditions = [entry.partition(" if ") for entry in skipped]
    return [pattern for pattern, _, mark in conditions if not mark or mark in source.tensors]


def _stored_name(path: str, source: TensorSource, layout: Layout) -> str:
    """The path as it is written in this checkpoint, which may use another prefix."""
    candidates = [path, *(other + path[len(prefix) :] for prefix, other in layout.aliases if path.startswith(prefix))]
    return next((name for name in candidates if name in source.tensors), path)


def _shape_problems(source: TensorSource, stored: Mapping[str, list[Placement]], names: Mapping[str, str]) -> list[str]:
    """Tensors that are missing or of another shape than the layout says."""
    problems = []
    for path, placements in stored.items():
        info = source.tensors.get(names[path])
        shape = shape_of(placements)
        if info is None:
            problems.append(f"{path}: missing; expected an array of shape {list(shape)}")
        elif info.shape != shape:
            problems.append(f"{names[path]}: has shape {list(info.shape)}, expected {list(shape)}")
    return problems


def _dtype(path: str, operations: Operations, stored: Sequence[np.dtype], wanted: np.dtype) -> np.dtype:
    """The dtype of a target array: the one asked for where the source has floating-point numbers, else the source's."""
    if all(_is_floating(kind) for kind in stored):
        return np.dtype(operations.dtype) if operations.dtype else wanted
    if len(set(stored)) > 1 or operations.arithmetic:
        raise LayoutError(f"{path}: cannot combine {', '.join(sorted({str(kind) for kind in stored}))}")
    return stored[0]


def _is_floating(dtype: np.dtype) -> bool:
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True
