"""FP8 and NVFP4 as NVIDIA's ModelOpt stores them (https://github.com/NVIDIA/Model-Optimizer, 0.47, `torch/export`).

`quantization_config` says it in `config.json`, or `quantization` in `hf_quant_config.json` beside it: an algorithm for
all modules, or in `quantized_layers` one for each (`MIXED_PRECISION`). FP8 is `X.weight` with `X.weight_scale` for the
whole, the rows or squares; NVFP4 is two codes a byte with scales in FP8 for groups of 16, and `X.weight_scale_2` for
the whole, by which they are multiplied.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.sources.packed.blocks import find_grid
from lazyload.sources.packed.four_bit_float import FourBitFloat
from lazyload.sources.packed.one_byte import OneByte
from lazyload.sources.packed.packed import Packed
from lazyload.sources.packed.stored import EXPONENTS, FLOAT8, FLOATS, Stored

_FP8 = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "MXFP8")
_FP4 = ("NVFP4", "W4A16_NVFP4")
_NONE: list[Any] = []
_MIXED = "MIXED_PRECISION"
_SCALES = ("_scale", "_scale_2")
_GROUP = {"MXFP8": 32, "FP8_PB_WO": 128}
_E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True)
class Algorithm:
    """How modules are packed.

    Attributes:
        name: ModelOpt's name of it.
        group_size: How many inputs share a scale, where a group of them does.
    """

    name: str
    group_size: int

    @classmethod
    def read(cls, config: Fields) -> "Algorithm":
        """Reads a part of the config.

        Raises:
            ConfigError: A field is missing or malformed.
            UnsupportedFormatError: The algorithm is not read.
        """
        name = config.need("quant_algo", str).upper()
        if name not in (*_FP8, *_FP4):
            raise UnsupportedFormatError(
                f"{config.where}: quant_algo = {name!r} is a form of ModelOpt that is not read; there are "
                f"{', '.join((*_FP8, *_FP4, _MIXED))}. Use the repository that the weights were quantised from"
            )
        return cls(name, config.size("group_size", _GROUP.get(name, 16)))

    @property
    def field(self) -> str:
        """What messages say of the config."""
        size = f", group_size = {self.group_size}" if self.name in (*_FP4, *_GROUP) else ""
        return f"quantization_config: quant_algo = {self.name!r}{size}"

    def packed(self, name: str, stored: Stored) -> Packed:
        """The packing of a tensor."""
        return self._four_bit(name, stored) if self.name in _FP4 else self._fp8(name, stored)

    def _fp8(self, name: str, stored: Stored) -> OneByte:
        shape = stored.need(name, FLOAT8, name, self.field)
        of_one, matrix, size = (1,) * (len(shape) - 2), shape[-2:], self.group_size
        blocks = {
            "FP8": [shape, of_one + matrix],
            "FP8_PER_CHANNEL_PER_TOKEN": [(*of_one, 1, *shape[-1:])],
            "FP8_PB_WO": [(*of_one, size, size)],
            "MXFP8": [(*of_one, 1, size)],
        }[self.name]
        dtypes = EXPONENTS if self.name == "MXFP8" else FLOATS
        if len(shape) < 2:
            raise CorruptSourceError(f"{stored.where}: {stored.shown(name)} is no matrix ({self.field})")
        scales = find_grid(stored, f"{name}_scale", name, shape, blocks, dtypes, self.field)
        return OneByte(name, shape, stored.tensors[name].dtype, scales)

    def _four_bit(self, name: str, stored: Stored) -> FourBitFloat:
        found = stored.need(name, (_UINT8,), name, self.field)
        if len(found) < 2:
            raise CorruptSourceError(f"{stored.where}: {stored.shown(name)} is no packed matrix ({self.field})")
        shape = (*found[:-1], 2 * found[-1])
        stored.require_divides(self.group_size, shape[-1], name, self.field)
        block = (*(1,) * (len(shape) - 1), self.group_size)
        scales = find_grid(stored, f"{name}_scale", name, shape, [block], (_E4M3,), self.field)
        wholes = [shape, (*(1,) * (len(shape) - 2), *shape[-2:])]
        whole = find_grid(stored, f"{name}_scale_2", name, shape, wholes, FLOATS, self.field)
        return FourBitFloat(name, shape, scales, whole)


@dataclass(frozen=True)
class ModelOpt:
    """What the config says.

    Attributes:
        algorithm: Of all modules; None where `layers` says it.
        layers: Of each module.
        excluded: Patterns of the modules that are left alone.
        where: What messages call the config.
    """

    algorithm: Algorithm | None
    layers: Mapping[str, Algorithm]
    excluded: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, config: Fields) -> "ModelOpt":
        """Reads the config, in any of its forms.

        Raises:
            ConfigError: A field is missing or malformed.
            UnsupportedFormatError: An algorithm is not read.
        """
        config = config.part("quantization") if "quantization" in config else config
        excluded = (*config.get("exclude_modules", _NONE), *config.get("ignore", _NONE))
        for entry in excluded:
            if not isinstance(entry, str):
                raise ConfigError(f"{config.where}: exclude_modules has {entry!r}, which is no name of a module")
        # Where only the key-value cache is quantised, there is no algorithm for the weights.
        name = (config.optional("quant_algo", str) or "").upper()
        if name != _MIXED:
            return cls(Algorithm.read(_with_group_size(config)) if name else None, {}, excluded, config.where)
        layers = config.part("quantized_layers")
        names = config.need("quantized_layers", dict)
        return cls(None, {name: Algorithm.read(layers.part(name)) for name in names}, excluded, config.where)

    def find(self, stored: Stored) -> Mapping[str, Packed]:
        """Every tensor in FP8 or of bytes that has scales, unless it belongs to a module that is left alone."""
        found: dict[str, Packed] = {}
        for name, info in stored.tensors.items():
            module, scale = name.removesuffix(".weight"), f"{name}_scale"
            is_packed = info.dtype in (*FLOAT8, _UINT8) or (name.endswith(".weight") and scale in stored.tensors)
            if not is_packed or name.endswith(_SCALES):
                continue
            excluded = next((entry for entry in self.excluded if fnmatch.fnmatchcase(module, entry)), None)
            if excluded is not None:
                stored.require_no(scale, f"exclude_modules of {self.where} ({excluded!r})", f"leaves {module} alone")
                continue
            algorithm = self.algorithm or self.layers.get(module)
            if algorithm is None:
                stored.require_no(scale, f"quantized_layers of {self.where}", f"does not name {module}")
                continue
            found[name] = algorithm.packed(name, stored)
        return found


def _with_group_size(config: Fields) -> Fields:
    """The algorithm with the size of its groups, which stands in `config_groups` where it is in `config.json`."""
    values = {"quant_algo": config.need("quant_algo", str), "group_size": config.optional("group_size", int)}
    groups: dict[str, Any] = config.get("config_groups", {})
    for name in groups:
        group = config.part("config_groups").part(name)
        size = group.part("weights").optional("group_size", int) if "weights" in group else None
        values["group_size"] = values["group_size"] or size
    return Fields(values, where=config.where)
