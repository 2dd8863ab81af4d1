"""FP8 as transformers' `fp8` and `fbgemm_fp8` store it: codes, and scales beside them that they are multiplied by.

DeepSeek V3 made the form with a scale for each square of 128 (https://huggingface.co/deepseek-ai/DeepSeek-V3,
README_WEIGHTS.md); `X.weight_scale_inv` is multiplied by, whatever its name says. Mistral has one scale for each
matrix, FBGEMM one for each row. DeepSeek V4 calls them `X.scale`, has powers of two, and stores its experts in FP4:
codes of 4 bits, two a byte, with a scale for 32 along a row (transformers' `integrations/finegrained_fp8.py`). Which
modules are left alone is said as transformers reads it (`should_convert_module` of `quantizers/quantizers_utils.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError
from lazyload.sources.packed.blocks import find_grid
from lazyload.sources.packed.four_bit_float import FourBitFloat
from lazyload.sources.packed.one_byte import OneByte
from lazyload.sources.packed.packed import Packed
from lazyload.sources.packed.stored import EXPONENTS, FLOAT8, FLOATS, Stored

_SCALES = ("_scale_inv", "_scale")
_LEFT_ALONE = ("modules_to_not_convert", "ignored_layers")
_PAIRS = np.dtype(np.int8)
"""Of codes of 4 bits: bytes that are called signed."""

_FP4_GROUP = 32
_UNNAMED: list[Any] = []
_NONE: list[Any] = []
_USUAL_BLOCKS = ((128, 128), (1, 32))
"""What the blocks can be where the config does not say: DeepSeek's and transformers' default, and the MX formats'."""


@dataclass(frozen=True)
class FP8:
    """What `quantization_config` says.

    Attributes:
        block: The sizes of a block; None for one scale a matrix or row.
        is_named: Whether the config says so, rather than nothing.
        left_alone: Entries for the modules that are not packed.
        has_fp4: Whether what is stored in bytes, the experts, has codes of 4 bits.
    """

    block: tuple[int, int] | None
    is_named: bool
    left_alone: tuple[str, ...]
    has_fp4: bool

    @classmethod
    def read(cls, config: Fields) -> "FP8":
        """Reads the config.

        Raises:
            ConfigError: A field is malformed.
        """
        config.refuse("expert_dtype", "fp8", "fp4")
        block = config.optional("weight_block_size", list, _UNNAMED)
        is_pair = block and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
        if not is_pair and block is not None and block is not _UNNAMED:
            raise ConfigError(f"{config.where}: weight_block_size = {block!r} is no pair of numbers")
        left_alone = [entry for name in _LEFT_ALONE for entry in config.get(name, _NONE)]
        for entry in left_alone:
            _require_pattern(entry, config.where)
        has_fp4 = config.get("expert_dtype", "fp8") == "fp4"
        return cls((block[0], block[1]) if block else None, block is not _UNNAMED, tuple(left_alone), has_fp4)

    def find(self, stored: Stored) -> Mapping[str, Packed]:
        """Every tensor in FP8 or FP4, unless it belongs to a module that is left alone."""
        found = {name: self._packed(name, stored) for name in stored.tensors if _is_packed(name, stored)}
        return {name: packed for name, packed in found.items() if packed is not None}

    def _packed(self, name: str, stored: Stored) -> Packed | None:
        module, scale = name.removesuffix(".weight"), _scale(name, stored)
        for entry in self.left_alone:
            if _matches(entry, module):
                stored.require_no(
                    scale, f"{_LEFT_ALONE[0]} in quantization_config ({entry!r})", f"leaves {module} alone"
                )
                return None
        if self.has_fp4 and stored.tensors[name].dtype == _PAIRS:
            return _four_bits(name, scale, stored)
        shape = stored.need(name, FLOAT8, name, self._field)
        scales = find_grid(stored, scale, name, shape, self._blocks(shape), (*FLOATS, *EXPONENTS), self._field)
        return OneByte(name, shape, stored.tensors[name].dtype, scales)

    @property
    def _field(self) -> str:
        said = f"weight_block_size = {list(self.block) if self.block else None}"
        return f"quantization_config: {said if self.is_named else 'no weight_block_size'}"

    def _blocks(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """What the blocks of a tensor can be: where the config has no size, its scales tell."""
        stack, matrix = shape[:-2], shape[-2:]
        of_one = (1,) * len(stack)
        if self.block:
            return [of_one + self.block[-len(matrix) :]]
        blocks = [shape, of_one + matrix, of_one + (1,) * (len(matrix) - 1) + matrix[-1:]]
        return blocks if self.is_named or len(matrix) < 2 else blocks + [of_one + block for block in _USUAL_BLOCKS]


def _four_bits(name: str, scale: str, stored: Stored) -> FourBitFloat:
    """A tensor of codes of 4 bits, with scales for groups of 32 along a row."""
    *outer, pairs = stored.tensors[name].shape
    shape, group = (*outer, 2 * pairs), (*(1,) * len(outer), _FP4_GROUP)
    field = "config.json: expert_dtype = 'fp4'"
    return FourBitFloat(name, shape, find_grid(stored, scale, name, shape, [group], (*EXPONENTS, *FLOATS), field))


def _scale(name: str, stored: Stored) -> str:
    """The scales of a tensor: which of their names there is."""
    names = [*(name + end for end in _SCALES), name.removesuffix("weight") + "scale"]
    return next((scale for scale in names if scale in stored.tensors), names[0])


def _is_packed(name: str, stored: Stored) -> bool:
    dtype, is_weight = stored.tensors[name].dtype, name.endswith(".weight")
    has_scales = is_weight and any(name + end in stored.tensors for end in _SCALES)
    return has_scales or dtype in FLOAT8 or (is_weight and dtype == _PAIRS and _scale(name, stored) in stored.tensors)


def _require_pattern(entry: Any, where: str) -> None:
    if not isinstance(entry, str):
        raise ConfigError(f"{where}: {_LEFT_ALONE[0]} has {entry!r}, which is no name of a module")
    try:
        re.compile(entry)
    except re.error as error:
        raise ConfigError(f"{where}: {_LEFT_ALONE[0]} has {entry!r}, no regular expression ({error})") from None


def _matches(entry: str, module: str) -> bool:
    """Whether an entry means a module: as a regular expression, its beginning; as it is, its end."""
    return re.match(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))", module) is not None or module.endswith(entry)
