"""A hub model known only from an entry of the cache: what is left when the hub and its own cache are out of reach."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from lazyload.layouts.source import Box


@dataclass(frozen=True)
class RememberedSource:
    """Stands for a source as long as nobody asks for its weights.

    Attributes:
        name: The model's name.
        config: Its `config.json`, as the entry's manifest keeps it.
        identity: What the entry's key says of the source.
        description: What the entry's manifest says of it.
        error: Why the source itself cannot be opened; raised when a tensor is asked for.
    """

    name: str
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    description: Mapping[str, Any]
    error: Exception
    nbytes_read: int = 0

    @property
    def tensors(self) -> NoReturn:
        """Raises the error that kept the source from being opened."""
        raise self.error

    def read(self, name: str, index: Box) -> NoReturn:
        """Raises the error that kept the source from being opened."""
        raise self.error

    def fetch(self) -> NoReturn:
        """Raises the error that kept the source from being opened."""
        raise self.error

    def close(self) -> None:
        """There is nothing to close."""
