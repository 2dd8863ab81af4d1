"""How compressed-tensors packs the weights of some modules: `weights` of one of its `config_groups`.

What there is (https://github.com/vllm-project/compressed-tensors, 0.20, `compressors/`):

* `pack-quantized`: `X.weight_packed`, integers of 1 to 8 bits packed along the inputs into words of 32, stored with
  `2 ** (bits - 1)` added; `X.weight_scale`, and where not symmetric `X.weight_zero_point`, stored in the same way but
  packed along the outputs; `X.weight_shape`; in older releases `X.weight_g_idx`, the group of each input (act-order).
* `int-quantized`, `float-quantized`, `naive-quantized`, `mxfp8-quantized`: `X.weight`, one byte a value.
* `nvfp4-pack-quantized`, `mxfp4-pack-quantized`: `X.weight_packed`, two 4-bit floats a byte, the low one first.
"""

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.sources.packed.bits import Integers
from lazyload.sources.packed.blocks import find_grid
from lazyload.sources.packed.four_bit_float import FourBitFloat
from lazyload.sources.packed.grouped_integers import GroupedIntegers, GroupIndex, ZeroPoints
from lazyload.sources.packed.one_byte import OneByte
from lazyload.sources.packed.packed import Packed
from lazyload.sources.packed.stored import EXPONENTS, FLOAT8, FLOATS, INDICES, WORDS, Stored

_INT8, _UINT8 = np.dtype(np.int8), np.dtype(np.uint8)
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_NVFP4_BLOCK = (1, 16)
_ALONG_GROUPS = ("group", "tensor_group")
_REORDERED = ("group", "dynamic")
_INSTEAD = "Use the repository that the weights were quantised from"


@dataclass(frozen=True)
class CompressedWeights:
    """What `weights` of a group says.

    Attributes:
        kind: `int` or `float`.
        bits: Of each code.
        strategy: What a scale is for: `tensor`, `channel`, `group`, `tensor_group` or `block`.
        block: The sizes of a square, for `block`; of a group, `(1, size)`; none otherwise.
        is_symmetric: Whether there are no zero points.
        is_reordered: Whether the inputs of a group are scattered.
        where: What messages call this part of the config.
    """

    kind: str
    bits: int
    strategy: str
    block: tuple[int, int] | None
    is_symmetric: bool
    is_reordered: bool
    where: str

    @classmethod
    def read(cls, config: Fields) -> "CompressedWeights":
        """Reads the config.

        Raises:
            ConfigError: A field is malformed, or contradicts another.
            UnsupportedFormatError: No packing of this library is like that.
        """
        kind, bits = config.get("type", "int").lower(), config.size("num_bits", 8)
        size = config.optional("group_size", int)
        strategy = (config.optional("strategy", str) or _strategy(size)).lower()
        actorder = config.optional("actorder", object)
        if (kind, bits) not in {("float", 4), ("float", 8), *(("int", number) for number in range(1, 9))}:
            raise UnsupportedFormatError(
                f"{config.where}: num_bits = {bits} of type {kind!r} is not read; there are int of 1 to 8 bits and "
                f"float of 4 and 8. {_INSTEAD}"
            )
        block: tuple[int, int] | None = None
        if strategy == "block":
            block = _pair(config)
        elif strategy in _ALONG_GROUPS:
            block = (1, config.size("group_size"))
        elif strategy not in ("tensor", "channel"):
            raise UnsupportedFormatError(
                f"{config.where}: strategy = {strategy!r} is not read; there are tensor, channel, group, tensor_group "
                f"and block. {_INSTEAD}"
            )
        if strategy == "tensor_group" and (kind, bits) != ("float", 4):
            raise UnsupportedFormatError(
                f"{config.where}: strategy = 'tensor_group' is read for floats of 4 bits only. {_INSTEAD}"
            )
        is_reordered = actorder is True or str(actorder).lower() in _REORDERED
        part = config.where[config.where.index("quantization_config") :]
        return cls(kind, bits, strategy, block, config.get("symmetric", True), is_reordered, part)

    @property
    def field(self) -> str:
        """What messages say of the config."""
        block = f", block_structure = {list(self.block)}" if self.block and self.strategy == "block" else ""
        size = f", group_size = {self.block[1]}" if self.block and self.strategy in _ALONG_GROUPS else ""
        return (
            f"{self.where}: num_bits = {self.bits}, type = {self.kind!r}, strategy = {self.strategy!r}{size}{block}, "
            f"symmetric = {self.is_symmetric}"
        )

    def packed(self, module: str, stored: Stored) -> Packed:
        """The packing of a module's `X.weight_packed`."""
        if self.kind == "float":
            return self._floats(module, stored)
        return self._integers(module, stored)

    def one_byte(self, name: str, stored: Stored) -> OneByte:
        """The packing of a tensor of one byte a value."""
        shape, dtype, _ = stored.tensors[name]
        stored.need(name, FLOAT8 if self.kind == "float" and self.bits == 8 else (_INT8,), name, self.field)
        self._require_divides(shape, name, stored)
        scales = find_grid(
            stored, f"{name}_scale", name, shape, [self._block(shape)], (*FLOATS, *EXPONENTS), self.field
        )
        zero_point = f"{name}_zero_point"
        if self.is_symmetric and zero_point not in stored.tensors:
            return OneByte(name, shape, dtype, scales)
        zeros = find_grid(stored, zero_point, name, shape, [self._block(shape)], (_INT8, *FLOAT8, *FLOATS), self.field)
        return OneByte(name, shape, dtype, scales, zeros)

    def _floats(self, module: str, stored: Stored) -> FourBitFloat:
        codes, scale, whole = (f"{module}.weight_{end}" for end in ("packed", "scale", "global_scale"))
        found = stored.need(codes, (_UINT8,), codes, self.field)
        if self.bits != 4 or not self.is_symmetric or self.strategy not in _ALONG_GROUPS or len(found) != 2:
            raise UnsupportedFormatError(
                f"{stored.where}: {stored.shown(codes)} is packed in a form that is not read ({self.field}). {_INSTEAD}"
            )
        shape = (found[0], 2 * found[1])
        self._require_divides(shape, codes, stored)
        # Groups of NVFP4 have scales in FP8 and a scale of the whole, those of MXFP4 have powers of two.
        has_whole = self.strategy == "tensor_group" or self.block == _NVFP4_BLOCK
        dtypes = (_E4M3, *FLOATS) if has_whole else EXPONENTS
        scales = find_grid(stored, scale, codes, shape, [self._block(shape)], dtypes, self.field)
        of_whole = find_grid(stored, whole, codes, shape, [shape], FLOATS, self.field) if has_whole else None
        return FourBitFloat(codes, shape, scales, of_whole, divides=True)

    def _integers(self, module: str, stored: Stored) -> GroupedIntegers:
        name = f"{module}.weight_packed"
        words = stored.need(name, WORDS, name, self.field)
        if self.strategy == "block":
            raise UnsupportedFormatError(
                f"{stored.where}: {name} is packed with a scale for each square ({self.field}), which is read for one "
                f"byte a value only. {_INSTEAD}"
            )
        if len(words) != 2:
            raise CorruptSourceError(f"{stored.where}: {stored.shown(name)} is no packed matrix ({self.field})")
        codes = Integers(name, (words[0], self._inputs(module, words, stored)), self.bits, 1)
        if codes.stored_shape != words:
            raise CorruptSourceError(
                f"{stored.where}: {stored.shown(name)} does not hold the {codes.shape[1]} inputs that its weight_scale "
                f"or weight_shape speak of ({self.field}); download the checkpoint again"
            )
        scales = find_grid(
            stored, f"{module}.weight_scale", name, codes.shape, [self._block(codes.shape)], FLOATS, self.field
        )
        zeros = self._zeros(module, codes, stored)
        told = f"{module}.weight_shape"
        index = self._index(module, codes, stored)
        return GroupedIntegers(codes, 1, scales, zeros, index, told if told in stored.tensors else None)

    def _inputs(self, module: str, words: tuple[int, ...], stored: Stored) -> int:
        """How many inputs a matrix has: as many as fill its groups; without groups, its last word may not be full."""
        packed, scale, told = (f"{module}.weight_{end}" for end in ("packed", "scale", "shape"))
        if self.block:
            found = stored.need(scale, FLOATS, packed, self.field)
            return found[-1] * self.block[1] if found else 0
        stored.need(told, INDICES, packed, self.field)
        stored.require_shape(told, (2,), packed, self.field)
        return int(stored.read(told, (slice(0, 2),))[1])

    def _zeros(self, module: str, codes: Integers, stored: Stored) -> ZeroPoints | int:
        name = f"{module}.weight_zero_point"
        if self.is_symmetric:
            stored.require_no(name, self.field, "has no zero points")
            return 1 << self.bits - 1
        if self.strategy not in ("group", "channel"):
            raise UnsupportedFormatError(
                f"{stored.where}: {codes.tensor} has zero points that are not packed ({self.field}). {_INSTEAD}"
            )
        block = self._block(codes.shape)
        zeros = Integers(name, (codes.shape[0], codes.shape[1] // block[1]), self.bits, 0)
        stored.need(name, WORDS, codes.tensor, self.field)
        stored.require_shape(name, zeros.stored_shape, codes.tensor, self.field)
        return ZeroPoints(zeros)

    def _index(self, module: str, codes: Integers, stored: Stored) -> GroupIndex | None:
        name, field = f"{module}.weight_g_idx", f"{self.field}, actorder"
        if name not in stored.tensors and not self.is_reordered:
            return None
        stored.need(name, INDICES, codes.tensor, field)
        stored.require_shape(name, codes.shape[1:], codes.tensor, field)
        return GroupIndex(name, codes.shape[1] // self._block(codes.shape)[1], field)

    def _block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of a block of a matrix."""
        match self.strategy:
            case "tensor":
                return shape
            case "channel":
                return (*(1,) * (len(shape) - 1), *(max(1, size) for size in shape[-1:]))
        return (*(1,) * (len(shape) - 2), *(self.block or ())[-len(shape) :])

    def _require_divides(self, shape: tuple[int, ...], of: str, stored: Stored) -> None:
        if self.block and self.strategy in _ALONG_GROUPS and shape:
            stored.require_divides(self.block[1], shape[-1], of, self.field)


def _strategy(group_size: int | None) -> str:
    """What a scale is for, where the config does not say."""
    if group_size is None:
        return "tensor"
    return "channel" if group_size == -1 else "group"


def _pair(config: Fields) -> tuple[int, int]:
    """The sizes of a square, as a list or in the older form "128x128"."""
    found = config.need("block_structure", object)
    sizes: Any = found.split("x") if isinstance(found, str) else found
    try:
        rows, columns = (int(size) for size in sizes)
    except (TypeError, ValueError):
        rows, columns = 0, 0
    if rows <= 0 or columns <= 0:
        raise ConfigError(f"{config.where}: block_structure = {found!r} is no pair of numbers")
    return rows, columns
