"""Lazy tensors: arrays of a target layout, described as rearrangements of source tensors and read block by block.

An axis that stands in the patterns of both sides is *shared*, and read in ranges. Every other one is *walked*, index by
index: the path of one of the two arrays gives its index. So a block of the target becomes, for each combination of its
walked indices, one box of one source tensor, transposed. A slice that cuts through a composite axis is taken apart into
boxes that do not.

In the worked example of this folder, `embed layer head (pair half)` filled from `(head head_dim) embed`, `layer` is
walked: each of its indices is another source tensor. The others are shared, `head_dim` as `half` and `pair`. The block
`[0:16, 1:2, 2:3, 0:8]`, head 2 of layer 1, reads rows 16 to 24 of the layer's tensor: of 4-byte numbers in 16 columns,
the bytes 1024 to 1536.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lazyload.layouts.boxes import Range, boxes_of, extents_of, normalised, ranges_of, stretch, widened
from lazyload.layouts.copying import copy_cast
from lazyload.layouts.pattern import Pattern
from lazyload.layouts.source import Box, TensorSource

_PIECE_SIZE = 1 << 20
"""How many values are read of a source tensor before they are copied: few enough to be in a core's cache still."""


@dataclass(frozen=True)
class Contribution:
    """What one source tensor contributes.

    Attributes:
        tensor: Its name.
        pattern: How the role lies in it, shared axes written as in the target's pattern.
        indices: The indices of the walked axes that stand in its pattern, by name.
    """

    tensor: str
    pattern: Pattern
    indices: Mapping[str, int]

    def limits(self, dimension: int, shared: Mapping[str, Range]) -> list[Range]:
        """The range of each axis of a dimension, from those of the shared axes."""
        composite = self.pattern.dimensions[dimension]
        return [shared[axis.name] if axis.name in shared else _single(self.indices[axis.name]) for axis in composite]

    def rows(self, outermost: int, shared: Mapping[str, Range]) -> Range:
        """The range of a dimension of the tensor in which ranges of the shared axes lie."""
        numbers = self.pattern.stored[outermost]
        ranges = []
        for number in numbers:
            sizes = [axis.size for axis in self.pattern.dimensions[number]]
            start, stop = stretch(widened(self.limits(number, shared), sizes), sizes)
            ranges.append((start + self.pattern.offsets[number], stop + self.pattern.offsets[number]))
        sizes = [self.pattern.sizes[number] for number in numbers]
        return stretch(widened(ranges, sizes), sizes)


@dataclass(frozen=True)
class Region:
    """What one role fills of an array.

    Attributes:
        pattern: How the role lies in the array, shared axes written as in the contributions' patterns.
        walked: The axes of the pattern that are walked, by name, in order.
        contributions: By the indices of the walked axes.
    """

    pattern: Pattern
    walked: tuple[str, ...]
    contributions: Mapping[tuple[int, ...], Contribution]

    def parts_of(self, box: Sequence[Range]) -> Iterator[tuple[Contribution, Mapping[str, Range]]]:
        """What a box of the pattern's dimensions is read from: contributions, and which range of each shared axis."""
        boxes = []
        for (start, stop), offset, extent, axes in zip(
            box, self.pattern.offsets, self.pattern.extents, self.pattern.dimensions, strict=True
        ):
            limits = max(start - offset, 0), min(stop - offset, extent)
            boxes.append([ranges for _, ranges in _stretches(*limits, tuple(axis.size for axis in axes))])
        names = [axis.name for axis in self.pattern.axes]
        walked = [names.index(name) for name in self.walked]
        for combination in itertools.product(*boxes):
            ranges = [limits for every in combination for limits in every]
            shared = {name: limits for name, limits in zip(names, ranges, strict=True) if name not in self.walked}
            for indices in itertools.product(*(range(*ranges[number]) for number in walked)):
                yield self.contributions[indices], shared


@dataclass(frozen=True)
class LazyTensor:
    """An array that is read block by block.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        regions: What fills it; several where roles are concatenated. What no region covers is zero (padding).
        source: Where the tensors that it is made of are read.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    regions: tuple[Region, ...]
    source: TensorSource

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def sources(self) -> tuple[str, ...]:
        """The source tensors that it reads, each once, in order."""
        return tuple(dict.fromkeys(each.tensor for region in self.regions for each in region.contributions.values()))

    def sources_of(self, index: Box) -> tuple[str, ...]:
        """The source tensors that one block reads, each once; one slice a dimension, step 1."""
        if len(self.regions) == 1 and len(self.regions[0].contributions) == 1:
            return self.sources
        return tuple(dict.fromkeys(given.tensor for given, _ in self._parts_of(index)))

    def rows_of(self, index: Box) -> dict[str, Range]:
        """The rows of each source tensor that one block reads: a range of the dimension that is stored outermost."""
        found: dict[str, Range] = {}
        for given, shared in self._parts_of(index):
            outermost = self.source.tensors[given.tensor].outermost
            start, stop = given.rows(outermost, shared) if given.pattern.stored else (0, 1)
            first, last = found.get(given.tensor, (start, stop))
            found[given.tensor] = min(start, first), max(stop, last)
        return found

    def _parts_of(self, index: Box) -> Iterator[tuple[Contribution, Mapping[str, Range]]]:
        """What one block is read from; see `Region.parts_of`."""
        for _, box in self._boxes(normalised(index, self.shape)):
            for region in self.regions:
                yield from region.parts_of(box)

    @property
    def split_order(self) -> tuple[int, ...]:
        """The dimensions in the order in which cutting them leaves source reads contiguous.

        First those that tell source tensors apart, then those that lie outermost in the source.
        """
        region = max(self.regions, key=lambda region: math.prod(region.pattern.extents))
        depths = {name: depth for depth, name in enumerate(self._as_stored(next(iter(region.contributions.values()))))}

        def depth(dimension: int) -> tuple[int, int]:
            axes = [axis for number in region.pattern.stored[dimension] for axis in region.pattern.dimensions[number]]
            first = next((axis.name for axis in axes if axis.size > 1), None)
            return (0, dimension) if first is None or first in region.walked else (1, depths[first])

        return tuple(sorted(range(len(self.shape)), key=depth))

    def __getitem__(self, index: Box) -> np.ndarray:
        """Reads one block; one slice a dimension, step 1."""
        index = normalised(index, self.shape)
        block = np.empty([cut.stop - cut.start for cut in index], self.dtype)
        self.read_into(block, index)
        return block

    def read_into(self, out: np.ndarray, index: Box) -> int:
        """Reads one block into `out`, whatever its strides; safe to call from several threads.

        Args:
            out: Of the block's shape and the tensor's dtype.
            index: One slice a dimension, step 1.

        Returns:
            How many values overflow float16, see `copy_cast`.
        """
        index = normalised(index, self.shape)
        overflowed = 0
        if (made_up := self.regions[0].pattern.operations).made_up:
            out[...] = made_up.offset
            return 0
        if self._has_padding:
            out[...] = 0
        for window, box in self._boxes(index):
            # Splitting a dimension never copies, so that writing to the view writes to `out`.
            view = _view(out, window).reshape([stop - start for start, stop in box])
            for region in self.regions:
                overflowed += self._read_region(view, region, box)
        return overflowed

    def _boxes(self, index: Box) -> Iterator[tuple[tuple[slice, ...], tuple[Range, ...]]]:
        """A block by boxes of the pattern's dimensions, of which two may be stored as one: each with where it lies."""
        pattern = self.regions[0].pattern
        stretches = [
            _stretches(cut.start, cut.stop, tuple(pattern.sizes[number] for number in numbers))
            for cut, numbers in zip(index, pattern.stored, strict=True)
        ]
        for combination in itertools.product(*stretches):
            yield (
                tuple(window for window, _ in combination),
                tuple(limits for _, every in combination for limits in every),
            )

    @property
    def _has_padding(self) -> bool:
        return sum(math.prod(region.pattern.extents) for region in self.regions) < math.prod(self.shape)

    def _read_region(self, out: np.ndarray, region: Region, box: Sequence[Range]) -> int:
        """Fills of `out`, a box of the pattern's dimensions, what is a region's."""
        offsets, extents = region.pattern.offsets, region.pattern.extents
        ranges = [
            (max(start - offset, 0), min(stop - offset, extent))
            for (start, stop), offset, extent in zip(box, offsets, extents, strict=True)
        ]
        if not all(start < stop for start, stop in ranges):
            return 0
        shifts = [offset - start for offset, (start, _) in zip(offsets, box, strict=True)]
        out = _view(out, [slice(a + shift, b + shift) for (a, b), shift in zip(ranges, shifts, strict=True)])
        stretches = [
            _stretches(*limits, tuple(axis.size for axis in composite))
            for limits, composite in zip(ranges, region.pattern.dimensions, strict=True)
        ]
        overflowed = 0
        for combination in itertools.product(*stretches):
            of_axes = [limits for _, every in combination for limits in every]
            view = _view(out, [window for window, _ in combination]).reshape([stop - start for start, stop in of_axes])
            overflowed += self._read_box(view, region, of_axes)
        return overflowed

    def _read_box(self, view: np.ndarray, region: Region, ranges: Sequence[Range]) -> int:
        """Fills `view`, one dimension an axis, from every source tensor that the box meets."""
        names = [axis.name for axis in region.pattern.axes]
        walked = [names.index(name) for name in region.walked]
        shared = {name: limits for name, limits in zip(names, ranges, strict=True) if name not in region.walked}
        overflowed = 0
        for indices in itertools.product(*(range(*ranges[number]) for number in walked)):
            at: list[int | slice] = [slice(None)] * len(names)
            for number, index in zip(walked, indices, strict=True):
                at[number] = index - ranges[number][0]
            overflowed += self._read(_view(view, at), region, region.contributions[indices], shared)
        return overflowed

    def _read(self, out: np.ndarray, region: Region, given: Contribution, shared: Mapping[str, Range]) -> int:
        """Fills `out`, one dimension a shared axis in the target's order, from one source tensor, piece by piece."""
        if out.size <= _PIECE_SIZE:
            return self._read_piece(out, region, given, shared)
        names = [name for name in self._as_stored(given) if name in shared]
        sizes = [shared[name][1] - shared[name][0] for name in names]
        # Powers of two cut through no word and no group of packed weights.
        extents = {
            name: extent if extent == size else 1 << extent.bit_length() - 1
            for name, size, extent in zip(names, sizes, extents_of(sizes, _PIECE_SIZE), strict=True)
        }
        overflowed = 0
        for box in boxes_of(out.shape, [extents[name] for name in shared]):
            piece = {
                name: (start + cut.start, start + cut.stop)
                for (name, (start, _)), cut in zip(shared.items(), box, strict=True)
            }
            overflowed += self._read_piece(_view(out, box), region, given, piece)
        return overflowed

    def _as_stored(self, given: Contribution) -> list[str]:
        """The axes of a source tensor, outermost first, as they are stored."""
        order = self.source.tensors[given.tensor].order or range(len(given.pattern.stored))
        numbers = itertools.chain(*(given.pattern.stored[dimension] for dimension in order))
        return [axis.name for number in numbers for axis in given.pattern.dimensions[number]]

    def _read_piece(self, out: np.ndarray, region: Region, given: Contribution, shared: Mapping[str, Range]) -> int:
        ranges: list[Range] = []
        inner: list[int | slice] = []
        shape, names = [], []
        for number, (composite, offset) in enumerate(zip(given.pattern.dimensions, given.pattern.offsets, strict=True)):
            sizes = [axis.size for axis in composite]
            limits = given.limits(number, shared)
            read = widened(limits, sizes)
            start, stop = stretch(read, sizes)
            ranges.append((start + offset, stop + offset))
            for axis, (low, high), (first, last) in zip(composite, limits, read, strict=True):
                shape.append(last - first)
                inner.append(slice(low - first, high - first) if axis.name in shared else low - first)
                names += [axis.name] if axis.name in shared else []
        values = self._read_ranges(given, ranges).reshape(shape)[tuple(inner)]
        stored, wanted = given.pattern.operations, region.pattern.operations
        factors = (stored.scale, stored.offset, wanted.scale, wanted.offset)
        return copy_cast(out, values.transpose([names.index(name) for name in shared]), factors)

    def _read_ranges(self, given: Contribution, ranges: Sequence[Range]) -> np.ndarray:
        """Reads the given ranges of the dimensions of a source tensor's pattern."""
        pattern = given.pattern
        box: list[slice] = []
        shape, inner = [], []
        for numbers in pattern.stored:
            sizes = [pattern.sizes[number] for number in numbers]
            read = widened([ranges[number] for number in numbers], sizes)
            box.append(slice(*stretch(read, sizes)))
            for number, (first, last) in zip(numbers, read, strict=True):
                shape.append(last - first)
                inner.append(slice(ranges[number][0] - first, ranges[number][1] - first))
        return self.source.read(given.tensor, tuple(box)).reshape(shape)[tuple(inner)]


@functools.lru_cache(maxsize=4096)
def _stretches(start: int, stop: int, sizes: tuple[int, ...]) -> Sequence[tuple[slice, tuple[Range, ...]]]:
    """The stretches that a slice of a composite axis falls into: where in the slice, and the ranges of the axes."""
    stretches, first = list[tuple[slice, tuple[Range, ...]]](), 0
    for ranges in ranges_of(start, stop, sizes):
        last = first + math.prod(b - a for a, b in ranges)
        stretches.append((slice(first, last), ranges))
        first = last
    return tuple(stretches)


def _single(index: int) -> Range:
    return index, index + 1


def _view(array: np.ndarray, index: Sequence[int | slice]) -> np.ndarray:
    """A part of an array; also where nothing is left of its dimensions, which indexing alone would make a copy."""
    view: np.ndarray = array[(*index, ...)]
    return view
