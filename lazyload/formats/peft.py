"""LoRA adapters in PEFT's format: `adapter_config.json`, and two thin matrices for each weight that is changed.

What the fields mean is what PEFT 0.21 does with them (`peft/tuners/lora/config.py` and `layer.py`): the weight
becomes `W + scaling * B A`, with `scaling` the alpha over the rank, or over its root with `use_rslora`. A field that
changes the result and is not read is refused by its name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lazyload.errors import TensorMismatchError, UnsupportedFormatError
from lazyload.layouts.source import TensorInfo

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model that it wraps."""

_READ = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type"}
# What was trained and how, and what the tensors themselves say. PEFT sets `fan_in_fan_out` aside for linear maps as all
# of ours are.
_WITHOUT_EFFECT = {
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "task_type"),
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "lora_dropout"),
    *("fan_in_fan_out", "megatron_core", "runtime_config", "qalora_group_size", "eva_config", "ensure_weight_tying"),
}
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # Others change the base model's weights, too.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
_LOW_RANK = re.compile(r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<half>[AB])(?:\.weight)?")


@dataclass(frozen=True)
class LowRank:
    """What is added to one weight.

    Attributes:
        a: The tensor `A`, `[rank, in]`; for an embedding `[rank, vocab]`.
        b: The tensor `B`, `[out, rank]`; for an embedding `[embed, rank]`.
        scaling: What their product is multiplied by.
        of_embedding: Whether the weight is an embedding, `[vocab, embed]`, to which `(B A)` is added transposed.
    """

    a: str
    b: str
    scaling: float
    of_embedding: bool = False


@dataclass(frozen=True)
class Adapter:
    """An adapter, by the names that its base model has in transformers.

    Attributes:
        base: The base model's name, as far as the file says it.
        added: What is added to weights, by weight.
        replaced: Tensors that take the place of the base model's, by the name of that (`modules_to_save`).
    """

    base: str
    added: Mapping[str, LowRank]
    replaced: Mapping[str, str]


def read_adapter(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str) -> Adapter:
    """Reads an adapter's config, and sorts its tensors.

    Args:
        config: The content of `adapter_config.json`.
        tensors: The tensors of the adapter's weights.
        where: What messages call it.

    Raises:
        UnsupportedFormatError: It is none of LoRA's, or has a feature that is not read.
        TensorMismatchError: A matrix is without its partner, or of another rank than the config says.
    """
    _require_read(config, where)
    halves: dict[str, dict[str, str]] = {}
    replaced = {}
    of_embedding = set()
    for name in tensors:
        inner = name.removeprefix(PREFIX)
        if match := _LOW_RANK.fullmatch(inner):
            halves.setdefault(match["module"], {})[match["half"]] = name
            of_embedding |= {match["module"]} if match["kind"] else set()
        elif "lora_" in inner:
            raise UnsupportedFormatError(
                f"{where}: {name} is of a kind of adapter that is not read; there is plain LoRA"
            )
        else:
            replaced[inner.replace(".modules_to_save.", ".").replace(".base_layer.", ".")] = name
    problems = [
        problem for module, pair in halves.items() for problem in _problems(module, pair, config, tensors, where)
    ]
    if problems or not (halves or replaced):
        raise TensorMismatchError(f"{where}: its weights are not those of {CONFIG}", problems or ["there are none"])
    added = {
        f"{module}.weight": LowRank(pair["A"], pair["B"], scaling(config, module), module in of_embedding)
        for module, pair in halves.items()
    }
    return Adapter(str(config.get("base_model_name_or_path") or ""), added, replaced)


def scaling(config: Mapping[str, Any], module: str) -> float:
    """What the product of a module's matrices is multiplied by."""
    rank = _rank(config, module)
    alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha", 8))
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _rank(config: Mapping[str, Any], module: str) -> int:
    return int(_of_pattern(config, "rank_pattern", module, config.get("r", 8)))


def _of_pattern(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    """What the first pattern that matches says, as `get_pattern_key` of `peft/utils/other.py` chooses it."""
    patterns: Mapping[str, Any] = config.get(field) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _problems(
    module: str, pair: Mapping[str, str], config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], where: str
) -> Iterable[str]:
    if len(pair) < 2:
        yield f"{next(iter(pair.values()))}: its partner, lora_A or lora_B, is missing"
        return
    rank = _rank(config, module)
    for half, dimension in (("A", 0), ("B", 1)):
        shape = tensors[pair[half]].shape
        if len(shape) != 2 or shape[dimension] != rank:
            yield f"{pair[half]}: has shape {list(shape)}, but the rank of {module} is {rank} in {where}'s {CONFIG}"


def _require_read(config: Mapping[str, Any], where: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedFormatError(f"{where}: peft_type is {kind!r}; adapters of LORA are read, and no others")
    for field, pattern, kinds in (("r", "rank_pattern", (int,)), ("lora_alpha", "alpha_pattern", (int, float))):
        what = "a whole number above 0" if kinds == (int,) else "a number above 0"
        if not _is_positive(value := config.get(field, 8), kinds):
            raise UnsupportedFormatError(f"{where}: {CONFIG} has {field}={value!r:.100}; it is {what}")
        of_modules = config.get(pattern) or {}
        if not isinstance(of_modules, Mapping):
            raise UnsupportedFormatError(f"{where}: {CONFIG} has {pattern}={of_modules!r:.100}; it is an object")
        for key, value in of_modules.items():
            if not _is_pattern(key) or not _is_positive(value, kinds):
                raise UnsupportedFormatError(
                    f"{where}: {CONFIG} has {value!r:.100} in {pattern} for {key!r:.100}; it is {what}, for a regular "
                    "expression of names"
                )
    for field, value in config.items():
        is_plain = value in _PLAIN[field] if field in _PLAIN else not value
        if field not in _READ | _WITHOUT_EFFECT and not is_plain:
            raise UnsupportedFormatError(
                f"{where}: {CONFIG} has {field}={value!r:.100}, which is not implemented; merge the adapter with peft, "
                "`merge_and_unload()` and `save_pretrained()`, and load the result"
            )


def _is_positive(value: Any, kinds: tuple[type[int] | type[float], ...]) -> bool:
    return type(value) in kinds and 0 < value < math.inf


def _is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return True
