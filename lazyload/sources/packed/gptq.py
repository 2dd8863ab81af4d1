"""GPTQ as AutoGPTQ and GPTQModel store it: `X.qweight`, `X.qzeros`, `X.scales` and `X.g_idx`.

`qweight` is `[in, out]`, packed along the inputs into words of 32 bits; `qzeros` is `[group, out]`, packed along the
outputs. The first form of it (`checkpoint_format` "gptq") stores zero points less 1, the second ("gptq_v2") as they are
(https://github.com/ModelCloud/GPTQModel, `gptqmodel/nn_modules/qlinear/torch.py`; AutoGPTQ 0.7.1,
`auto_gptq/nn_modules/qlinear/qlinear_cuda.py`). `g_idx` says which group each input belongs to.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.sources.packed.bits import Integers
from lazyload.sources.packed.blocks import find_grid
from lazyload.sources.packed.grouped_integers import GroupedIntegers, GroupIndex, ZeroPoints
from lazyload.sources.packed.packed import Packed
from lazyload.sources.packed.stored import FLOATS, INDICES, WORDS, Stored

_BITS = (2, 3, 4, 8)
_ADDED_TO_ZEROS = {"gptq": 1, "gptq_v2": 0}
"""By the form. The largest code becomes a power of two, as in the kernels of AutoGPTQ (CUDA, Triton) and ExLlama, of
which none wraps around."""


@dataclass(frozen=True)
class GPTQ:
    """What `quantization_config` says.

    Attributes:
        bits: Of each code.
        group_size: How many inputs share a scale; None for all.
        is_reordered: Whether the inputs of a group are scattered (`desc_act`).
        added: What is added to the stored zero points.
        overrides: What is different for modules, by patterns of their names (`dynamic`).
        where: What messages call the config.
    """

    bits: int
    group_size: int | None
    is_reordered: bool
    added: int
    overrides: Mapping[str, Mapping[str, Any]]
    where: str

    @classmethod
    def read(cls, config: Fields) -> "GPTQ":
        """Reads the config.

        Raises:
            ConfigError: A field is missing or malformed.
            UnsupportedFormatError: The codes are in another order, such as Marlin's.
        """
        form = config.get("checkpoint_format", config.get("format", "gptq")).lower()
        if config.get("is_marlin_format", False):
            form = "marlin"
        if form not in _ADDED_TO_ZEROS:
            raise UnsupportedFormatError(
                f"{config.where}: checkpoint_format = {form!r} is a form of GPTQ that is not read; there are "
                f"{', '.join(_ADDED_TO_ZEROS)}. Use a repository in one of these forms, or of the unpacked weights"
            )
        overrides: dict[str, Any] = config.get("dynamic", {})
        for pattern, override in overrides.items():
            _require_override(pattern, override, config.where)
        scheme = cls(
            config.size("bits"), 128, config.get("desc_act", False), _ADDED_TO_ZEROS[form], overrides, config.where
        )
        return scheme._with(config)

    def find(self, stored: Stored) -> Mapping[str, Packed]:
        """Every `X.qweight`, as `X.weight`."""
        modules = [name.removesuffix(".qweight") for name in stored.tensors if name.endswith(".qweight")]
        return {f"{module}.weight": self._of(module)._packed(module, stored) for module in modules}

    def _of(self, module: str) -> "GPTQ":
        """The scheme of one module; as in GPTQModel, the first pattern that fits its name counts."""
        for pattern, override in self.overrides.items():
            sign, expression = pattern[:2], pattern.removeprefix("+:").removeprefix("-:")
            if re.match(expression, module):
                if sign == "-:":
                    raise ConfigError(
                        f"{self.where}: dynamic leaves {module} alone ({pattern!r}), but {module}.qweight is stored; "
                        "one of them is wrong"
                    )
                return self._with(Fields(override, where=f"{self.where}: dynamic: {pattern}"))
        return self

    def _with(self, config: Fields) -> "GPTQ":
        """The scheme with the fields of a config."""
        bits = config.size("bits", self.bits)
        if bits not in _BITS:
            raise UnsupportedFormatError(
                f"{config.where}: bits = {bits} is no number of bits that GPTQ defines; there are "
                f"{', '.join(map(str, _BITS))}. Use a repository of the unpacked weights"
            )
        size = config.get("group_size", self.group_size or -1)
        if size != -1 and size <= 0:
            raise ConfigError(f"{config.where}: group_size = {size} must be positive, or -1 for one group")
        is_reordered = config.get("desc_act", self.is_reordered)
        return replace(self, bits=bits, group_size=None if size == -1 else size, is_reordered=is_reordered)

    def _packed(self, module: str, stored: Stored) -> GroupedIntegers:
        weight = f"{module}.qweight"
        field = f"quantization_config: bits = {self.bits}, group_size = {self.group_size or -1}"
        words = stored.need(weight, WORDS, weight, field)
        if len(words) != 2 or words[0] * 32 % self.bits:
            raise CorruptSourceError(
                f"{stored.where}: {stored.shown(weight)} is no matrix packed along its inputs ({field})"
            )
        shape = (words[0] * 32 // self.bits, words[1])
        size = self.group_size or max(1, shape[0])
        # The last group may be shorter.
        groups = -(-shape[0] // size)
        zeros = Integers(f"{module}.qzeros", (groups, shape[1]), self.bits, 1)
        stored.need(zeros.tensor, WORDS, weight, field)
        stored.require_shape(zeros.tensor, zeros.stored_shape, weight, field)
        scales = find_grid(stored, f"{module}.scales", weight, shape, [(size, 1)], FLOATS, field)
        index = self._index(module, shape[0], groups, stored, field)
        codes = Integers(weight, shape, self.bits, 0)
        return GroupedIntegers(codes, 0, scales, ZeroPoints(zeros, self.added), index)

    def _index(self, module: str, inputs: int, groups: int, stored: Stored, field: str) -> GroupIndex | None:
        name, field = f"{module}.g_idx", f"{field}, desc_act = {self.is_reordered}"
        if name not in stored.tensors and not self.is_reordered:
            return None
        stored.need(name, INDICES, f"{module}.qweight", field)
        stored.require_shape(name, (inputs,), f"{module}.qweight", field)
        return GroupIndex(name, groups, field)


def _require_override(pattern: str, override: Any, where: str) -> None:
    if not isinstance(override, dict):
        raise ConfigError(f"{where}: dynamic: {pattern!r} has {override!r}, which is no object")
    try:
        re.compile(pattern.removeprefix("+:").removeprefix("-:"))
    except re.error as error:
        raise ConfigError(f"{where}: dynamic has {pattern!r}, no regular expression ({error})") from None
