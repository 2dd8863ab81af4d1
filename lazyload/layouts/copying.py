"""Copying between arrays of different memory order and dtype, at the speed that memory allows.

NumPy copies a transposed array element by element along the target's rows: every element read starts another cache
line of the source, and all but one of a line's elements are evicted before they are used. Lines whose distance is a
power of two even share a few places of the cache. So a tile of the source, as much as a core's cache holds, is first
copied row by row into memory of its own, where its rows lie an odd number of lines apart, and transposed from there:
then NumPy moves an element in about a cycle, 2 bytes as well as 8.

A change of dtype or scale is made on the way into that tile, or tile by tile where nothing is transposed.

In the worked example of this folder, 8 rows of 16 columns, one head as it is stored, become 16 rows of 8:

Example:
    >>> stored = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
    >>> head = np.empty((16, 8), np.float32)
    >>> overflowed = copy_cast(head, stored.T)
    >>> head[0]
    array([  0.,  16.,  32.,  48.,  64.,  80.,  96., 112.], dtype=float32)
"""

import math
from collections.abc import Sequence

import numpy as np

from lazyload.layouts.boxes import boxes_of, extents_of
from lazyload.layouts.scratch import Scratch

_TILE_BYTES = 1 << 18
"""Of a tile, in the widest dtype that it passes through: several of them fit into a core's cache."""

_LINE_BYTES = 64
_SEGMENT_BYTES = 1 << 11
"""Of a source row, how much a tile takes at least: shorter runs are not worth a call."""

_SMALL_BYTES = 1 << 15
"""What is smaller lies in the nearest cache, whatever its order."""

Factors = tuple[float, float, float, float]
"""The source's scale and offset, the target's scale and offset."""

_EXACT: Factors = (1.0, 0.0, 1.0, 0.0)
_FLOAT16, _FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
_INFINITE_FLOAT16 = 0x7C00

_tile, _numbers = Scratch(), Scratch()


def copy_cast(out: np.ndarray, values: np.ndarray, factors: Factors = _EXACT) -> int:
    """Copies `values` into `out`, with a change of dtype and of scale where asked.

    Arithmetic is done in float32 and rounded once. The value is `(stored - offset) / scale` of the source, and
    `value * scale + offset` is what the target stores.

    Args:
        out: The target; any strides.
        values: Of the same shape; any strides, such as a transposed view.
        factors: Scale and offset of the source, scale and offset of the target.

    Returns:
        How many finite values are infinite in float16, if that is the target's dtype; else 0.
    """
    if not out.size:
        return 0
    if not out.ndim:
        out, values = out.reshape(1), values.reshape(1)
    is_plain = out.dtype == values.dtype and factors == _EXACT
    if is_plain:
        out, values = _as_words(out), _as_words(values)
    if out.nbytes >= _SMALL_BYTES and _axes_by_distance(out)[-1] != _axes_by_distance(values)[-1]:
        return _transpose(out, values, factors)
    if is_plain:
        np.copyto(out, values)
        return 0
    order = _axes_by_distance(values)
    out, values = out.transpose(order), values.transpose(order)
    extents = extents_of(out.shape, _TILE_BYTES // _FLOAT32.itemsize)
    return sum(_convert(out[box], values[box], factors) for box in boxes_of(out.shape, extents))


def _transpose(out: np.ndarray, values: np.ndarray, factors: Factors) -> int:
    """Copies tile by tile what lies along other dimensions in `out` than in `values`."""
    contiguous = _axes_by_distance(values)[-1]
    # The rows of a tile stand in the order of the target, so that what is contiguous there is copied at once.
    order = [*(axis for axis in _axes_by_distance(out) if axis != contiguous), contiguous]
    out, values = out.transpose(order), values.transpose(order)
    *rows, columns = out.shape
    is_plain = out.dtype == values.dtype and factors == _EXACT
    count = _TILE_BYTES // (out.itemsize if is_plain else max(out.itemsize, _FLOAT32.itemsize))
    width = min(columns, max(_SEGMENT_BYTES // out.itemsize, count // math.prod(rows)))
    overflowed = 0
    for box in boxes_of(out.shape, [*extents_of(rows, count // width), width]):
        part = values[box]
        tile = _padded(part.shape, out.dtype)
        overflowed += _convert(tile, part, factors)
        np.copyto(_as_words(out[box]), _as_words(tile))
    return overflowed


def _convert(out: np.ndarray, values: np.ndarray, factors: Factors) -> int:
    """What `copy_cast` does, for a piece that fits into a core's cache, however it lies there."""
    if factors == _EXACT:
        if out.dtype == values.dtype:
            np.copyto(_as_words(out), _as_words(values))
            return 0
        numbers = values
    else:
        numbers = _numbers.array(values.shape, _FLOAT32)
        np.copyto(numbers, values, casting="unsafe")
        _compute(numbers, factors)
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(out, numbers, casting="unsafe")
    return _overflowed(numbers, out) if out.dtype == _FLOAT16 else 0


def _overflowed(values: np.ndarray, cast: np.ndarray) -> int:
    infinite = np.bitwise_and(cast.view(np.uint16), 0x7FFF) == _INFINITE_FLOAT16
    return int(np.count_nonzero(np.isfinite(values[infinite].astype(np.float32)))) if infinite.any() else 0


def _compute(values: np.ndarray, factors: Factors) -> None:
    scale, offset, wanted_scale, wanted_offset = (np.float32(factor) for factor in factors)
    if offset:
        values -= offset
    if scale != 1:
        values /= scale
    if wanted_scale != 1:
        values *= wanted_scale
    if wanted_offset:
        values += wanted_offset


def _as_words(array: np.ndarray) -> np.ndarray:
    """The same bytes as integers: what NumPy does not know itself, such as bfloat16, it copies by a call an element."""
    return array.view(f"u{array.itemsize}") if array.itemsize in (1, 2, 4, 8) else array


def _padded(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Memory for a tile, until the thread's next one, of which the rows lie an odd number of cache lines apart."""
    *rows, columns = shape
    padding = _LINE_BYTES // dtype.itemsize if columns * dtype.itemsize % (2 * _LINE_BYTES) == 0 else 0
    return _tile.array((*rows, columns + padding), dtype)[..., :columns]


def _axes_by_distance(array: np.ndarray) -> list[int]:
    """The dimensions, last the one whose neighbours lie closest in memory."""
    return sorted(range(array.ndim), key=lambda axis: (array.shape[axis] > 1, -array.strides[axis]))
