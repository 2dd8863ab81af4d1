"""MXFP4 as gpt-oss stores it: stacks of experts, of which 32 inputs share a power of two.

It is the OCP microscaling format (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf,
section 5): `X_blocks` holds two codes of 4 bits a byte, the low one first, `X_scales` an exponent with bias 127 for
every 32 values; both are stored `[expert, out, in / 32, ...]` and used as `[expert, in, out]`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lazyload.config_json.fields import Fields
from lazyload.errors import CorruptSourceError
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.packed.bits import FP4_PAIRS
from lazyload.sources.packed.packed import Empty, Packed
from lazyload.sources.packed.stored import Read, Stored

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_UINT8 = np.dtype(np.uint8)
_BLOCK = 32
_CODES_AT_ONCE = 1 << 15
"""NumPy makes eight bytes of each code before it looks its value up."""

_FIELD = "quantization_config: quant_method = 'mxfp4'"


@dataclass(frozen=True)
class MXFP4:
    """What `quantization_config` says: nothing more."""

    @classmethod
    def read(cls, config: Fields) -> "MXFP4":
        """Reads the config."""
        return cls()

    def find(self, stored: Stored) -> Mapping[str, Packed]:
        """Every `X_blocks`, as `X`."""
        return {
            name.removesuffix("_blocks"): _microscaled(name, stored)
            for name in stored.tensors
            if name.endswith("_blocks")
        }


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
        return TensorInfo(self.shape, _BFLOAT16, (0, 2, 1))

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes and exponents."""
        return (self.blocks, self.scales)

    def check(self, read: Read) -> None:
        """No value says where others stand."""

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks a box, with the blocks along the inputs that it meets; the result is a transposed view."""
        experts, inputs, outputs = box
        blocks = slice(inputs.start // _BLOCK, -(-inputs.stop // _BLOCK))
        exponents = read(self.scales, (experts, outputs, blocks)).astype(np.int32)
        codes = read(self.blocks, (experts, outputs, blocks, slice(0, _BLOCK // 2)))
        stack, rows, count, _ = codes.shape
        flat = codes.reshape(stack * rows, count, _BLOCK // 2)
        factors = np.ldexp(np.float32(1), exponents - 127).reshape(stack * rows, count, 1)
        values = empty((stack * rows, count * _BLOCK), _BFLOAT16)
        step = max(1, _CODES_AT_ONCE * len(flat) // max(1, flat.size))
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            numbers = FP4_PAIRS[flat[part]].view(np.float32)
            numbers *= factors[part]
            values[part] = numbers.reshape(len(numbers), count * _BLOCK)
        skipped = inputs.start - blocks.start * _BLOCK
        whole = values.reshape(stack, rows, count * _BLOCK)
        return whole[:, :, skipped : skipped + inputs.stop - inputs.start].transpose(0, 2, 1)


def _microscaled(name: str, stored: Stored) -> Microscaled:
    shape, dtype, _ = stored.tensors[name]
    if len(shape) != 4 or shape[3] != _BLOCK // 2 or dtype != _UINT8:
        raise CorruptSourceError(
            f"{stored.where}: {name} is {list(shape)} of {dtype}, but MXFP4 codes are [expert, out, in / 32, 16] of "
            "uint8"
        )
    scales = f"{name.removesuffix('_blocks')}_scales"
    stored.need(scales, (_UINT8,), name, _FIELD)
    stored.require_shape(scales, shape[:3], name, _FIELD)
    return Microscaled(name, scales, (shape[0], shape[2] * _BLOCK, shape[1]))
