"""Copies between memory orders, beside NumPy's own, at the sizes at which rows are woven into words."""

import ml_dtypes
import numpy as np
import pytest

from lazyload.layouts.copying import copy_cast

DTYPES = [np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16, np.float32, np.int64, np.complex128]
SHAPES = [(512, 384), (515, 387), (70_000, 3), (3, 70_000), (129, 1031)]


def random(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Random whole numbers that every dtype has."""
    integers = np.random.default_rng(0).integers(0, 100, shape)
    return integers.astype(np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transposed(shape: tuple[int, int], dtype: type) -> None:
    values = random(shape, np.dtype(dtype)).T
    out = np.empty(values.shape, dtype)
    copy_cast(out, values)
    assert out.tobytes() == np.ascontiguousarray(values).tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_into_every_second_column_and_from_an_odd_place(dtype: type) -> None:
    stored = random((401, 303), np.dtype(dtype))
    out = np.zeros((300, 2 * 399), dtype)
    copy_cast(out[:, 1::2], stored[2:, 3:].T)
    assert out[:, 1::2].tobytes() == stored[2:, 3:].T.tobytes()
    assert not out[:, ::2].any()
    shifted = np.zeros((300, 401), dtype)
    copy_cast(shifted[:, 1:400], stored[2:, 3:].T)
    assert shifted[:, 1:400].tobytes() == stored[2:, 3:].T.tobytes()
    assert not shifted[:, [0, 400]].any()


def test_three_dimensions_with_a_cast() -> None:
    stored = random((96, 40, 64), np.dtype(ml_dtypes.bfloat16))
    out = np.empty((64, 96, 40), np.float32)
    copy_cast(out, stored.transpose(2, 0, 1))
    np.testing.assert_array_equal(out, stored.transpose(2, 0, 1).astype(np.float32))
