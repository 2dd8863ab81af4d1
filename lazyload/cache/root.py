"""The roots of a cache: folders of entries, each on a disk or in a bucket, and which of them a call means."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from lazyload.bucket.path import SCHEMES, BucketPath, Folder, bucket_path, is_url
from lazyload.cache.disk_root import DiskRoot
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.cache.removal import Removal
from lazyload.errors import CacheError


class Staging(Protocol):
    """A data folder that is being written; no entry until it is published.

    Attributes:
        path: The data folder.
    """

    @property
    def path(self) -> Any:
        """The data folder."""

    def move_to(self, key: Key) -> None:
        """Makes it the staging of another key of the same model, which has only now become known.

        Raises:
            CacheError: The cache cannot be written to, or the data has been removed.
        """

    def publish(
        self,
        *,
        arrays: Mapping[str, Mapping[str, Any]],
        nbytes: int,
        item: str = "",
        source: Mapping[str, Any],
        config: Mapping[str, Any],
        seconds: float,
        made: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Makes the staged data, or its folder `item`, the entry's checkpoint, in one atomic step.

        `made` says who made it and when, as `made_by_this_process` does, where that was not this process now.

        Returns:
            The entry; another writer's, where there are no locks and that one came first.

        Raises:
            CacheError: The manifest cannot be written, or the data is not what was written.
        """


class Root(Protocol):
    """A folder of entries."""

    @property
    def folder(self) -> Folder:
        """Where it is."""

    @property
    def names_last(self) -> bool:
        """Whether an entry can move to another key when it is complete."""

    def folders(self, model: str | None = None, key: str | None = None) -> Sequence[Folder]:
        """The folders of entries, complete or not: all, or those of a model's folder name, or of a key's digest."""

    def find(self, key: str, model: str) -> Sequence[Folder]:
        """The folders that may hold the entry of a key, which is most likely in that of a model's folder name."""

    def lock(
        self, digest: str, timeout: float | None, watch: Callable[[], None] = lambda: None
    ) -> AbstractContextManager[None]:
        """Keeps others from working at a key while the body runs; see `lazyload.cache.lock.hold`."""

    def staging(self, key: Key, model: str, folder: str, nbytes: int) -> AbstractContextManager[Staging]:
        """A fresh data folder for an entry; removed again unless the body publishes it.

        Args:
            key: The entry's key.
            model: The model's name.
            folder: The name of the model's folder.
            nbytes: Bytes that the entry will take.
        """

    def leftovers(self, folder: Any) -> list[Removal]:
        """What is in an entry's folder that neither a load nor a conversion can still use."""

    def unfinished(self, folder: Any) -> list[Removal]:
        """What conversions and removals that did not finish have left in an entry's folder."""

    def remove(self, path: Any, *, force: bool = False) -> str | None:
        """Removes an entry's folder, a data folder, or a file beside one; why it stays, if it does.

        Raises:
            OSError: It cannot be removed.
        """

    def abandoned(self) -> list[Removal]:
        """What processes that are gone have left beside the entries."""

    def compare_clocks(self) -> None:
        """Makes sure that the ages of entries are right, whatever clock has told when they were used."""

    def discard(self, path: Any) -> None:
        """Removes one of these.

        Raises:
            OSError: It cannot be removed.
        """

    def size(self, folder: Any) -> int:
        """What a folder or file takes, in bytes."""


def chosen_roots(root: str | os.PathLike[str] | None) -> list[Root]:
    """The roots that a call means; the last one is written to.

    Args:
        root: None for `$LAZYLOAD_CACHE`, else `$XDG_CACHE_HOME/lazyload`, else `~/.cache/lazyload`. The variable may
            name several, with colons between them.

    Raises:
        CacheError: One is a URL, but not of a bucket, or has a backslash.
    """
    chosen = os.fspath(root) if root is not None else os.environ.get("LAZYLOAD_CACHE")
    if not chosen:
        return [_root(default_root())]
    several = [chosen] if root is not None else _parts(chosen)
    return [_root(part) for part in several if part] or [_root(chosen)]


_OF_URLS = {*SCHEMES, "file", "hf", "http", "https"}
"""What stands before a colon of a URL that has lost a slash, rather than being a folder of that name."""


def _parts(chosen: str) -> list[str]:
    """What stands between colons that are not those of URLs.

    Example:
        >>> _parts("/local:gs://bucket/path:/own")
        ['/local', 'gs://bucket/path', '/own']
    """
    parts: list[str] = []
    for part in chosen.split(os.pathsep):
        is_scheme = bool(parts) and re.fullmatch("[A-Za-z][A-Za-z0-9+.-]+", parts[-1]) is not None
        if is_scheme and (part.startswith("//") or (part.startswith("/") and parts[-1].lower() in _OF_URLS)):
            parts[-1] += f":{part}"
        else:
            parts.append(part)
    return parts


def default_root() -> str:
    """The root where nobody says anything else."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lazyload")


def root_of(folder: Folder) -> Root:
    """The root that an entry's folder is in."""
    return DiskRoot(folder.parents[1]) if isinstance(folder, Path) else _in_bucket(folder.parents[1])


def size(folder: Folder) -> int:
    """What an entry's folder takes, in bytes."""
    return root_of(folder).size(folder)


def _root(chosen: str) -> Root:
    if is_url(chosen):
        return _in_bucket(bucket_path(chosen))
    if "\\" in chosen:
        raise CacheError(f"{chosen}: TensorStore reads no paths with a backslash; give another cache_dir")
    path = Path(chosen).expanduser().absolute()
    return DiskRoot(path.resolve() if ".." in path.parts else path)


def _in_bucket(folder: BucketPath) -> Root:
    # A cache on a disk does without what it imports.
    from lazyload.cache.bucket_root import BucketRoot

    return BucketRoot(folder)
