"""Copies between memory orders and dtypes, beside NumPy's own, at sizes around those of the tiles."""

import dataclasses
import tracemalloc
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyload.layouts.copying import copy_cast

DTYPES = [np.uint8, ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16, np.float32, np.int64, np.complex128]
SHAPES = [(512, 384), (515, 387), (70_000, 3), (3, 70_000), (129, 1031)]


KINDS = [np.uint8, np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@dataclasses.dataclass(frozen=True)
class Form:
    """An array that is a part of a larger one: its dtype, its dimensions as they lie in memory, what lies before it."""

    dtype: np.dtype
    order: tuple[int, ...]
    margins: tuple[int, ...]

    def array(self, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The array and the larger one, all zeros."""
        whole = np.zeros([shape[axis] + self.margins[axis] for axis in self.order], self.dtype)
        part = whole[tuple(slice(self.margins[axis], None) for axis in self.order)]
        return part.transpose(np.argsort(self.order)), whole


@st.composite
def forms(draw: st.DrawFn) -> tuple[list[int], Form, Form]:
    """A shape of at most a million elements, and two forms of arrays."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 7, 64, 130]), min_size=1, max_size=4))
    shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(500, 1500))
    while np.prod(shape, dtype=int) > 1 << 20:
        shape[int(np.argmax(shape))] //= 4
    dtypes = draw(st.lists(st.sampled_from(KINDS), min_size=2, max_size=2))
    if np.uint8 in dtypes:
        dtypes = [np.uint8, np.uint8]
    first, second = (
        Form(
            np.dtype(dtype),
            tuple(draw(st.permutations(range(len(shape))))),
            tuple(draw(st.integers(0, 2)) for _ in shape),
        )
        for dtype in dtypes
    )
    return shape, first, second


@settings(deadline=None)
@given(forms(), st.integers(0, 99))
def test_any_order_and_dtype_is_what_numpy_makes(form: tuple[list[int], Form, Form], seed: int) -> None:
    shape, stored, wanted = form
    (values, _), (out, around) = stored.array(shape), wanted.array(shape)
    random = np.random.default_rng(seed)
    with np.errstate(over="ignore", invalid="ignore"):
        values[...] = np.ldexp(random.standard_normal(shape), random.integers(-30, 30, shape)).astype(stored.dtype)
        overflowed = copy_cast(out, values)
        expected = values.astype(wanted.dtype)
    assert np.ascontiguousarray(out).tobytes() == np.ascontiguousarray(expected).tobytes()
    assert np.count_nonzero(around) == np.count_nonzero(expected)
    became = np.isinf(expected) & np.isfinite(values) if wanted.dtype == np.float16 else np.zeros(())
    assert overflowed == np.count_nonzero(became)


@pytest.mark.parametrize("wanted", [np.float16, ml_dtypes.bfloat16, np.float32], ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float32], ids=lambda dtype: np.dtype(dtype).name)
def test_every_value_and_all_ties_are_cast_alike_in_any_order(stored: type, wanted: type) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    if stored is np.float32:
        lower = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
        values = (every.astype(np.uint32)[:, None] << 16 | lower).reshape(-1, 256).view(np.float32)
    else:
        values = every.view(stored).reshape(-1, 256)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(wanted)
    straight, transposed = np.empty(values.shape, wanted), np.empty(values.shape[::-1], wanted)
    copy_cast(straight, values)
    copy_cast(transposed, values.T)
    assert straight.tobytes() == expected.tobytes()
    assert transposed.tobytes() == np.ascontiguousarray(expected.T).tobytes()


@pytest.mark.parametrize("transposed", [False, True])
def test_what_overflows_is_counted_in_every_tile(transposed: bool) -> None:
    stored = np.zeros((1000, 2000), np.float32)
    stored[::100, ::100] = 1e6
    stored[1, 1], stored[2, 2] = np.inf, np.nan
    values = stored.T if transposed else stored
    assert copy_cast(np.empty(values.shape, np.float16), values) == 200


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


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("factors", [(4, 0, 1, 0), (1, 3, 1, 0), (1, 0, 0.3, 0), (1, 0, 1, 5), (4, 3, 0.3, 5)], ids=str)
def test_scale_and_offset_are_taken_off_and_put_on(factors: tuple[float, float, float, float], dtype: type) -> None:
    stored = random((700, 600), np.dtype(dtype))
    before = stored.tobytes()
    out = np.empty((600, 700), dtype)
    copy_cast(out, stored.T, factors)
    scale, offset, wanted_scale, wanted_offset = map(np.float32, factors)
    value = (stored.T.astype(np.float32) - offset) / scale
    np.testing.assert_array_equal(out, (value * wanted_scale + wanted_offset).astype(dtype))
    assert stored.tobytes() == before


def test_a_cast_of_more_than_is_converted_at_a_time() -> None:
    stored = random((3000, 500), np.dtype(np.float32))
    for values in (stored, stored.T, stored[::2, ::3], stored[:1], stored[:, :1]):
        out = np.empty(values.shape, ml_dtypes.bfloat16)
        copy_cast(out, values)
        np.testing.assert_array_equal(out, values.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("shape", [(2048, 2048), (1, 2048, 2048), (2048, 1, 2048)], ids=str)
def test_a_cast_needs_little_memory(shape: tuple[int, ...]) -> None:
    stored, out = np.zeros(shape, np.float32), np.zeros(shape, ml_dtypes.bfloat16)
    tracemalloc.start()
    copy_cast(out, stored)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < stored.nbytes // 4


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("factors", [(1, 0, 1, 0), (1, 0, 2, 0)], ids=["copy", "scale"])
def test_little_or_nothing_to_copy(shape: tuple[int, ...], factors: tuple[float, float, float, float]) -> None:
    out = np.zeros(shape, ml_dtypes.bfloat16)
    copy_cast(out, np.full(shape, 3, np.float32), factors)
    np.testing.assert_array_equal(out, np.full(shape, 3 * factors[2], np.float32))


def test_rows_that_cannot_be_merged_are_copied_all_the_same() -> None:
    stored = random((200, 30, 40), np.dtype(np.float32))
    out = np.zeros((40, 200, 60), np.float32)
    copy_cast(out[:, :, ::2], stored.transpose(2, 0, 1))
    np.testing.assert_array_equal(out[:, :, ::2], stored.transpose(2, 0, 1))
    assert not out[:, :, 1::2].any()
    held = np.zeros((41, 200, 31), np.float32)
    copy_cast(held[1:, :, 1:], stored.transpose(2, 0, 1))
    np.testing.assert_array_equal(held[1:, :, 1:], stored.transpose(2, 0, 1))
