"""Packed weights: tensors of few bits with scales beside them, as plain tensors that unpack just the boxes asked for.

How a checkpoint is packed is a *scheme*, one file here for each `quant_method`; the tensors that there are say what of
it is packed. `OneByte`, `FourBitFloat`, `GroupedIntegers` and `Microscaled` are the *packings* that the schemes find.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lazyload.config_json.fields import Fields
from lazyload.errors import ConfigError, CorruptSourceError, UnsupportedFormatError
from lazyload.layouts.source import TensorInfo
from lazyload.sources.packed.packed import Packed, Scheme
from lazyload.sources.packed.stored import FLOAT8, Read, Stored

__all__ = ["Packed", "Read", "Scheme", "find_packed", "looks_packed", "of_activations", "read_modelopt", "read_scheme"]

_OF_ACTIVATIONS = re.compile(
    r".+(?:\.|_proj_)(?:(?:input|output|activation|q|k|v|kv|prob)_(?:scale|zero_point|global_scale)|input_scale_ub)"
)
"""What activations and the key-value cache are quantised by while a model runs; weights do not depend on it."""

_SCALES = (".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".qweight", ".weight_packed")


def read_scheme(config: Mapping[str, Any], where: str) -> Scheme | None:
    """How the weights are packed, from `config.json` alone; None where they are not.

    Args:
        config: The parsed file. A multimodal model's scheme may be its text model's.
        where: What messages call it.

    Raises:
        UnsupportedFormatError: The quantisation scheme is not read; the message names it and what to use instead.
        ConfigError: A field of the scheme is malformed.
    """
    text = config.get("text_config")
    own = config.get("quantization_config") or (isinstance(text, dict) and text.get("quantization_config"))
    if not own:
        return None
    # They take a while to import, and most checkpoints are not packed.
    from lazyload.sources.packed.schemes import SCHEMES

    if not isinstance(own, dict):
        raise ConfigError(
            f"{where}: quantization_config = {own!r:.200} is no object, which says how weights are packed"
        )
    # DeepSeek V4 has it beside the rest, as transformers reads it.
    beside = {name: config[name] for name in ("expert_dtype",) if name in config}
    fields = Fields({**beside, **own}, where=f"{where}: quantization_config")
    method = _method(fields)
    if method not in SCHEMES:
        raise UnsupportedFormatError(
            f"{fields.where}: weights packed by {method!r} (quant_method) are not read; there are "
            f"{', '.join(SCHEMES)}. Use the repository that the weights were quantised from"
        )
    return SCHEMES[method](fields)


def read_modelopt(config: Mapping[str, Any], where: str) -> Scheme:
    """The same from ModelOpt's `hf_quant_config.json`, which counts where `config.json` says nothing.

    Raises:
        UnsupportedFormatError: The quantisation scheme is not read.
        ConfigError: A field of the scheme is malformed.
    """
    # It takes a while to import, and most checkpoints are not packed.
    from lazyload.sources.packed.schemes import SCHEMES

    return SCHEMES["modelopt"](Fields(config, where=where))


def find_packed(scheme: Scheme, tensors: Mapping[str, TensorInfo], read: Read, where: str) -> Mapping[str, Packed]:
    """The packed tensors of a checkpoint, by the names of the unpacked ones.

    Args:
        scheme: How they are packed.
        tensors: What is stored.
        read: Reads a box of what is stored.
        where: What messages call the checkpoint.

    Raises:
        CorruptSourceError: A part of a packed tensor is missing, or does not fit the others or the config.
        ConfigError: The config leaves alone what is stored packed.
    """
    found = scheme.find(Stored(tensors, where, read))
    parts = {part for packed in found.values() for part in packed.parts}
    for name in found.keys() & tensors.keys() - parts:
        raise CorruptSourceError(f"{where}: {name} is stored as it is, and packed; remove one of them")
    return found


def of_activations(names: Iterable[str]) -> frozenset[str]:
    """Those tensors of a packed checkpoint which the weights do not depend on."""
    return frozenset(name for name in names if _OF_ACTIVATIONS.fullmatch(name))


def looks_packed(tensors: Mapping[str, TensorInfo]) -> bool:
    """Whether there are scales or codes, whatever the config says."""
    return any(name.endswith(_SCALES) or info.dtype in FLOAT8 for name, info in tensors.items())


def _method(fields: Fields) -> str:
    """The name of a scheme, which some programs leave to be guessed."""
    if "quant_algo" in fields or "quantization" in fields:
        return fields.get("quant_method", "modelopt")
    in_bits = fields.get("load_in_4bit", False) or fields.get("load_in_8bit", False)
    return fields.get("quant_method", "bitsandbytes" if in_bits else "an unnamed method")
