"""Packed weights: FP8 with a scale a block, and MXFP4, as plain tensors that unpack just the boxes asked for.

FP8 is DeepSeek V3's form (https://huggingface.co/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md): `X.weight` in float8 and
`X.weight_scale_inv` with one number for each block of `weight_block_size`; the value is their product. MXFP4 is
gpt-oss's form of the OCP microscaling format (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-
spec-final-pdf, section 5): `X_blocks` holds two codes of 4 bits a byte, the low one first, `X_scales` a power of two
with bias 127 for every 32 values; both are stored `[expert, out, in / 32, ...]` and used as `[expert, in, out]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.layouts.source import Box, TensorInfo

Read = Callable[[str, Box], np.ndarray]
Empty = Callable[[Sequence[int], np.dtype], np.ndarray]

_FLOAT32 = np.dtype(np.float32)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FP8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
_FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_FP4_PAIRS = np.stack([np.tile(_FP4_VALUES, 16), np.repeat(_FP4_VALUES, 16)], axis=-1).view(np.uint64)[:, 0]
"""The two values of every byte, the low code first, as one number: NumPy gathers it four times as fast as a pair."""

_MX_BLOCK = 32
_CODES_AT_ONCE = 1 << 15
"""NumPy makes eight bytes of each code before it looks its value up."""
_INSTEAD = {
    "gptq": "a repository of the unpacked weights",
    "awq": "a repository of the unpacked weights",
    "bitsandbytes": "the repository that the weights were quantised from",
    "compressed-tensors": "the repository that the weights were quantised from",
    "fbgemm_fp8": "the repository that the weights were quantised from",
}


class Packed(Protocol):
    """A tensor that is stored as several."""

    @property
    def info(self) -> TensorInfo:
        """Shape and dtype of the unpacked tensor."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it consists of."""

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks one box.

        Args:
            read: Reads a box of a stored tensor, into the memory of the one before.
            box: The box of the unpacked tensor.
            empty: Makes the array.
        """


@dataclass(frozen=True)
class BlockScaled:
    """A matrix in FP8 with a scale for each block of it.

    Attributes:
        weight: The stored tensor.
        scale: The stored scales.
        shape: The matrix's shape.
        dtype: The dtype that it is stored in.
        block: Rows and columns of a block.
    """

    weight: str
    scale: str
    shape: tuple[int, int]
    dtype: np.dtype
    block: tuple[int, int]

    @property
    def info(self) -> TensorInfo:
        """The matrix in float32."""
        return TensorInfo(self.shape, _FLOAT32)

    @property
    def parts(self) -> tuple[str, ...]:
        """Matrix and scales."""
        return (self.weight, self.scale)

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks a box, with the scales of the blocks that it meets."""
        blocks = [(cut.start // size, -(-cut.stop // size)) for cut, size in zip(box, self.block, strict=True)]
        scales = read(self.scale, tuple(slice(*limits) for limits in blocks)).astype(np.float32)
        codes = read(self.weight, box).view(np.uint8)
        table, (rows, columns) = _byte_values(self.dtype), box
        skipped = columns.start - blocks[1][0] * self.block[1]
        per_column = np.repeat(scales, self.block[1], axis=1)[:, skipped : skipped + codes.shape[1]]
        values = empty(codes.shape, _FLOAT32)
        for number, scale in enumerate(per_column, start=blocks[0][0]):
            first, last = (max(0, n * self.block[0] - rows.start) for n in (number, number + 1))
            np.multiply(table[codes[first:last]], scale, out=values[first:last])
        return values


@dataclass(frozen=True)
class Microscaled:
    """A stack of matrices in MXFP4.

    Attributes:
        blocks: The stored codes, `[expert, out, in / 32, 16]`.
        scales: The stored exponents, `[expert, out, in / 32]`.
        shape: Of the unpacked stack, `[expert, in, out]`.
    """

    blocks: str
    scales: str
    shape: tuple[int, int, int]

    @property
    def info(self) -> TensorInfo:
        """The stack in bfloat16, which all of its values are exact in: two digits times a power of two."""
        return TensorInfo(self.shape, _BFLOAT16)

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes and exponents."""
        return (self.blocks, self.scales)

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks a box, with the blocks along the inputs that it meets; the result is a transposed view."""
        experts, inputs, outputs = box
        blocks = slice(inputs.start // _MX_BLOCK, -(-inputs.stop // _MX_BLOCK))
        exponents = read(self.scales, (experts, outputs, blocks)).astype(np.int32)
        codes = read(self.blocks, (experts, outputs, blocks, slice(0, _MX_BLOCK // 2)))
        stack, rows, count, _ = codes.shape
        flat = codes.reshape(stack * rows, count, _MX_BLOCK // 2)
        factors = np.ldexp(np.float32(1), exponents - 127).reshape(stack * rows, count, 1)
        values = empty((stack * rows, count * _MX_BLOCK), _BFLOAT16)
        step = max(1, _CODES_AT_ONCE * len(flat) // max(1, flat.size))
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            numbers = _FP4_PAIRS[flat[part]].view(np.float32)
            numbers *= factors[part]
            values[part] = numbers.reshape(len(numbers), count * _MX_BLOCK)
        skipped = inputs.start - blocks.start * _MX_BLOCK
        whole = values.reshape(stack, rows, count * _MX_BLOCK)
        return whole[:, :, skipped : skipped + inputs.stop - inputs.start].transpose(0, 2, 1)


def check_quantization(config: Mapping[str, Any], where: str) -> None:
    """Refuses what cannot be unpacked, from `config.json` alone.

    Raises:
        UnsupportedFormatError: The quantisation scheme is not read; the message names it and what to use instead.
        ConfigError: A field of the scheme is malformed.
    """
    scheme = _scheme(config)
    method = scheme.get("quant_method")
    if not scheme or method == "mxfp4":
        return
    if method != "fp8":
        instead = _INSTEAD.get(str(method), "a repository of the unpacked weights")
        raise UnsupportedFormatError(
            f"{where}: weights packed by {method!r} (quantization_config) are not read; there are fp8 in blocks and "
            f"mxfp4. Use {instead}"
        )
    block = scheme.get("weight_block_size")
    if block is None:
        raise UnsupportedFormatError(
            f"{where}: FP8 weights without weight_block_size (quantization_config) are not read; use the repository "
            "that the weights were quantised from"
        )
    is_pair = isinstance(block, list) and len(block) == 2
    if not is_pair or not all(isinstance(size, int) and size > 0 for size in block):
        raise ConfigError(f"{where}: quantization_config: weight_block_size = {block!r} is no pair of numbers")


def find_packed(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> dict[str, Packed]:
    """The packed tensors of a checkpoint, by the names of the unpacked ones.

    Args:
        config: The checkpoint's `config.json`.
        tensors: What is stored.
        where: What messages call the checkpoint.

    Raises:
        CorruptSourceError: A part of a packed tensor is missing, or of a shape that does not fit the others.
    """
    scheme = _scheme(config)
    found: dict[str, Packed] = {}
    if scheme.get("quant_method") == "fp8":
        for name, info in tensors.items():
            if info.dtype in _FP8 and len(info.shape) == 2:
                found[name] = _block_scaled(name, tensors, tuple(scheme["weight_block_size"]), where)
    elif scheme.get("quant_method") == "mxfp4":
        for name in tensors:
            if name.endswith("_blocks"):
                found[name.removesuffix("_blocks")] = _microscaled(name, tensors, where)
    return found


def _scheme(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of the packing; a multimodal model's may be its text model's."""
    text = config.get("text_config")
    own = config.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config")) or {}
    if not isinstance(own, dict):
        raise ConfigError(
            f"config.json: quantization_config = {own!r:.200} is no object, which says how weights are packed"
        )
    return own


def _block_scaled(name: str, tensors: Mapping[str, TensorInfo], block: Any, where: str) -> BlockScaled:
    shape, dtype = tensors[name]
    scale = f"{name}_scale_inv"
    blocks = tuple(-(-size // step) for size, step in zip(shape, block, strict=True))
    _require(scale, blocks, tensors, f"{where}: {name} is {list(shape)} in FP8")
    return BlockScaled(name, scale, (shape[0], shape[1]), dtype, block)


def _microscaled(name: str, tensors: Mapping[str, TensorInfo], where: str) -> Microscaled:
    shape, dtype = tensors[name]
    if len(shape) != 4 or shape[3] != _MX_BLOCK // 2 or dtype != np.uint8:
        raise CorruptSourceError(
            f"{where}: {name} is {list(shape)} of {dtype}, but MXFP4 codes are [expert, out, in / 32, 16] of uint8"
        )
    scales = f"{name.removesuffix('_blocks')}_scales"
    _require(scales, shape[:3], tensors, f"{where}: {name} is {list(shape)} in MXFP4")
    if tensors[scales].dtype != np.uint8:
        raise CorruptSourceError(f"{where}: {scales} is of {tensors[scales].dtype}, but MXFP4 exponents are of uint8")
    return Microscaled(name, scales, (shape[0], shape[2] * _MX_BLOCK, shape[1]))


def _require(scale: str, shape: tuple[int, ...], tensors: Mapping[str, TensorInfo], why: str) -> None:
    if scale not in tensors:
        raise CorruptSourceError(f"{why}, but its scales {scale} are missing; download the checkpoint again")
    if tensors[scale].shape != shape:
        raise CorruptSourceError(
            f"{why}, so its scales {scale} must be {list(shape)}, not {list(tensors[scale].shape)}"
        )


def _byte_values(dtype: np.dtype) -> np.ndarray:
    """The value of every byte in a dtype of 8 bits, float32."""
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
