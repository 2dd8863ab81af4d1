"""A family of models: how its `config.json` reads, and how its checkpoints lie."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lazyload.architecture import DecoderConfig
from lazyload.display.values import named
from lazyload.errors import ConfigError, LayoutError, LazyLoadError
from lazyload.layouts.layout import Layout


@dataclass(frozen=True)
class Family:
    """One family of architectures.

    Attributes:
        name: What messages call it.
        model_types: The values of `model_type` in `config.json` that it reads.
        config: Reads a parsed `config.json`; raises `ConfigError` for what it lacks or switches on in vain.
        huggingface: How the hub's checkpoints of such a model lie.
        title: What people call its models, for the README's table.
        covered: What is particular to it and covered, for the same.
        since: The version of this library that it came with.
    """

    name: str
    model_types: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], DecoderConfig]
    huggingface: Callable[[DecoderConfig], Layout]
    title: str = ""
    covered: str = ""
    since: str = ""

    def __repr__(self) -> str:
        return named(self, repr(self.name), model_types=self.model_types)

    def read(self, values: Mapping[str, Any]) -> Any:
        """What a parsed `config.json`, given as `values`, means.

        Raises:
            ConfigError: It cannot be read, for whatever reason.
        """
        try:
            config: Any = self.config(values)
        except LazyLoadError:
            raise
        except Exception as error:
            raise ConfigError(
                f"config.json cannot be read as family {self.name!r}: {type(error).__name__}: {error}"
            ) from error
        return replace(config, family=self.name) if isinstance(config, DecoderConfig) else config

    def stored(self, architecture: Any) -> Layout:
        """How the hub's checkpoints of a model lie, whose `config.json` was read as `architecture`.

        Raises:
            LayoutError: The family does not say, for whatever reason.
        """
        try:
            layout = self.huggingface(architecture)
        except LazyLoadError:
            raise
        except Exception as error:
            raise LayoutError(
                f"family {self.name!r} does not say how its checkpoints lie: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(layout, Layout):
            raise LayoutError(
                f"family {self.name!r}: its huggingface gave {layout!r:.100}, which is no lazyload.Layout"
            )
        return layout
