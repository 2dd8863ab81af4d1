"""Packed weights, box by box, against the formulas of their formats, and what is refused."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.in_memory import Arrays, slices

from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.sources.packed import check_quantization, find_packed

FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 6]}}
MXFP4 = {"quantization_config": {"quant_method": "mxfp4"}}


def fp8(rows: int, columns: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    weight = (random.standard_normal((rows, columns)) * 100).astype(ml_dtypes.float8_e4m3fn)
    scale = random.random((-(-rows // 4), -(-columns // 6))).astype(np.float32)
    value = np.empty((rows, columns), np.float32)
    for i, j in np.ndindex(rows, columns):
        value[i, j] = np.float32(weight[i, j]) * scale[i // 4, j // 6]
    return {"a.weight": weight, "a.weight_scale_inv": scale}, value


def mxfp4() -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (3, 5, 2, 16), np.uint8)
    scales = random.integers(110, 140, (3, 5, 2), np.uint8)
    numbers = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    value = np.empty((3, 64, 5), np.float32)
    for expert, column, row in np.ndindex(value.shape):
        block, place = divmod(column, 32)
        code = blocks[expert, row, block, place // 2] >> (4 * (place % 2)) & 15
        sign = -1 if code & 8 else 1
        value[expert, column, row] = sign * numbers[code & 7] * 2.0 ** (int(scales[expert, row, block]) - 127)
    return {"x_blocks": blocks, "x_scales": scales}, value


def unpacked(config: Mapping[str, Any], stored: dict[str, np.ndarray]) -> tuple[Any, Arrays]:
    source = Arrays(stored)
    (packed,) = find_packed(config, source.tensors, "model").values()
    return packed, source


@pytest.mark.parametrize(("rows", "columns"), [(8, 12), (9, 13), (3, 5), (4, 6)])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_box_of_fp8(rows: int, columns: int, data: st.DataObject) -> None:
    stored, value = fp8(rows, columns)
    packed, source = unpacked(FP8, stored)
    assert packed.info == (value.shape, np.float32)
    box = data.draw(slices(value.shape))
    np.testing.assert_array_equal(packed.read(source.read, box, np.empty), value[box])


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_box_of_mxfp4(data: st.DataObject) -> None:
    stored, value = mxfp4()
    packed, source = unpacked(MXFP4, stored)
    assert packed.info == (value.shape, ml_dtypes.bfloat16)
    box = data.draw(slices(value.shape))
    np.testing.assert_array_equal(packed.read(source.read, box, np.empty), value[box])


def test_the_largest_and_smallest_exponents() -> None:
    stored, _ = mxfp4()
    stored["x_blocks"][:] = 0x22
    stored["x_scales"][...] = np.array([0, 254], np.uint8)
    packed, source = unpacked(MXFP4, stored)
    value = packed.read(source.read, tuple(slice(0, size) for size in packed.info.shape), np.empty)
    np.testing.assert_array_equal(value[0, ::32, 0].astype(np.float32), np.float32([2.0**-127, 2.0**127]))


def test_only_the_scales_of_the_box_are_read() -> None:
    stored, _ = fp8(400, 600)
    packed, source = unpacked(FP8, stored)
    packed.read(source.read, (slice(40, 44), slice(60, 66)), np.empty)
    assert source.bytes_read == 4 * 6 + 4


@pytest.mark.parametrize(
    ("scheme", "instead"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "somebody's"}, "somebody's"),
        ({"load_in_8bit": True}, "None"),
        ({"quant_method": "fp8"}, "weight_block_size"),
    ],
)
def test_other_schemes_are_refused_by_name(scheme: dict[str, Any], instead: str) -> None:
    for config in ({"quantization_config": scheme}, {"text_config": {"quantization_config": scheme}}):
        with pytest.raises(UnsupportedFormatError, match=rf"{instead}[\s\S]*[Uu]se (a|the) repository"):
            check_quantization(config, "config.json")


@pytest.mark.parametrize("block", [[128], "128", [0, 128], [1.5, 2]])
def test_blocks_without_a_meaning(block: Any) -> None:
    with pytest.raises(ConfigError, match="weight_block_size"):
        check_quantization({"quantization_config": {"quant_method": "fp8", "weight_block_size": block}}, "config.json")


def test_plain_checkpoints_have_no_packed_tensors() -> None:
    check_quantization({"quantization_config": None}, "config.json")
    assert find_packed({}, Arrays(fp8(8, 12)[0]).tensors, "model") == {}


@pytest.mark.parametrize(
    ("config", "change", "complaint"),
    [
        (FP8, {"a.weight_scale_inv": None}, "a.weight_scale_inv are missing"),
        (FP8, {"a.weight_scale_inv": np.zeros((2, 3), np.float32)}, r"must be \[2, 2\], not \[2, 3\]"),
        (MXFP4, {"x_scales": None}, "x_scales are missing"),
        (MXFP4, {"x_scales": np.zeros((3, 5, 3), np.uint8)}, r"must be \[3, 5, 2\], not \[3, 5, 3\]"),
        (MXFP4, {"x_scales": np.zeros((3, 5, 2), np.float32)}, "x_scales is of float32"),
        (MXFP4, {"x_blocks": np.zeros((3, 5, 2, 8), np.uint8)}, r"x_blocks is \[3, 5, 2, 8\]"),
    ],
)
def test_parts_that_do_not_fit(config: Mapping[str, Any], change: dict[str, Any], complaint: str) -> None:
    stored = {**(fp8(8, 12) if config is FP8 else mxfp4())[0], **change}
    tensors = Arrays({name: array for name, array in stored.items() if array is not None}).tensors
    with pytest.raises(CorruptSourceError, match=complaint):
        find_packed(config, tensors, "model")
