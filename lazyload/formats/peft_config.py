"""PEFT's `adapter_config.json`: what its fields say of an adapter's tensors, and which of them are refused.

What the fields mean is what PEFT 0.21 does with them (`peft/tuners/lora/config.py`, `layer.py` and `model.py`). A field
that changes the result and is not read is refused by its name.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from lazyload.errors import UnsupportedFormatError

CONFIG = "adapter_config.json"

_READ = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "peft_type", "use_dora", "lora_bias"),
    *("target_parameters", "trainable_token_indices"),
}
# What was trained and how, and what the tensors themselves say. PEFT sets `fan_in_fan_out` aside for linear maps as all
# of ours are. What an initialisation was made with, it looks at where `init_lora_weights` names that one.
_WITHOUT_EFFECT = {
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern", "task_type"),
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "lora_dropout"),
    *("fan_in_fan_out", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
}
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    # Which biases were trained; the adapter has them as they are to be.
    "bias": ("none", "all", "lora_only"),
    # Others change the base model's weights, too.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica"),
}
_NOT_TOGETHER = (("use_dora", "lora_bias"), ("use_dora", "target_parameters"), ("lora_bias", "target_parameters"))
_PARAMETERS = ("weight", "gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias")
"""Parameters of one module in the order in which transformers 5.24 declares them, and PEFT wraps them."""


def require_read(config: Mapping[str, Any], where: str) -> None:
    """Makes sure that all that a config says is read here, or without effect.

    Args:
        config: The content of `adapter_config.json`.
        where: What messages call the adapter.

    Raises:
        UnsupportedFormatError: It is not.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UnsupportedFormatError(f"{where}: peft_type is {kind!r}; adapters of LORA are read, and no others")
    for field, pattern, kinds in (("r", "rank_pattern", (int,)), ("lora_alpha", "alpha_pattern", (int, float))):
        _require_numbers(config, field, pattern, kinds, where)
    if not _are_names(config.get("target_parameters") or []):
        raise _wrong("target_parameters", config, "a list of names", where)
    if not _are_tokens(config.get("trainable_token_indices") or []):
        raise _wrong("trainable_token_indices", config, "a list of tokens' numbers, or such lists by module", where)
    for field, value in config.items():
        is_plain = value in _PLAIN[field] if field in _PLAIN else not value
        if field not in _READ | _WITHOUT_EFFECT and not is_plain:
            raise UnsupportedFormatError(
                f"{where}: {CONFIG} has {field}={value!r:.100}, which is not implemented; merge the adapter with peft, "
                "`merge_and_unload()` and `save_pretrained()`, and load the result"
            )
    for one, other in _NOT_TOGETHER:
        if config.get(one) and config.get(other):
            raise UnsupportedFormatError(f"{where}: {CONFIG} has {one}=True with {other}, which PEFT does not have")


def rank_of(config: Mapping[str, Any], name: str) -> int:
    """The rank of a module's matrices, or of those of a parameter that is targeted by its own name."""
    return int(_of_pattern(config, "rank_pattern", name, config.get("r", 8)))


def scaling_of(config: Mapping[str, Any], name: str) -> float:
    """What the product of their matrices is multiplied by."""
    rank = rank_of(config, name)
    alpha = _of_pattern(config, "alpha_pattern", name, config.get("lora_alpha", 8))
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def parameters_of(config: Mapping[str, Any], module: str) -> list[str]:
    """The parameters of a module that `target_parameters` names, in the order in which PEFT wraps them."""
    named = set()
    for target in config.get("target_parameters") or ():
        stem, _, parameter = target.rpartition(".")
        # Without a stem it is a parameter of whatever module has one of that name.
        if f".{module}".endswith(f".{stem}" if stem else ".experts"):
            named.add(parameter)
    return sorted(named, key=lambda name: (_PARAMETERS.index(name) if name in _PARAMETERS else -1, name))


def tokens_of(config: Mapping[str, Any], module: str) -> list[int]:
    """The tokens whose rows of an embedding were trained, in the order in which the adapter has them."""
    tokens = config.get("trainable_token_indices") or []
    if isinstance(tokens, Mapping):
        return next((list(own) for name, own in tokens.items() if f".{module}".endswith(f".{name}")), [])
    return list(tokens)


def _of_pattern(config: Mapping[str, Any], field: str, name: str, default: Any) -> Any:
    """What the first pattern that matches says, as `get_pattern_key` of `peft/utils/other.py` chooses it."""
    patterns: Mapping[str, Any] = config.get(field) or {}
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _require_numbers(
    config: Mapping[str, Any], field: str, pattern: str, kinds: tuple[type[int] | type[float], ...], where: str
) -> None:
    what = "a whole number above 0" if kinds == (int,) else "a number above 0"
    if not _is_positive(config.get(field, 8), kinds):
        raise _wrong(field, config, what, where)
    of_modules = config.get(pattern) or {}
    if not isinstance(of_modules, Mapping):
        raise _wrong(pattern, config, "an object", where)
    for key, value in of_modules.items():
        if not _is_pattern(key) or not _is_positive(value, kinds):
            raise UnsupportedFormatError(
                f"{where}: {CONFIG} has {value!r:.100} in {pattern} for {key!r:.100}; it is {what}, for a regular "
                "expression of names"
            )


def _wrong(field: str, config: Mapping[str, Any], what: str, where: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(f"{where}: {CONFIG} has {field}={config.get(field)!r:.100}; it is {what}")


def _is_positive(value: Any, kinds: tuple[type[int] | type[float], ...]) -> bool:
    return type(value) in kinds and 0 < value < math.inf


def _is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return True


def _are_names(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(name, str) and name for name in values)


def _are_tokens(values: Any) -> bool:
    lists = values.values() if isinstance(values, Mapping) else [values]
    return all(isinstance(tokens, list) and all(map(_is_token, tokens)) for tokens in lists)


def _is_token(value: Any) -> bool:
    return type(value) is int and value >= 0
