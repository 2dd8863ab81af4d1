"""Headers of safetensors files: what is accepted, that nothing else is, and boxes of what they describe."""

import contextlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import save
from support.in_memory import slices

from lazyload.errors import CorruptSourceError, UnsupportedFormatError
from lazyload.layouts.source import TensorInfo
from lazyload.sources.safetensors import StoredTensor, parse_header, read_box, read_header


class Content:
    """A file in memory that counts what is read of it."""

    def __init__(self, content: bytes):
        self.content = content
        self.reads: list[int] = []

    def read_into(self, start: int, out: memoryview) -> None:
        if start + len(out) > len(self.content):
            raise CorruptSourceError("too short")
        out[:] = self.content[start : start + len(out)]
        self.reads.append(len(out))


def parse(content: bytes) -> dict[str, StoredTensor]:
    header = read_header(Content(content).read_into, len(content), "file")
    return parse_header(header, len(content), "file", "file")


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    arrays.arrays(st.sampled_from(["f4", "f2", "i8", "u1", "?"]), arrays.array_shapes(min_dims=0, min_side=0)),
    max_size=5,
)


@given(tensors=TENSORS, data=st.data())
@settings(deadline=None)
def test_what_the_library_writes_is_read(tensors: dict[str, np.ndarray], data: st.DataObject) -> None:
    content = save(tensors, metadata={"format": "pt"})
    found = parse(content)
    assert {name: tensor.info for name, tensor in found.items()} == {
        name: TensorInfo(array.shape, array.dtype) for name, array in tensors.items()
    }
    for name, array in tensors.items():
        box = data.draw(slices(array.shape))
        np.testing.assert_array_equal(read_box(Content(content).read_into, found[name], box), array[box])


@given(content=st.binary(max_size=64) | st.builds(file_of, st.binary(max_size=200), st.binary(max_size=16)))
def test_arbitrary_bytes_are_refused_and_never_crash(content: bytes) -> None:
    with contextlib.suppress(CorruptSourceError):
        assert parse(content) == {}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 2**70) | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    value=st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(["F32", "BF16", "F4"]) | JSON,
            "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
            "data_offsets": st.lists(st.integers(-4, 20), min_size=2, max_size=2) | JSON,
        },
    )
)
@settings(deadline=None)
def test_arbitrary_entries_are_refused_unless_they_hold(value: dict[str, Any]) -> None:
    content = file_of({"a": value}, bytes(8))
    with contextlib.suppress(CorruptSourceError, UnsupportedFormatError):
        (tensor,) = parse(content).values()
        assert value["data_offsets"] == [0, 8]
        assert math.prod(tensor.info.shape) * tensor.info.dtype.itemsize == 8


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has 0 bytes"),
        (struct.pack("<Q", 10**9), "announces a header of 1000000000 bytes"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "announces"),
        (file_of(b"[]"), "no JSON object"),
        (file_of(b"{"), "not valid JSON"),
        (file_of(b'{"a":1,"a":2}'), "stands in it twice"),
        (file_of({"a": entry(0, 8)}, bytes(4)), "truncated"),
        (file_of({"a": entry(0, 8)}, bytes(12)), "4 bytes more"),
        (file_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "overlap or leave a gap"),
        (file_of({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "overlap or leave a gap"),
        (file_of({"a": entry(0, 8, [3])}, bytes(8)), r"shape \[3\] in F32 takes 12 bytes, but the header gives it 8"),
        (file_of({"a": entry(0, 0, [0, -1])}), "malformed"),
        (file_of({"a": entry(0, 4, [True])}, bytes(4)), "malformed"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, complaint: str) -> None:
    with pytest.raises(CorruptSourceError, match=complaint):
        parse(content)


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(UnsupportedFormatError, match="file: a has dtype F6_E2M3"):
        parse(file_of({"a": entry(0, 8, [8], "F6_E2M3")}, bytes(8)))


def test_a_long_header_is_read_whole() -> None:
    header = {f"tensor.{number}": entry(4 * number, 4 * number + 4) for number in range(5000)}
    assert len(parse(file_of(header, bytes(20000)))) == 5000


def test_every_dtype_has_its_width(tmp_path: Path) -> None:
    widths = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "F8_E4M3": 1,
              "F8_E5M2": 1, "F8_E8M0": 1, "F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # fmt: skip
    for name, width in widths.items():
        (tensor,) = parse(file_of({"a": entry(0, width, [], name)}, bytes(width))).values()
        assert tensor.info.dtype.itemsize == width


def test_a_slice_along_the_outermost_dimension_is_one_read_of_just_its_bytes() -> None:
    content = Content(bytes(64 * 32 * 2))
    tensor = StoredTensor(TensorInfo((64, 32), np.dtype(ml_dtypes.bfloat16)), "file", 0)
    assert read_box(content.read_into, tensor, (slice(8, 16), slice(0, 32))).shape == (8, 32)
    assert content.reads == [8 * 32 * 2]


def test_short_stretches_are_read_together_and_far_ones_apart() -> None:
    content = Content(bytes(64 * 32 * 4))
    tensor = StoredTensor(TensorInfo((64, 32), np.dtype(np.float32)), "file", 0)
    read_box(content.read_into, tensor, (slice(0, 8), slice(0, 16)))
    assert content.reads == [8 * 32 * 4]
    content.reads.clear()
    read_box(content.read_into, tensor, (slice(0, 8), slice(0, 2)))
    assert content.reads == [2 * 4] * 8
