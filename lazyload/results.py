"""What `convert` and `plan` return."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lazyload.cache.entry import Entry
from lazyload.cache.manifest import Manifest


@dataclass(frozen=True)
class CachedCheckpoint:
    """A converted checkpoint in the cache.

    Attributes:
        path: The Orbax checkpoint folder; plain Orbax reads it.
        key: Its key.
        converted: Whether this call converted it; False for a hit.
        manifest: What the cache knows of it.
    """

    path: Path
    key: str
    converted: bool
    manifest: Manifest

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the checkpoint from being removed while the body runs, for readers that outlive the call.

        Raises:
            EntryRemovedError: It has been removed, or converted again, since the call.

        Example:
            >>> with lazyload.convert("Qwen/Qwen3-8B").in_use():  # doctest: +SKIP
            ...     restore(converted.path)
        """
        folder = self.path.parents[1] if self.manifest.item else self.path.parent
        with Entry(folder, self.manifest).in_use():
            yield


@dataclass(frozen=True)
class Parameter:
    """One array of a plan.

    Attributes:
        shape: Its shape.
        dtype: The name of its dtype.
        axes: The logical axis of each dimension.
        nbytes: Its size in bytes.
        sources: The source tensors that it is made of.
    """

    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str, ...]
    nbytes: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a load would do.

    Attributes:
        model: The model's name.
        family: Its architecture.
        layout: The layout's name.
        parameters: The arrays, by path.
        skipped: Source tensors that are knowingly not used.
        other_layers: Those of them that belong to other layers than the ones asked for.
        unread: Source tensors that are left aside, because no model of this kind reads them.
        nbytes: The size of all arrays.
        hit: Whether the entry is in the cache.
        reasons: If not, why: sentences.
    """

    model: str
    family: str
    layout: str
    parameters: Mapping[str, Parameter]
    skipped: tuple[str, ...]
    other_layers: tuple[str, ...]
    unread: tuple[str, ...]
    nbytes: int
    hit: bool
    reasons: tuple[str, ...]
    _key: Callable[[], str] = field(repr=False, compare=False, kw_only=True)

    @functools.cached_property
    def key(self) -> str:
        """The key of the entry; of a folder that has never been loaded, the weights are read to tell it.

        Raises:
            LazyLoadError: The folder is gone, or is being written.
        """
        return self._key()
