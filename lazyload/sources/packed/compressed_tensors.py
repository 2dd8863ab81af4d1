"""Which modules compressed-tensors has packed, and how (https://github.com/vllm-project/compressed-tensors, 0.20).

Each of the `config_groups` says how the modules are packed that its `targets` name, unless `ignore` names them, too: by
their names, by patterns of the beginning of their names (`re:...`), or by their class (`utils/match.py` there).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError, UnsupportedFormatError
from lazyload.sources.packed.compressed_weights import CompressedWeights
from lazyload.sources.packed.packed import Packed
from lazyload.sources.packed.stored import FLOAT8, Stored

_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mxfp8-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mixed-precision",
    "dense",
)
_ONE_BYTE = (*FLOAT8, np.dtype(np.int8))
_INSTEAD = "Use the repository that the weights were quantised from"


@dataclass(frozen=True)
class CompressedTensors:
    """What `quantization_config` says.

    Attributes:
        targets: How the weights of modules are packed, by their names, patterns of their names, or their class; None
            where they are not. In the order in which they are tried.
        ignored: The modules that are left alone.
        where: What messages call the config.
    """

    targets: Mapping[str, CompressedWeights | None]
    ignored: tuple[str, ...]
    where: str

    @classmethod
    def read(cls, config: Fields) -> "CompressedTensors":
        """Reads the config.

        Raises:
            ConfigError: A field is missing or malformed.
            UnsupportedFormatError: A format is not read.
        """
        sparsity: dict[str, Any] = config.get("sparsity_config", {})
        transforms: dict[str, Any] = config.get("transform_config", {})
        groups = config.need("config_groups", dict)
        formats = [("format", config.get("format", "dense"))]
        formats += [("sparsity_config: format", sparsity.get("format") or "dense")]
        targets: dict[str, CompressedWeights | None] = {}
        for name in groups:
            group = config.part("config_groups").part(name)
            formats.append((f"config_groups: {name}: format", group.get("format", "dense")))
            weights = CompressedWeights.read(group.part("weights")) if "weights" in group else None
            targets |= dict.fromkeys(_names(group, "targets"), weights)
        for field, form in formats:
            if form not in _FORMATS:
                raise UnsupportedFormatError(
                    f"{config.where}: {field} = {form!r} is a form of compressed-tensors that is not read; there are "
                    f"{', '.join(_FORMATS)}. {_INSTEAD}"
                )
        if transforms.get("config_groups"):
            raise UnsupportedFormatError(
                f"{config.where}: transform_config turns weights and activations while the model runs, which is not "
                f"implemented. {_INSTEAD}"
            )
        # Names come before patterns, and both before classes; the first that fits counts.
        ordered = {target: targets[target] for target in sorted(targets, key=lambda target: ("re:" in target, target))}
        return cls(ordered, _names(config, "ignore"), config.where)

    def find(self, stored: Stored) -> Mapping[str, Packed]:
        """Every `X.weight_packed`, and every tensor of one byte a value, as `X.weight`."""
        found: dict[str, Packed] = {}
        for name, info in stored.tensors.items():
            if name.endswith(".weight_packed"):
                module = name.removesuffix(".weight_packed")
                found[f"{module}.weight"] = self._weights(module, name, stored).packed(module, stored)
            elif name.endswith(".weight"):
                module = name.removesuffix(".weight")
                is_packed = info.dtype in _ONE_BYTE and self._of(module) is not None
                if is_packed or f"{name}_scale" in stored.tensors:
                    found[name] = self._weights(module, name, stored).one_byte(name, stored)
        return found

    def _weights(self, module: str, name: str, stored: Stored) -> CompressedWeights:
        """How a module is packed, which must be."""
        weights = self._of(module)
        if weights is None:
            raise ConfigError(
                f"{stored.where}: {stored.shown(name)} is packed, but in {self.where} no group of config_groups has a "
                f"target for {module}, or ignore names it; one of them is wrong"
            )
        return weights

    def _of(self, module: str) -> CompressedWeights | None:
        if any(_is_match(module, entry) for entry in self.ignored):
            return None
        by_name = [target for target in self.targets if _is_name(module, target)]
        by_class = [target for target in self.targets if target == _class(module)]
        return next((self.targets[target] for target in (*by_name, *by_class)), None)


def _names(config: Fields, field: str) -> tuple[str, ...]:
    """Names of modules, patterns of them, or classes."""
    found: list[Any] = config.get(field, [])
    for entry in found:
        if not isinstance(entry, str):
            raise ConfigError(f"{config.where}: {field} has {entry!r}, which is no text")
        try:
            re.compile(entry.removeprefix("re:") if entry.startswith("re:") else "")
        except re.error as error:
            raise ConfigError(f"{config.where}: {field} has {entry!r}, no regular expression ({error})") from None
    return tuple(found)


def _is_match(module: str, entry: str) -> bool:
    return _is_name(module, entry) or entry == _class(module)


def _is_name(module: str, entry: str) -> bool:
    """Whether an entry is a module's name, or a pattern of its beginning."""
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), module) is not None
    return entry == module


def _class(module: str) -> str:
    """The class of a module that can be packed."""
    return "Embedding" if module.rpartition(".")[2].startswith("embed") else "Linear"
