"""Packed weights, box by box, against the formulas of their formats, and what is refused."""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.in_memory import Arrays, slices

import lazyload
from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.sources.packed import Packed, find_packed, of_activations, read_modelopt, read_scheme

Case = tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]
"""A `quantization_config`, what is stored, and what that is unpacked."""

BFLOAT16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def drawn(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def scales(name: str, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    return (drawn(name).random(shape) + 0.5).astype(dtype)


def codes(name: str, bits: int, *shape: int) -> np.ndarray:
    return drawn(name).integers(0, 1 << bits, shape)


def floats8(name: str, *shape: int, dtype: Any = E4M3) -> np.ndarray:
    return (drawn(name).standard_normal(shape) * 100).astype(dtype)


def words(values: np.ndarray, bits: int, axis: int, order: list[int] | None = None) -> np.ndarray:
    """Packs integers along an axis as one long number a row, which is cut into words."""
    rows = np.moveaxis(values, axis, 1)
    if order:
        rows = rows.reshape(len(rows), -1, len(order))[:, :, order].reshape(len(rows), -1)
    count = -(-rows.shape[1] * bits // 32)
    numbers = [sum(int(code) << place * bits for place, code in enumerate(row)) for row in rows]
    packed = [[number >> 32 * word & 0xFFFFFFFF for word in range(count)] for number in numbers]
    return np.ascontiguousarray(np.moveaxis(np.array(packed, np.uint32).view(np.int32), 1, axis))


def pairs(values: np.ndarray) -> np.ndarray:
    """Packs 4-bit codes two a byte, the first in the low bits."""
    return (values[..., 0::2] | values[..., 1::2] << 4).astype(np.uint8)


def times(numbers: np.ndarray, scale: np.ndarray, block: tuple[int, ...], zero: np.ndarray | None = None) -> np.ndarray:
    """`(number - zero) * scale`, value by value, with the scale and zero point of its block."""
    out = np.empty(numbers.shape, np.float32)
    for index in np.ndindex(numbers.shape):
        place = tuple(i // size for i, size in zip(index, block, strict=True))
        out[index] = np.float32(numbers[index] - (0 if zero is None else zero[place])) * np.float32(scale[place])
    return out


def fp8(rows: int = 9, columns: int = 13, block: tuple[int, int] = (4, 6), dtype: Any = E4M3) -> Case:
    weight = floats8("w", rows, columns, dtype=dtype)
    scale = scales("s", -(-rows // block[0]), -(-columns // block[1]))
    stored = {"a.weight": weight, "a.weight_scale_inv": scale}
    config = {"quant_method": "fp8", "weight_block_size": list(block)}
    return config, stored, {"a.weight": times(weight.astype(np.float32), scale, block)}


def fp8_of_the_whole(shape: tuple[int, ...] = (), **config: Any) -> Case:
    weight, scale = floats8("w", 6, 10), scales("s", *shape, dtype=BFLOAT16)
    stored = {"a.weight": weight, "a.weight_scale": scale, "a.input_scale": scales("i")}
    value = times(weight.astype(np.float32), scale.reshape(1, 1).astype(np.float32), (6, 10))
    return {"quant_method": "fp8", **config}, stored, {"a.weight": value}


def fp8_by_row(method: str = "fbgemm_fp8") -> Case:
    weight, scale = floats8("w", 6, 10), scales("s", 6, 1)
    stored = {"a.weight": weight, "a.weight_scale": scale}
    return {"quant_method": method}, stored, {"a.weight": times(weight.astype(np.float32), scale, (1, 10))}


def fp8_experts() -> Case:
    weight, scale = floats8("w", 3, 6, 10), scales("s", 3, 2, 3)
    stored = {"experts.gate_up_proj": weight, "experts.gate_up_proj_scale_inv": scale}
    value = times(weight.astype(np.float32), scale, (1, 4, 4))
    return {"quant_method": "fp8", "weight_block_size": [4, 4]}, stored, {"experts.gate_up_proj": value}


def exponents(name: str, *shape: int) -> np.ndarray:
    return drawn(name).integers(110, 140, shape, np.uint8).view(ml_dtypes.float8_e8m0fnu)


DEEPSEEK_V4 = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [4, 6], "expert_dtype": "fp4"}


def deepseek_v4() -> Case:
    weight, scale = floats8("w", 9, 13), exponents("s", 3, 3)
    value = times(weight.astype(np.float32), scale.astype(np.float32), (4, 6))
    return {**DEEPSEEK_V4}, {"a.weight": weight, "a.scale": scale}, {"a.weight": value}


def deepseek_v4_experts() -> Case:
    code, scale = codes("c", 4, 5, 64), exponents("s", 5, 2)
    value = times(np.array(E2M1)[code], scale.astype(np.float32), (1, 32))
    return {**DEEPSEEK_V4}, {"a.weight": pairs(code).view(np.int8), "a.scale": scale}, {"a.weight": value}


def mxfp4() -> Case:
    blocks = codes("b", 8, 3, 5, 2, 16).astype(np.uint8)
    exponents = drawn("e").integers(110, 140, (3, 5, 2), np.uint8)
    value = np.empty((3, 64, 5), np.float32)
    for expert, column, row in np.ndindex(value.shape):
        block, place = divmod(column, 32)
        code = blocks[expert, row, block, place // 2] >> (4 * (place % 2)) & 15
        value[expert, column, row] = E2M1[code] * 2.0 ** (int(exponents[expert, row, block]) - 127)
    return {"quant_method": "mxfp4"}, {"x_blocks": blocks, "x_scales": exponents}, {"x": value}


def compressed(weights: dict[str, Any], form: str, **config: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **config,
    }


def int_packed(
    bits: int = 4, size: int | None = 8, columns: int = 48, symmetric: bool = True, reordered: bool = False
) -> Case:
    """compressed-tensors' integers: groups, or a scale a row where there is no size."""
    rows, groups = 5, 1 if size is None else columns // size
    code, scale = codes("c", bits, rows, columns), scales("s", rows, groups, dtype=BFLOAT16)
    zero = codes("z", bits, rows, groups)
    stored = {
        "a.weight_packed": words(code, bits, 1),
        "a.weight_scale": scale,
        "a.weight_shape": np.array([rows, columns]),
    }
    of_column = np.arange(columns) // (size or columns)
    if reordered:
        of_column = drawn("g").permutation(of_column)
        stored["a.weight_g_idx"] = of_column.astype(np.int32)
    if not symmetric:
        stored["a.weight_zero_point"] = words(zero, bits, 0)
    else:
        zero[:] = 1 << bits - 1
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "group_size": size}
    weights |= {"strategy": "group" if size else "channel", "actorder": "group" if reordered else None}
    value = times(code, scale[:, of_column].astype(np.float32), (1, 1), zero[:, of_column])
    return compressed(weights, "pack-quantized"), stored, {"a.weight": value}


def int8(symmetric: bool) -> Case:
    weight, scale = drawn("w").integers(-128, 128, (6, 10), np.int8), scales("s", 6, 1, dtype=BFLOAT16)
    zero = drawn("z").integers(-128, 128, (6, 1), np.int8)
    stored = {"a.weight": weight, "a.weight_scale": scale} | ({} if symmetric else {"a.weight_zero_point": zero})
    weights = {"num_bits": 8, "type": "int", "symmetric": symmetric, "strategy": "channel"}
    value = times(weight.astype(int), scale.astype(np.float32), (1, 10), None if symmetric else zero.astype(int))
    return compressed(weights, "int-quantized"), stored, {"a.weight": value}


def float_quantized(strategy: str, shape: tuple[int, ...], block: tuple[int, int], **weights: Any) -> Case:
    weight, scale = floats8("w", 8, 12), scales("s", *shape, dtype=BFLOAT16)
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, **weights}
    counts = (8 // block[0], 12 // block[1])
    value = times(weight.astype(np.float32), scale.astype(np.float32).reshape(counts), block)
    stored = {"a.weight": weight, "a.weight_scale": scale}
    return compressed(weights, "float-quantized"), stored, {"a.weight": value}


def mxfp8() -> Case:
    weight, exponents = floats8("w", 4, 64), drawn("e").integers(110, 140, (4, 2), np.uint8)
    weights = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}
    value = times(weight.astype(np.float32), np.exp2(exponents.astype(np.float32) - 127), (1, 32))
    stored = {"a.weight": weight, "a.weight_scale": exponents}
    return compressed(weights, "mxfp8-quantized"), stored, {"a.weight": value}


def fp4_by_compressed_tensors() -> Case:
    code, scale = codes("c", 4, 5, 64), scales("s", 5, 4, dtype=E4M3)
    whole = np.array([3500], np.float32)
    stored = {"a.weight_packed": pairs(code), "a.weight_scale": scale, "a.weight_global_scale": whole}
    stored["a.input_global_scale"] = np.ones(1, np.float32)
    weights = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
    value = times(np.array(E2M1)[code], scale.astype(np.float32) / whole, (1, 16))
    return compressed(weights, "nvfp4-pack-quantized"), stored, {"a.weight": value}


def mxfp4_by_compressed_tensors() -> Case:
    code, exponents = codes("c", 4, 5, 64), drawn("e").integers(110, 140, (5, 2), np.uint8)
    weights = {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}
    value = times(np.array(E2M1)[code], np.exp2(exponents.astype(np.float32) - 127), (1, 32))
    stored = {"a.weight_packed": pairs(code), "a.weight_scale": exponents}
    return compressed(weights, "mxfp4-pack-quantized"), stored, {"a.weight": value}


def fp4_by_modelopt(*stack: int) -> Case:
    code, scale = codes("c", 4, *stack, 5, 64), scales("s", *stack, 5, 4, dtype=E4M3)
    whole = scales("t", *stack) / 1000
    stored = {"a.weight": pairs(code), "a.weight_scale": scale, "a.weight_scale_2": whole.astype(np.float32)}
    both = scale.astype(np.float32) * stored["a.weight_scale_2"][..., None, None]
    value = times(np.array(E2M1)[code], both, (*(1,) * len(stack), 1, 16))
    config = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    group = {"weights": {"num_bits": 4, "type": "float", "group_size": 16}, "targets": ["Linear"]}
    return {**config, "config_groups": {"group_0": group}}, stored, {"a.weight": value}


def fp8_by_modelopt(algorithm: str, shape: tuple[int, ...], block: tuple[int, int]) -> Case:
    weight, scale = floats8("w", 8, 12), scales("s", *shape)
    value = times(weight.astype(np.float32), scale.reshape(8 // block[0], 12 // block[1]), block)
    config = {"quant_method": "modelopt", "quant_algo": algorithm, "group_size": block[0]}
    return config, {"a.weight": weight, "a.weight_scale": scale}, {"a.weight": value}


def gptq(bits: int = 4, size: int = 8, form: str = "gptq", reordered: bool = False, index: bool = True) -> Case:
    inputs, outputs, added = 64, 32, 1 if form == "gptq" else 0
    groups = 1 if size == -1 else -(-inputs // size)
    code, zero = codes("c", bits, inputs, outputs), codes("z", bits, groups, outputs)
    scale = scales("s", groups, outputs, dtype=np.float16)
    of_row = np.arange(inputs) // (inputs if size == -1 else size)
    if reordered:
        of_row = drawn("g").permutation(of_row)
    stored = {"a.qweight": words(code, bits, 0), "a.qzeros": words(zero, bits, 1), "a.scales": scale}
    if index:
        stored["a.g_idx"] = of_row.astype(np.int32)
    value = times(code, scale[of_row].astype(np.float32), (1, 1), zero[of_row] + added)
    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": reordered, "sym": False}
    return {**config, "checkpoint_format": form}, stored, {"a.weight": value.T}


def awq(size: int = 8) -> Case:
    inputs, outputs = 24, 16
    groups = 1 if size == -1 else inputs // size
    code, zero = codes("c", 4, inputs, outputs), codes("z", 4, groups, outputs)
    scale = scales("s", groups, outputs, dtype=np.float16)
    stored = {"a.qweight": words(code, 4, 1, AWQ_ORDER), "a.qzeros": words(zero, 4, 1, AWQ_ORDER), "a.scales": scale}
    value = times(code, scale.astype(np.float32), (inputs // groups, 1), zero)
    config = {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True}
    return config, stored, {"a.weight": value.T}


CASES: dict[str, Callable[[], Case]] = {
    "fp8": fp8,
    "fp8, whole blocks": functools.partial(fp8, 8, 12),
    "fp8, less than a block": functools.partial(fp8, 3, 5),
    "fp8, e5m2": functools.partial(fp8, dtype=ml_dtypes.float8_e5m2),
    "fp8, blocks not named": lambda: (
        {"quant_method": "fp8"},
        *fp8(130, 140, (128, 128))[1:],
    ),
    "fp8 of the whole": fp8_of_the_whole,
    "fp8 of the whole, [1]": functools.partial(fp8_of_the_whole, (1,)),
    "fp8 of the whole, null": functools.partial(fp8_of_the_whole, (1, 1), weight_block_size=None),
    "fp8 by row": fp8_by_row,
    "fp8, experts in a stack": fp8_experts,
    "fp8, DeepSeek V4": deepseek_v4,
    "fp4, DeepSeek V4": deepseek_v4_experts,
    "mxfp4": mxfp4,
    **{f"int{bits}": functools.partial(int_packed, bits, columns=64) for bits in range(1, 9)},
    **{f"int{bits}, zero points": functools.partial(int_packed, bits, symmetric=False) for bits in (3, 4, 8)},
    "int4 by row": functools.partial(int_packed, 4, None, 13),
    "int3 by row": functools.partial(int_packed, 3, None, 45, False),
    "int4, act-order": functools.partial(int_packed, reordered=True),
    "int4, act-order, zero points": functools.partial(int_packed, symmetric=False, reordered=True),
    "int8": functools.partial(int8, True),
    "int8, zero points": functools.partial(int8, False),
    "float of the whole": functools.partial(float_quantized, "tensor", (1,), (8, 12)),
    "float by row": functools.partial(float_quantized, "channel", (8, 1), (1, 12)),
    "float in groups": functools.partial(float_quantized, "group", (8, 3), (1, 4), group_size=4),
    "float in squares": functools.partial(float_quantized, "block", (2, 2), (4, 6), block_structure=[4, 6]),
    "float in squares, old": functools.partial(float_quantized, "block", (2, 2), (4, 6), block_structure="4x6"),
    "mxfp8": mxfp8,
    "nvfp4 by compressed-tensors": fp4_by_compressed_tensors,
    "mxfp4 by compressed-tensors": mxfp4_by_compressed_tensors,
    "nvfp4 by modelopt": fp4_by_modelopt,
    "nvfp4 by modelopt, experts in a stack": functools.partial(fp4_by_modelopt, 3),
    "fp8 by modelopt": functools.partial(fp8_by_modelopt, "FP8", (), (8, 12)),
    "fp8 by modelopt, by row": functools.partial(fp8_by_modelopt, "FP8_PER_CHANNEL_PER_TOKEN", (8,), (1, 12)),
    "fp8 by modelopt, squares": functools.partial(fp8_by_modelopt, "FP8_PB_WO", (2, 1, 3, 1), (4, 4)),
    **{f"gptq, {bits} bits": functools.partial(gptq, bits) for bits in (2, 3, 4, 8)},
    "gptq, second form": functools.partial(gptq, form="gptq_v2"),
    "gptq, one group": functools.partial(gptq, size=-1),
    "gptq, act-order": functools.partial(gptq, reordered=True),
    "gptq, no index": functools.partial(gptq, index=False),
    "gptq, a shorter last group": functools.partial(gptq, size=24, index=False),
    "awq": awq,
    "awq, one group": functools.partial(awq, -1),
}


def found(config: dict[str, Any], stored: Mapping[str, np.ndarray]) -> tuple[Mapping[str, Packed], Arrays]:
    scheme = read_scheme({"quantization_config": config}, "config.json")
    source = Arrays(stored)
    assert scheme is not None
    return find_packed(scheme, source.tensors, source.read, "model"), source


def whole(tensor: Packed, source: Arrays) -> np.ndarray:
    return tensor.read(source.read, tuple(slice(0, size) for size in tensor.info.shape), np.empty)


def checked(config: dict[str, Any], stored: Mapping[str, np.ndarray]) -> None:
    packed, source = found(config, stored)
    for tensor in packed.values():
        tensor.check(source.read)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_every_box(case: Callable[[], Case], data: st.DataObject) -> None:
    config, stored, values = case()
    packed, source = found(config, stored)
    assert packed.keys() == values.keys()
    for name, value in values.items():
        tensor = packed[name]
        tensor.check(source.read)
        assert tensor.info.shape == value.shape
        assert {*tensor.parts} | of_activations(stored) == {*stored}
        box = data.draw(slices(value.shape))
        np.testing.assert_array_equal(tensor.read(source.read, box, np.empty), value[box])


def test_the_largest_and_smallest_exponents() -> None:
    config, stored, _ = mxfp4()
    stored["x_blocks"][:] = 0x22
    stored["x_scales"][...] = np.array([0, 254], np.uint8)
    packed, source = found(config, stored)
    value = whole(packed["x"], source)
    np.testing.assert_array_equal(value[0, ::32, 0].astype(np.float32), np.float32([2.0**-127, 2.0**127]))


@pytest.mark.parametrize(
    ("case", "box", "nbytes"),
    [
        (functools.partial(fp8, 400, 600), (slice(40, 44), slice(60, 66)), 24 + 4),
        (functools.partial(int_packed, symmetric=False), (slice(1, 3), slice(16, 24)), 2 * 4 + 2 * 2 + 4),
        (functools.partial(gptq, index=False), (slice(8, 16), slice(8, 16)), 8 * 4 + 8 * 2 + 4),
        (awq, (slice(8, 16), slice(8, 16)), 8 * 4 + 8 * 2 + 4),
        (fp4_by_modelopt, (slice(1, 2), slice(17, 19)), 2 + 1 + 4),
    ],
)
def test_only_the_scales_and_codes_of_the_box_are_read(
    case: Callable[[], Case], box: tuple[slice, ...], nbytes: int
) -> None:
    config, stored, values = case()
    packed, source = found(config, stored)
    (name,) = values
    before = source.bytes_read
    packed[name].read(source.read, box, np.empty)
    assert source.bytes_read - before == nbytes


def test_large_boxes_are_unpacked_in_pieces() -> None:
    for case in (functools.partial(fp8, 300, 400), functools.partial(int_packed, columns=1 << 15)):
        config, stored, values = case()
        packed, source = found(config, stored)
        np.testing.assert_array_equal(whole(packed["a.weight"], source), values["a.weight"])


def of_modelopt(folder: Path, quantization: dict[str, Any]) -> Path:
    """NVIDIA's golden case as older releases stored it, with another file to say how it is packed."""
    model = checkpoints.make("llama_nvfp4", folder)
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))
    (model / "hf_quant_config.json").write_text(json.dumps({"quantization": quantization}))
    return model


def test_another_file_may_say_how_weights_are_packed(tmp_path: Path) -> None:
    expected = lazyload.plan(checkpoints.make("llama_nvfp4", tmp_path / "new"), cache_dir=tmp_path / "cache")
    quantization = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head", "model.embed*"]}
    found = lazyload.plan(of_modelopt(tmp_path / "old", quantization), cache_dir=tmp_path / "cache")
    assert found.parameters == expected.parameters
    assert {name.rsplit(".", 1)[1] for name in found.skipped} == {"input_scale", "k_scale", "v_scale"}
    # It is a part of what the cache goes by.
    other = lazyload.plan(of_modelopt(tmp_path / "other", {**quantization, "x": 1}), cache_dir=tmp_path / "cache")
    assert other.key != found.key


def test_what_is_told_of_groups_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    model = checkpoints.make("qwen2_gptq", tmp_path)
    path = next(model.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".g_idx"))
    save_file({**tensors, name: tensors[name] + 1}, path)
    with pytest.raises(CorruptSourceError, match=rf"{name} says that an input belongs to group"):
        lazyload.convert(model, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("data-*"))


W4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8}
NAMES = ("model.layers.0.self_attn.q_proj", "trunk.layers.10.mlp.down_proj")
W8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}


@pytest.mark.parametrize("name", ["a", *NAMES])
@pytest.mark.parametrize(
    ("groups", "bits"),
    [
        ({"0": (["Linear"], W4)}, 4),
        ({"0": (["Linear"], W4), "1": ([r"re:.*\.(q|down)_proj$"], {**W4, "num_bits": 8}), "2": (["a"], W8)}, 8),
        ({"0": (["re:.*"], W4), "1": (["Linear"], W8)}, 4),
        ({"0": (["re:.*", "Linear"], W8), "1": (["a", *NAMES], W4)}, 4),
        ({"0": (["Embedding", "re:model.embed"], W8), "1": (["re:a", "re:(model|trunk).layers"], W4)}, 4),
    ],
)
def test_groups_have_targets(name: str, groups: dict[str, Any], bits: int) -> None:
    size = 8 if bits == 4 or name != "a" else None
    _, stored, values = int_packed(bits, size)
    config = compressed(W4, "mixed-precision")
    config["config_groups"] = {key: {"targets": targets, "weights": of} for key, (targets, of) in groups.items()}
    packed, source = found(config, {key.replace("a.", f"{name}.", 1): array for key, array in stored.items()})
    np.testing.assert_array_equal(whole(packed[f"{name}.weight"], source), values["a.weight"])


LEFT_ALONE = {
    "fp8, a suffix": (fp8, {"modules_to_not_convert": ["gate"]}, "model.layers.0.mlp.gate"),
    "fp8, a pattern": (fp8, {"ignored_layers": ["model.layers.*.self_attn"]}, "model.layers.0.self_attn.q_proj"),
    "compressed-tensors, a name": (int_packed, {"ignore": ["model.b"]}, "model.b"),
    "compressed-tensors, a pattern": (int_packed, {"ignore": [r"re:.*\.b"]}, "model.b"),
    "compressed-tensors, a class": (int_packed, {"ignore": ["Linear"]}, "model.b"),
    "modelopt": (fp4_by_modelopt, {"ignore": ["lm_head", "model.layers.0*"]}, "model.layers.0.mlp.up_proj"),
    "gptq": (gptq, {"dynamic": {r"-:.*\.b": {}}}, "model.b"),
    "awq": (awq, {"modules_to_not_convert": ["model.b"]}, "model.b"),
}


@pytest.mark.parametrize(("case", "change", "name"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_a_scheme_leaves_alone_is_read_as_it_is(
    case: Callable[[], Case], change: dict[str, Any], name: str
) -> None:
    config, stored, _ = case()
    packed, _ = found(config, {**stored, f"{name}.weight": np.ones((4, 4), BFLOAT16)})
    assert packed.keys() == {"a.weight"}
    config |= change
    if "Linear" not in change.get("ignore", []):
        packed, _ = found(config, {**stored, f"{name}.weight": np.ones((4, 4), BFLOAT16)})
        assert packed.keys() == {"a.weight"}
    if case is awq:
        # Its entries mean what their program takes them for; the tensors say it as well.
        return
    contradicting = {key.replace("a.", f"{name}.", 1): array for key, array in stored.items()}
    with pytest.raises(ConfigError, match=rf"{re.escape(name)}[\s\S]*one of them is wrong"):
        found(config, contradicting)


def test_a_code_of_8_bits_in_a_module_left_alone_is_a_number() -> None:
    config, _, _ = fp8()
    assert found({**config, "modules_to_not_convert": ["b"]}, {"b.weight": floats8("w", 4, 4)})[0] == {}


def test_what_a_name_begins_or_ends_with_is_not_left_alone_by_another() -> None:
    config, stored, _ = fp8()
    config |= {"modules_to_not_convert": ["model.layers.1", "mlp.gate", "model.layers.*.mlp.up"]}
    for name in ("model.layers.10.mlp.gate_proj", "model.layers.0.mlp.up_proj"):
        packed, _ = found(config, {key.replace("a.", f"{name}.", 1): array for key, array in stored.items()})
        assert packed.keys() == {f"{name}.weight"}


def test_modules_of_gptq_may_differ() -> None:
    config, stored, values = gptq(8, 16)
    config |= {"bits": 4, "group_size": 8, "dynamic": {"b": {"bits": 2}, r"+:a": {"bits": 8, "group_size": 16}}}
    packed, source = found(config, stored)
    np.testing.assert_array_equal(whole(packed["a.weight"], source), values["a.weight"])


def test_modules_of_modelopt_may_differ() -> None:
    _, four, four_value = fp4_by_modelopt()
    _, eight, eight_value = fp8_by_modelopt("FP8", (), (8, 12))
    layers = {"a": {"quant_algo": "NVFP4", "group_size": 16}, "b": {"quant_algo": "FP8"}}
    config = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    source = Arrays(four | {key.replace("a.", "b."): array for key, array in eight.items()})
    packed = find_packed(read_modelopt(config, "hf_quant_config.json"), source.tensors, source.read, "model")
    for name, value in (("a", four_value), ("b", eight_value)):
        np.testing.assert_array_equal(whole(packed[f"{name}.weight"], source), value["a.weight"])


@pytest.mark.parametrize(
    ("scheme", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"load_in_8bit": True}, "bitsandbytes"),
        *[({"quant_method": name}, name) for name in ("aqlm", "hqq", "eetq", "torchao", "fp_quant", "gguf", "quark")],
        ({"quant_method": "somebody's"}, "somebody's"),
        ({"bits": 4}, "unnamed"),
        ({**gptq()[0], "bits": 5}, "bits = 5"),
        ({**gptq()[0], "checkpoint_format": "marlin"}, "marlin"),
        ({**gptq()[0], "checkpoint_format": None, "is_marlin_format": True}, "marlin"),
        ({**awq()[0], "bits": 8}, "bits = 8"),
        ({**awq()[0], "version": "gemv"}, "gemv"),
        (compressed(W4, "marlin-24"), "marlin-24"),
        (compressed(W4, "pack-quantized", sparsity_config={"format": "sparse-24-bitmask"}), "sparse-24-bitmask"),
        (compressed(W4, "pack-quantized", transform_config={"config_groups": {"u": {}}}), "transform_config"),
        (compressed({**W4, "num_bits": 6, "type": "float"}, "mxfp6-pack-quantized"), "num_bits = 6"),
        (compressed({**W4, "strategy": "attn_head"}, "pack-quantized"), "attn_head"),
        (compressed({**W4, "strategy": "tensor_group"}, "pack-quantized"), "tensor_group"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
    ],
)
def test_other_schemes_are_refused_by_name(scheme: dict[str, Any], named: str) -> None:
    for config in ({"quantization_config": scheme}, {"text_config": {"quantization_config": scheme}}):
        with pytest.raises(
            UnsupportedFormatError, match=rf"quantization_config[\s\S]*{named}[\s\S]*[Uu]se (a|the) rep"
        ):
            read_scheme(config, "config.json")


@pytest.mark.parametrize(
    ("scheme", "complaint"),
    [
        *[({"quant_method": "fp8", "weight_block_size": block}, "weight_block_size") for block in ([128], [0, 128])],
        *[({"quant_method": "fp8", "weight_block_size": block}, "weight_block_size") for block in ("128", [1.5, 2])],
        ({"quant_method": "fp8", "modules_to_not_convert": ["("]}, "modules_to_not_convert"),
        ({"quant_method": "fp8", "modules_to_not_convert": [7]}, "modules_to_not_convert"),
        ({"quant_method": "gptq"}, "'bits'"),
        ({**gptq()[0], "bits": "four"}, "bits"),
        ({**gptq()[0], "group_size": 0}, "group_size"),
        ({**gptq()[0], "dynamic": {"(": {}}}, "dynamic"),
        ({**awq()[0], "group_size": -2}, "group_size"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "config_groups"),
        (compressed(W4, "pack-quantized", ignore=["re:("]), "ignore"),
        (compressed({**W4, "group_size": None}, "pack-quantized"), "group_size"),
        (compressed({**W4, "strategy": "block"}, "pack-quantized"), "block_structure"),
        (compressed({**W4, "strategy": "block", "block_structure": "4by4"}, "pack-quantized"), "block_structure"),
        ("fp8", "is no object"),
    ],
)
def test_fields_without_a_meaning(scheme: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=rf"quantization_config[\s\S]*{complaint}"):
        read_scheme({"quantization_config": scheme}, "config.json")


def test_what_packs_experts_may_stand_beside_the_scheme() -> None:
    config, stored, values = deepseek_v4_experts()
    del config["expert_dtype"]
    with pytest.raises(CorruptSourceError, match=r"a\.weight is of int8"):
        found(config, stored)
    scheme, source = read_scheme({"expert_dtype": "fp4", "quantization_config": config}, "config.json"), Arrays(stored)
    assert scheme is not None
    assert find_packed(scheme, source.tensors, source.read, "model").keys() == values.keys()
    with pytest.raises(ConfigError, match="expert_dtype = 'int3' is not implemented"):
        read_scheme({"expert_dtype": "int3", "quantization_config": config}, "config.json")


def test_plain_checkpoints_have_no_scheme() -> None:
    assert read_scheme({"quantization_config": None, "text_config": {}}, "config.json") is None


def gone(name: str) -> tuple[dict[str, Any], str]:
    return {name: None}, rf"{name} is missing"


BROKEN: list[tuple[Callable[[], Case], dict[str, Any], str]] = [
    (fp8, *gone("a.weight_scale_inv")),
    (fp8, {"a.weight_scale_inv": np.zeros((2, 3), np.float32)}, r"must be \[3, 3\], not \[2, 3\]"),
    (fp8, {"a.weight_scale_inv": np.zeros((3, 3), np.int32)}, "weight_scale_inv is of int32"),
    (fp8, {"a.weight": np.zeros((9, 13), np.int8)}, "a.weight is of int8"),
    (deepseek_v4_experts, {"a.scale": np.zeros((5, 3), np.uint8)}, r"a.scale must be \[5, 2\], not \[5, 3\]"),
    (deepseek_v4_experts, {"a.scale": np.zeros((5, 2), np.int32)}, "a.scale is of int32"),
    (deepseek_v4, {"a.scale": None}, "a.weight_scale_inv is missing"),
    (fp8_of_the_whole, {"a.weight_scale": np.zeros(7, np.float32)}, r"a.weight_scale must be"),
    (mxfp4, *gone("x_scales")),
    (mxfp4, {"x_scales": np.zeros((3, 5, 3), np.uint8)}, r"must be \[3, 5, 2\], not \[3, 5, 3\]"),
    (mxfp4, {"x_scales": np.zeros((3, 5, 2), np.float32)}, "x_scales is of float32"),
    (mxfp4, {"x_blocks": np.zeros((3, 5, 2, 8), np.uint8)}, r"x_blocks is \[3, 5, 2, 8\]"),
    (int_packed, *gone("a.weight_scale")),
    (int_packed, {"a.weight_scale": np.zeros((4, 6), np.float32)}, r"must be \[5, 6\], not \[4, 6\]"),
    (int_packed, {"a.weight_scale": np.zeros((5, 7), np.float32)}, r"does not hold the 56 inputs"),
    (int_packed, {"a.weight_packed": np.zeros((5, 6), np.int64)}, "weight_packed is of int64"),
    (int_packed, {"a.weight_shape": np.array([5, 47])}, r"weight_shape says \[5, 47\]"),
    (functools.partial(int_packed, 4, None), *gone("a.weight_shape")),
    (functools.partial(int_packed, symmetric=False), *gone("a.weight_zero_point")),
    (
        functools.partial(int_packed, symmetric=False),
        {"a.weight_zero_point": np.zeros((5, 6), np.int32)},
        r"weight_zero_point must be \[1, 6\]",
    ),
    (functools.partial(int_packed, reordered=True), *gone("a.weight_g_idx")),
    (functools.partial(int_packed, reordered=True), {"a.weight_g_idx": np.full(48, 6, np.int32)}, "belongs to group 6"),
    (functools.partial(int_packed, reordered=True), {"a.weight_g_idx": np.full(48, -1, np.int32)}, "to group -1"),
    (fp4_by_compressed_tensors, *gone("a.weight_global_scale")),
    (fp4_by_compressed_tensors, {"a.weight_scale": np.zeros((5, 3), E4M3)}, r"must be \[5, 4\], not \[5, 3\]"),
    (fp4_by_compressed_tensors, {"a.weight_packed": np.zeros((5, 32), np.int32)}, "weight_packed is of int32"),
    (fp4_by_modelopt, *gone("a.weight_scale_2")),
    (fp4_by_modelopt, *gone("a.weight_scale")),
    (fp4_by_modelopt, {"a.weight": np.zeros((5, 32), np.int8)}, "a.weight is of int8"),
    (gptq, *gone("a.scales")),
    (gptq, *gone("a.qzeros")),
    (functools.partial(gptq, reordered=True), *gone("a.g_idx")),
    (gptq, {"a.scales": np.zeros((4, 32), np.float16)}, r"a.scales must be \[8, 32\], not \[4, 32\]"),
    (gptq, {"a.qzeros": np.zeros((8, 32), np.int32)}, r"a.qzeros must be \[8, 4\], not \[8, 32\]"),
    (gptq, {"a.qweight": np.zeros((8, 32), np.float16)}, "a.qweight is of float16"),
    (gptq, {"a.g_idx": np.zeros(63, np.int32)}, r"a.g_idx must be \[64\]"),
    (gptq, {"a.g_idx": np.full(64, 8, np.int32)}, "belongs to group 8, but .* 8 groups"),
    (gptq, {"a.weight": np.zeros((32, 64), np.float16)}, "a.weight is stored as it is, and packed"),
    (awq, *gone("a.qzeros")),
    (awq, {"a.scales": np.zeros((3, 8), np.float16)}, r"a.scales must be \[3, 16\], not \[3, 8\]"),
]


@pytest.mark.parametrize(("case", "change", "complaint"), BROKEN)
def test_parts_that_do_not_fit(case: Callable[[], Case], change: dict[str, Any], complaint: str) -> None:
    config, stored, _ = case()
    stored = {name: array for name, array in {**stored, **change}.items() if array is not None}
    with pytest.raises(CorruptSourceError, match=complaint) as caught:
        checked(config, stored)
    if "x_blocks is" not in complaint and "weight_shape says" not in complaint and "as it is" not in complaint:
        assert "config" in str(caught.value)


@pytest.mark.parametrize(
    "weights",
    [{"strategy": "block", "block_structure": [4, 4]}, {"strategy": "tensor", "group_size": None, "symmetric": False}],
)
def test_integers_with_scales_of_another_kind_are_refused(weights: dict[str, Any]) -> None:
    _, stored, _ = int_packed()
    if weights["strategy"] == "tensor":
        stored["a.weight_scale"] = scales("s", 1)
    with pytest.raises(UnsupportedFormatError, match=rf"a.weight_packed[\s\S]*{weights['strategy']}"):
        found(compressed({**W4, **weights}, "pack-quantized"), stored)


@pytest.mark.parametrize(
    ("name", "is_of_activations"),
    [
        *[
            (f"model.layers.0.mlp.up_proj.{name}", True)
            for name in ("input_scale", "activation_scale", "input_scale_ub")
        ],
        *[
            (f"a.{name}", True)
            for name in ("input_global_scale", "input_zero_point", "output_scale", "output_zero_point")
        ],
        *[(f"model.layers.0.self_attn.{name}", True) for name in ("k_scale", "v_scale", "q_scale", "k_proj.k_scale")],
        ("model.layers.0.mlp.experts.gate_up_proj_input_scale", True),
        *[
            (f"a.{name}", False)
            for name in ("weight_scale", "weight_global_scale", "weight_zero_point", "scale", "weight")
        ],
        *[(f"a.{name}", False) for name in ("scales", "k_proj.weight_scale", "q_norm.scale", "router_scale")],
    ],
)
def test_what_activations_are_scaled_by(name: str, is_of_activations: bool) -> None:
    assert (name in of_activations([name])) == is_of_activations


def test_no_tensor_of_an_unpacked_model_is_taken_for_a_scale_of_activations() -> None:
    specs = [json.loads(path.read_text()) for path in (checkpoints.GOLDEN / "specs").glob("*.json")]
    plain = [spec for spec in specs if "quantization_config" not in json.dumps(spec["config"])]
    assert len(plain) > 60
    assert [of_activations(spec["tensors"]) for spec in plain] == [frozenset()] * len(plain)


@pytest.mark.parametrize("case", [int_packed, fp4_by_compressed_tensors, fp4_by_modelopt, gptq, awq])
def test_a_group_size_that_does_not_divide(case: Callable[[], Case]) -> None:
    config, stored, _ = case()
    groups = config.get("config_groups", {"": {"weights": config}})
    for group in groups.values():
        group["weights"]["group_size"] = 10
    with pytest.raises(CorruptSourceError, match=r"group_size = 10"):
        found(config, stored)
