"""A family of models: how its `config.json` reads, and how its checkpoints lie."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lazyload.architecture import DecoderConfig
from lazyload.layouts.layout import Layout


@dataclass(frozen=True)
class Family:
    """One family of architectures.

    Attributes:
        name: What messages call it.
        model_types: The values of `model_type` in `config.json` that it reads.
        config: Reads a parsed `config.json`; raises `ConfigError` for what it lacks or switches on in vain.
        huggingface: How the hub's checkpoints of such a model lie.
    """

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], DecoderConfig]
    huggingface: Callable[[DecoderConfig], Layout]
