"""A hub model known from an entry of the cache, so that a hit needs neither the hub nor its own cache."""

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from lazyload.layouts.source import Box, TensorInfo
from lazyload.progress import Advance
from lazyload.sources.source import Source
from lazyload.sources.stretches import Rows


class Told(NamedTuple):
    """What another process has found out about a hub model.

    Attributes:
        config: Its `config.json`.
        identity: What the entry's key says of the source.
        origin: What the entry's manifest says of it.
    """

    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    origin: Mapping[str, Any]


class Open(Protocol):
    """Opens a source; see `lazyload.sources.open_source`."""

    def __call__(self, *, answers: Mapping[str, Any] | None = None) -> Source:
        """Opens it, with what another process's source has been answered, if that is known."""


@dataclass(frozen=True)
class RememberedSource:
    """Stands for a source, which is opened only when somebody asks for its weights.

    Attributes:
        name: The model's name.
        config: Its `config.json`, as the entry's manifest keeps it.
        identity: What the entry's key says of the source.
        origin: What the entry's manifest says of it.
        open: Opens the source itself, or raises what keeps it from being opened.
    """

    name: str
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    origin: Mapping[str, Any]
    open: "Open"

    @property
    def nbytes_read(self) -> int:
        """Bytes of weights that have been read."""
        return self._source.nbytes_read if self._is_open else 0

    def know(self, identity: Mapping[str, Any]) -> None:
        """Nothing: a commit is known."""

    def identify(self, advance: Advance | None = None) -> Mapping[str, Any]:
        """The same as `identity`."""
        return self.identity

    def file_names(self) -> list[str]:
        """The names of the files beside `config.json`, the weights among them."""
        return self._source.file_names()

    def find(self, name: str) -> bytes | None:
        """The whole content of a small file; None where there is no such file."""
        return self._source.find(name)

    @property
    def status(self) -> Mapping[str, Any]:
        """Nothing: a commit does not change."""
        return {}

    @property
    def is_identified(self) -> bool:
        """Whether `identity` is known to read no weights as a whole."""
        return True

    @property
    def is_far(self) -> bool:
        """Whether nothing of it should be read twice."""
        return self._source.is_far

    @property
    def is_for_all(self) -> bool:
        """Whether processes elsewhere can read it as this one does."""
        return self._source.is_for_all

    def answers(self) -> dict[str, Any]:
        """What another process needs to read the same."""
        return self._source.answers()

    def take_over(self, answers: Mapping[str, Any]) -> None:
        """Opens the source with what another process has been answered of it, so that nobody is asked."""
        if not self._is_open:
            self.__dict__["_source"] = self.open(answers=answers["files"])
        self._source.take_over(answers)

    @property
    def compared(self) -> Mapping[str, int]:
        """Of how many files, read by several processes, what was compared."""
        return self._source.compared if self._is_open else {}

    @property
    def unequal(self) -> list[tuple[str, str]]:
        """Pairs of tensors that this process knows to differ."""
        return self._source.unequal if self._is_open else []

    def know_unequal(self, pairs: Iterable[Sequence[str]]) -> None:
        """Takes over which pairs another process knows to differ."""
        self._source.know_unequal(pairs)

    def versions(self) -> Mapping[str, Any]:
        """Which versions of its files this process has read parts of."""
        return self._source.versions()

    def compare_versions(self, others: Iterable[Mapping[str, Any]]) -> None:
        """Makes sure that other processes have read the same versions as this one."""
        self._source.compare_versions(others)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name."""
        return self._source.tensors

    @property
    def skipped(self) -> frozenset[str]:
        """Stored tensors that are known not to matter."""
        return self._source.skipped

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor."""
        return self._source.read(name, index)

    def looks_equal(self, one: str, other: str) -> bool | None:
        """Whether two tensors hold the same bits."""
        return self._source.looks_equal(one, other)

    def position(self, name: str) -> int:
        """When a tensor has arrived."""
        return self._source.position(name)

    def stored_bytes(self, name: str) -> int:
        """How many bytes are read for a tensor."""
        return self._source.stored_bytes(name)

    def nbytes_to_fetch(self, tensors: Collection[str], *, keep: bool, rows: Rows | None = None) -> int:
        """How many bytes `arriving` downloads."""
        return self._source.nbytes_to_fetch(tensors, keep=keep, rows=rows)

    def arriving(
        self,
        tensors: Collection[str],
        advance: Advance = lambda nbytes: None,
        *,
        keep: bool = True,
        rows: Rows | None = None,
    ) -> AbstractContextManager[None]:
        """Brings weights while the body runs."""
        return self._source.arriving(tensors, advance, keep=keep, rows=rows)

    def stop_arriving(self, error: BaseException) -> None:
        """Ends what is under way, and whoever waits for it, with an error."""
        if self._is_open:
            self._source.stop_arriving(error)

    def check_unchanged(self, status: Mapping[str, Any]) -> None:
        """A commit does not change."""

    def require_status(self, status: Mapping[str, Any]) -> None:
        """A commit does not change."""

    def close(self) -> None:
        """Lets go of what is open."""
        if self._is_open:
            self._source.close()

    @functools.cached_property
    def _source(self) -> Source:
        return self.open()

    @property
    def _is_open(self) -> bool:
        return "_source" in self.__dict__
