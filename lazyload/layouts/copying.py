"""Copying between arrays of different memory order and dtype, at the speed that memory allows.

NumPy copies a transposed array element by element along the target's rows: every element read starts another cache
line of the source, and all but one of a line's elements are evicted before they are used (0.3 GB/s for 2-byte elements
of a large matrix). Copying a few source rows at a time, as many as fill a cache line of the target, keeps both sides in
the cache (2.0 to 3.4 GB/s a thread).

In the worked example of this folder, 8 rows of 16 columns, one head as it is stored, become 16 rows of 8:

Example:
    >>> stored = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
    >>> head = np.empty((16, 8), np.float32)
    >>> overflowed = copy_cast(head, stored.T)
    >>> head[0]
    array([  0.,  16.,  32.,  48.,  64.,  80.,  96., 112.], dtype=float32)
"""

import itertools
from collections.abc import Iterator
from types import EllipsisType

import numpy as np

_STRIP_BYTES = 64
"""Of a target row, how much is written at a time: a cache line; half of it where elements are written one by one."""

_CONVERTED_BYTES = 1 << 20
"""How much is converted at a time, in the source's dtype."""

Factors = tuple[float, float, float, float]
"""The source's scale and offset, the target's scale and offset."""


_FLOAT16 = np.dtype(np.float16)


def copy_cast(out: np.ndarray, values: np.ndarray, factors: Factors = (1.0, 0.0, 1.0, 0.0)) -> int:
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
    exact = factors == (1.0, 0.0, 1.0, 0.0)
    if exact and out.dtype == values.dtype:
        _copy(out, values)
        return 0
    overflowed = 0
    for window in _slabs(values):
        converted = values[window]
        if not exact:
            converted = _computed(converted.astype(np.float32, order="K"), factors)
        with np.errstate(over="ignore"):
            cast = converted.astype(out.dtype, order="K", copy=False)
        if out.dtype == _FLOAT16:
            overflowed += _overflowed(converted, cast)
        _copy(out[window], cast)
    return overflowed


def _overflowed(values: np.ndarray, cast: np.ndarray) -> int:
    infinite = np.isinf(cast)
    return int(np.count_nonzero(np.isfinite(values[infinite].astype(np.float32)))) if infinite.any() else 0


def _computed(values: np.ndarray, factors: Factors) -> np.ndarray:
    scale, offset, wanted_scale, wanted_offset = (np.float32(factor) for factor in factors)
    if offset:
        values -= offset
    if scale != 1:
        values /= scale
    if wanted_scale != 1:
        values *= wanted_scale
    if wanted_offset:
        values += wanted_offset
    return values


def _slabs(values: np.ndarray) -> Iterator[tuple[slice, ...] | EllipsisType]:
    """Cuts an array along its outermost dimension in memory."""
    if values.ndim == 0 or values.size == 0:
        yield ...
        return
    axis = int(
        np.argmax([stride if size > 1 else -1 for stride, size in zip(values.strides, values.shape, strict=True)])
    )
    step = max(1, _CONVERTED_BYTES * values.shape[axis] // values.nbytes)
    for start in range(0, values.shape[axis], step):
        yield (*(slice(None),) * axis, slice(start, start + step))


def _copy(out: np.ndarray, values: np.ndarray) -> None:
    """Copies between arrays of one dtype."""
    if out.dtype.itemsize in (1, 2, 4, 8):
        # Dtypes that NumPy does not know itself, such as bfloat16, are copied through a call an element.
        out, values = (array.view(f"u{array.dtype.itemsize}") for array in (out, values))
    fast = _fastest(values)
    if fast == _fastest(out) or out.nbytes < 1 << 15:
        np.copyto(out, values)
        return
    # The target's dimensions after the one that is contiguous in the source are one row of the target.
    rows = out.reshape(*out.shape[: fast + 1], -1)
    columns = np.moveaxis(values, fast, -1)
    if not np.may_share_memory(rows, out):
        np.copyto(out, values)
        return
    for index in itertools.product(*(range(size) for size in out.shape[:fast])):
        _transpose(rows[index], columns[index].reshape(-1, values.shape[fast]))


def _transpose(rows: np.ndarray, columns: np.ndarray) -> None:
    """Does `rows[...] = columns.T`, where a row of each is contiguous, a few rows of `columns` at a time.

    These are first woven into words of eight bytes, because NumPy takes as long to transpose two bytes as eight.
    """
    size = rows.dtype.itemsize
    strip, weave = _STRIP_BYTES // size, 8 // size
    whole = rows.shape[1] // weave * weave if weave > 1 and rows.strides[1] == size else 0
    words = rows[:, :whole].view(np.uint64) if whole else rows
    for start in range(0, whole, strip):
        stop = min(start + strip, whole)
        woven = np.empty(((stop - start) // weave, columns.shape[1], weave), rows.dtype)
        for place in range(weave):
            woven[:, :, place] = columns[start + place : stop : weave]
        words[:, start // weave : stop // weave] = woven.view(np.uint64)[:, :, 0].T
    for start in range(whole, rows.shape[1], strip // 2):
        rows[:, start : start + strip // 2] = columns[start : start + strip // 2].T


def _fastest(array: np.ndarray) -> int:
    """The dimension whose neighbours lie closest in memory."""
    strides = [stride if size > 1 else np.inf for stride, size in zip(array.strides, array.shape, strict=True)]
    return int(np.argmin(strides)) if strides else 0
