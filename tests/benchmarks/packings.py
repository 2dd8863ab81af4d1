"""Checkpoints with packed weights: a Llama with random codes in all of its linear maps, in every packing."""

import json
import pathlib
from collections.abc import Callable

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.support.large import LLAMA, shapes_of

Stored = dict[str, np.ndarray]

RANDOM = np.random.default_rng(0)
BFLOAT16, E4M3 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
WEIGHTS = {"symmetric": True, "strategy": "group"}


def drawn(dtype: type, *shape: int) -> np.ndarray:
    """Random codes, or scales near one."""
    if np.issubdtype(dtype, np.integer):
        return np.frombuffer(RANDOM.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize), dtype).reshape(shape)
    return np.asarray(RANDOM.random(shape, np.float32) + 0.5).astype(dtype)


def plain(rows: int, columns: int) -> Stored:
    return {"weight": drawn(BFLOAT16, rows, columns)}


def fp8(rows: int, columns: int) -> Stored:
    scale = drawn(np.float32, -(-rows // 128), -(-columns // 128))
    return {"weight": drawn(E4M3, rows, columns), "weight_scale_inv": scale}


def fp4(rows: int, columns: int) -> Stored:
    exponents = RANDOM.integers(120, 130, (rows, columns // 32), np.uint8).view(ml_dtypes.float8_e8m0fnu)
    return {"weight": drawn(np.int8, rows, columns // 2), "scale": exponents}


def fp8_static(rows: int, columns: int) -> Stored:
    return {"weight": drawn(E4M3, rows, columns), "weight_scale": drawn(np.float32)}


def fp8_channel(rows: int, columns: int) -> Stored:
    return {"weight": drawn(E4M3, rows, columns), "weight_scale": drawn(np.float32, rows, 1)}


def int4(rows: int, columns: int, size: int = 128, zeros: bool = False, reordered: bool = False) -> Stored:
    found = {
        "weight_packed": drawn(np.int32, rows, columns // 8),
        "weight_scale": drawn(BFLOAT16, rows, columns // size),
        "weight_shape": np.array([rows, columns]),
    }
    if zeros:
        found["weight_zero_point"] = drawn(np.int32, rows // 8, columns // size)
    if reordered:
        found["weight_g_idx"] = RANDOM.permutation(np.arange(columns, dtype=np.int32) // size)
    return found


def int8(rows: int, columns: int) -> Stored:
    return {"weight": drawn(np.int8, rows, columns), "weight_scale": drawn(BFLOAT16, rows, 1)}


def nvfp4(rows: int, columns: int) -> Stored:
    found = {"weight": drawn(np.uint8, rows, columns // 2), "weight_scale": drawn(E4M3, rows, columns // 16)}
    return {**found, "weight_scale_2": drawn(np.float32)}


def nvfp4_compressed(rows: int, columns: int) -> Stored:
    found = {"weight_packed": drawn(np.uint8, rows, columns // 2), "weight_scale": drawn(E4M3, rows, columns // 16)}
    return {**found, "weight_global_scale": drawn(np.float32, 1)}


def gptq(rows: int, columns: int, bits: int = 4, reordered: bool = False) -> Stored:
    groups = np.arange(columns, dtype=np.int32) // 128
    return {
        "qweight": drawn(np.int32, columns * bits // 32, rows),
        "qzeros": drawn(np.int32, columns // 128, rows * bits // 32),
        "scales": drawn(np.float16, columns // 128, rows),
        "g_idx": RANDOM.permutation(groups) if reordered else groups,
    }


def awq(rows: int, columns: int) -> Stored:
    return {
        "qweight": drawn(np.int32, columns, rows // 8),
        "qzeros": drawn(np.int32, columns // 128, rows // 8),
        "scales": drawn(np.float16, columns // 128, rows),
    }


def compressed(form: str, **weights: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": {**WEIGHTS, **weights}}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"0": group}}
    return {**config, "ignore": ["lm_head"]}


def in_integers(bits: int, size: int, symmetric: bool = True, actorder: str | None = None) -> dict[str, object]:
    weights = {"num_bits": bits, "type": "int", "group_size": size, "symmetric": symmetric, "actorder": actorder}
    return compressed("pack-quantized", **weights)


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}

PACKINGS: dict[str, tuple[dict[str, object] | None, Callable[[int, int], Stored]]] = {
    "plain": (None, plain),
    "fp8, blocks of 128": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, fp8),
    "fp4, DeepSeek V4": ({"quant_method": "fp8", "expert_dtype": "fp4"}, fp4),
    "fp8, one scale": ({"quant_method": "fp8"}, fp8_static),
    "fp8, a scale a row": (
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        fp8_channel,
    ),
    "int8, a scale a row": (compressed("int-quantized", num_bits=8, type="int", strategy="channel"), int8),
    "int4, groups of 128": (in_integers(4, 128), int4),
    "int4, groups of 32": (in_integers(4, 32), lambda rows, columns: int4(rows, columns, 32)),
    "int4, zero points": (in_integers(4, 128, False), lambda rows, columns: int4(rows, columns, zeros=True)),
    "int4, act-order": (
        in_integers(4, 128, True, "group"),
        lambda rows, columns: int4(rows, columns, reordered=True),
    ),
    "nvfp4, ModelOpt": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, nvfp4),
    "nvfp4, compressed-tensors": (
        compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        nvfp4_compressed,
    ),
    "gptq": (GPTQ, gptq),
    "gptq, act-order": ({**GPTQ, "desc_act": True}, lambda rows, columns: gptq(rows, columns, reordered=True)),
    "gptq, 3 bits": ({**GPTQ, "bits": 3}, lambda rows, columns: gptq(rows, columns, 3)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, awq),
}


def write(folder: pathlib.Path, name: str, gigabytes: float, width: int = 2048) -> pathlib.Path:
    """Writes a Llama of about a size, unpacked, whose layers all hold the same numbers.

    Args:
        folder: Where to.
        name: The packing.
        gigabytes: The size of its layers.
        width: The size of its hidden states, a multiple of 512.
    """
    config, pack = PACKINGS[name]
    model = {**LLAMA, "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    shapes = shapes_of({**model, "num_hidden_layers": 1})
    layer = sum(2 * int(np.prod(shape)) for name, shape in shapes.items() if ".layers." in name)
    layers = max(1, round(gigabytes * 1e9 / layer))
    stored: Stored = {}
    arrays: Stored = {}
    for key, shape in shapes.items():
        module = key.removesuffix(".weight")
        if "_proj" in key:
            arrays |= {f"{module}.{part}": array for part, array in pack(*shape).items()}
        else:
            arrays[key] = drawn(BFLOAT16, *shape)
    for number in range(layers):
        stored |= {key.replace(".layers.0.", f".layers.{number}."): array for key, array in arrays.items()}
    folder.mkdir(parents=True)
    quantization = {"quantization_config": config} if config else {}
    described = {**model, "num_hidden_layers": layers, "torch_dtype": "bfloat16", **quantization}
    (folder / "config.json").write_text(json.dumps(described))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
