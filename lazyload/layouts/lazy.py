"""Lazy tensors: arrays of a target layout, described as rearrangements of source tensors and read block by block.

Every dimension, of the source and of the target, is a row-major product of *atoms*: axes, or the parts of axes that
the two layouts tell apart. An atom is either *loose*: it stands in both arrays and is read as a range; or *fixed*: its
index is known, because the path of one of the two arrays gives it. So a block of the target becomes, for each
combination of its fixed atoms, one box of one source tensor, transposed. A slice that cuts through a product of atoms
is taken apart into boxes that do not.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lazyload.layouts.copying import copy_cast
from lazyload.layouts.notation import Operations
from lazyload.layouts.source import Box, TensorSource

Range = tuple[int, int]


@dataclass(frozen=True)
class Atom:
    """A part of a dimension that moves as one.

    Attributes:
        name: Unique among the atoms of its array.
        size: Its extent.
        fixed: Whether its index differs from piece to piece instead of being read as a range.
    """

    name: str
    size: int
    fixed: bool


@dataclass(frozen=True)
class Dimension:
    """A dimension: a row-major product of atoms, starting at an offset (concatenations, padding).

    Attributes:
        atoms: Outermost first.
        offset: Where the product starts in the stored dimension.
    """

    atoms: tuple[Atom, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        """The extent of the product."""
        return math.prod(atom.size for atom in self.atoms)


@dataclass(frozen=True)
class Piece:
    """One source tensor's contribution.

    Attributes:
        name: The source tensor.
        dimensions: Its dimensions.
        fixed: The indices of the fixed atoms among them, by name.
        operations: How the source stores the role's values.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, int]
    operations: Operations


@dataclass(frozen=True)
class Part:
    """What one role contributes to an array: a product of atoms a dimension, and the pieces that fill it.

    Attributes:
        dimensions: Of the target, in order.
        pieces: By the indices of the target's fixed atoms, in the order in which they stand.
    """

    dimensions: tuple[Dimension, ...]
    pieces: Mapping[tuple[int, ...], Piece]

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The atoms of all dimensions in order."""
        return tuple(atom for dimension in self.dimensions for atom in dimension.atoms)


@dataclass(frozen=True)
class LazyTensor:
    """An array that is read block by block.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        parts: What fills it; several where roles are concatenated. What no part covers is zero (padding).
        operations: How the role's values are stored in it.
        source: Where the tensors that it is made of are read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    parts: tuple[Part, ...]
    operations: Operations
    source: TensorSource

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def sources(self) -> tuple[str, ...]:
        """The source tensors that it reads, each once, in order."""
        return tuple(dict.fromkeys(piece.name for part in self.parts for piece in part.pieces.values()))

    @property
    def split_order(self) -> tuple[int, ...]:
        """The dimensions in the order in which cutting them leaves source reads contiguous.

        First those that tell source tensors apart, then those that lie outermost in the source.
        """
        part = max(self.parts, key=lambda part: math.prod(dimension.size for dimension in part.dimensions))
        piece = next(iter(part.pieces.values()), None)
        if piece is None:
            return tuple(range(len(self.shape)))
        places = {atom.name: place for place, atom in enumerate(a for d in piece.dimensions for a in d.atoms)}

        def depth(dimension: int) -> tuple[int, int]:
            atoms = part.dimensions[dimension].atoms
            first = next((atom for atom in atoms if atom.size > 1), None)
            return (0, dimension) if first is None or first.fixed else (1, places[first.name])

        return tuple(sorted(range(len(self.shape)), key=depth))

    def __getitem__(self, index: Box) -> np.ndarray:
        """Reads one block; one slice a dimension, step 1."""
        index = _normalised(index, self.shape)
        block = np.empty([cut.stop - cut.start for cut in index], self.dtype)
        self.read_into(block, index)
        return block

    def read_into(self, out: np.ndarray, index: Box) -> None:
        """Reads one block into `out`, whatever its strides; safe to call from several threads.

        Args:
            out: Of the block's shape and the tensor's dtype.
            index: One slice a dimension, step 1.
        """
        index = _normalised(index, self.shape)
        if self._padded:
            out[...] = 0
        for part in self.parts:
            starts = [dimension.offset for dimension in part.dimensions]
            ranges = [
                (max(cut.start - start, 0), min(cut.stop - start, dimension.size))
                for cut, start, dimension in zip(index, starts, part.dimensions, strict=True)
            ]
            if all(low < high for low, high in ranges):
                shifts = [start - cut.start for cut, start in zip(index, starts, strict=True)]
                window = [slice(low + s, high + s) for (low, high), s in zip(ranges, shifts, strict=True)]
                self._read_part(_view(out, window), part, ranges)

    @property
    def _padded(self) -> bool:
        covered = sum(math.prod(dimension.size for dimension in part.dimensions) for part in self.parts)
        return covered < math.prod(self.shape)

    def _read_part(self, out: np.ndarray, part: Part, ranges: list[Range]) -> None:
        """Fills `out` with the given ranges of a part's dimensions."""
        cuts = [_boxes(*limits, dimension.atoms) for limits, dimension in zip(ranges, part.dimensions, strict=True)]
        for combination in itertools.product(*cuts):
            window = [slice(cut.start, cut.stop) for cut in combination]
            atom_ranges = [atom_range for cut in combination for atom_range in cut.ranges]
            # Splitting a dimension never copies, so that writing to the view writes to `out`.
            view = _view(out, window).reshape([high - low for low, high in atom_ranges])
            self._read_box(view, part, atom_ranges)

    def _read_box(self, view: np.ndarray, part: Part, ranges: list[Range]) -> None:
        """Fills `view`, one dimension an atom, from every piece that the box meets."""
        atoms = part.atoms
        fixed = [number for number, atom in enumerate(atoms) if atom.fixed]
        loose = {atom.name: limits for atom, limits in zip(atoms, ranges, strict=True) if not atom.fixed}
        for indices in itertools.product(*(range(*ranges[number]) for number in fixed)):
            place: list[int | slice] = [slice(None)] * len(atoms)
            for number, index in zip(fixed, indices, strict=True):
                place[number] = index - ranges[number][0]
            self._read_piece(_view(view, place), part.pieces[indices], loose)

    def _read_piece(self, out: np.ndarray, piece: Piece, loose: Mapping[str, Range]) -> None:
        """Fills `out`, one dimension a loose atom in the target's order, from one source tensor."""
        index, shape, inner, names = [], [], [], []
        for dimension in piece.dimensions:
            limits = [
                (piece.fixed[atom.name], piece.fixed[atom.name] + 1) if atom.fixed else loose[atom.name]
                for atom in dimension.atoms
            ]
            widened = _widened(limits, dimension.atoms)
            start, stop = _flat(widened, dimension.atoms)
            index.append(slice(start + dimension.offset, stop + dimension.offset))
            shape += [high - low for low, high in widened]
            for atom, (low, high), (first, _) in zip(dimension.atoms, limits, widened, strict=True):
                inner.append(low - first if atom.fixed else slice(low - first, high - first))
                if not atom.fixed:
                    names.append(atom.name)
        box = self.source.read(piece.name, tuple(index)).reshape(shape)[tuple(inner)]
        stored, wanted = piece.operations, self.operations
        factors = (stored.scale, stored.offset, wanted.scale, wanted.offset)
        copy_cast(out, box.transpose([names.index(name) for name in loose]), factors)


def _view(array: np.ndarray, index: Sequence[int | slice]) -> np.ndarray:
    """A part of an array; also where nothing is left of its dimensions, which indexing alone would make a copy."""
    view: np.ndarray = array[(*index, ...)]
    return view


@dataclass(frozen=True)
class _Cut:
    """A stretch of a dimension in which every atom covers a range: where it lies in the slice, and the ranges."""

    start: int
    stop: int
    ranges: tuple[Range, ...]


def _boxes(low: int, high: int, atoms: tuple[Atom, ...]) -> list[_Cut]:
    """Takes `[low, high)` of a product of atoms apart into stretches in which each atom covers a range."""
    cuts: list[_Cut] = []
    start = 0
    for ranges in _ranges(low, high, [atom.size for atom in atoms]):
        stop = start + math.prod(top - bottom for bottom, top in ranges)
        cuts.append(_Cut(start, stop, ranges))
        start = stop
    return cuts


def _ranges(low: int, high: int, sizes: list[int]) -> Iterator[tuple[Range, ...]]:
    """The stretches of `_boxes`, in order: a ragged start, the whole rows, a ragged end, each taken apart in turn."""
    if low >= high:
        return
    if not sizes:
        yield ()
        return
    if len(sizes) == 1:
        yield ((low, high),)
        return
    inner = math.prod(sizes[1:])
    first, last = -(-low // inner), high // inner
    if first > last:
        row = low // inner
        for rest in _ranges(low - row * inner, high - row * inner, sizes[1:]):
            yield ((row, row + 1), *rest)
        return
    for rest in _ranges(low - (first - 1) * inner, inner, sizes[1:]) if low < first * inner else ():
        yield ((first - 1, first), *rest)
    if first < last:
        yield ((first, last), *((0, size) for size in sizes[1:]))
    for rest in _ranges(0, high - last * inner, sizes[1:]):
        yield ((last, last + 1), *rest)


def _widened(limits: list[Range], atoms: tuple[Atom, ...]) -> list[Range]:
    """The smallest ranges around `limits` that are one stretch of the product: single indices, a range, whole atoms."""
    single = next((number for number, (low, high) in enumerate(limits) if high - low != 1), len(limits))
    return [
        pair if number <= single else (0, atom.size)
        for number, (pair, atom) in enumerate(zip(limits, atoms, strict=True))
    ]


def _flat(ranges: list[Range], atoms: tuple[Atom, ...]) -> Range:
    """The stretch of the product that the ranges (as `_widened` gives them) cover."""
    start = stop = 0
    for (low, high), atom in zip(ranges, atoms, strict=True):
        start, stop = start * atom.size + low, stop * atom.size + high - 1
    return start, stop + 1


def _normalised(index: Box, shape: tuple[int, ...]) -> Box:
    """The slices with explicit bounds, checked."""
    if len(index) != len(shape):
        raise IndexError(f"{len(index)} slices for {len(shape)} dimensions")
    cuts = []
    for cut, size in zip(index, shape, strict=True):
        start, stop, step = cut.indices(size)
        if step != 1:
            raise IndexError(f"only step 1 is supported, not {step}")
        cuts.append(slice(start, max(start, stop)))
    return tuple(cuts)
