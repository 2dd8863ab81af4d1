"""Verifying the cache: everything that was written is read again and compared with its checksum."""

import os
from dataclasses import dataclass
from pathlib import Path

from lazyload.bucket.path import Folder
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry, read_entry
from lazyload.cache.manifest import UnreadableManifestError
from lazyload.display.values import named
from lazyload.errors import CacheError, StorageError
from lazyload.storage import Storage


@dataclass(frozen=True)
class Verification:
    """The comparison of what is in one entry's folder with what was written.

    Attributes:
        folder: The entry's folder.
        entry: The entry; None where its manifest or its data keep it from being one.
        problems: What is wrong, a sentence each; none if all is well.
    """

    folder: Folder
    entry: Entry | None
    problems: tuple[str, ...]

    def __repr__(self) -> str:
        first = self.problems[:1] + (f"and {len(self.problems) - 1} more",) * (len(self.problems) > 1)
        return named(self, repr(self.model), key=self.key, problems=first)

    @property
    def key(self) -> str:
        """The key's digest."""
        return self.folder.name

    @property
    def model(self) -> str:
        """The model's name; of what is no entry, the name of its folder."""
        return self.entry.model if self.entry else self.folder.parent.name


def verify(*targets: str, cache_dir: str | os.PathLike[str] | None = None) -> list[Verification]:
    """Compares every array and file of cached checkpoints with what was written.

    Args:
        targets: Names of models, or the starts of keys (4 characters at least); none for all entries.
        cache_dir: The cache's root; None for `$LAZYLOAD_CACHE`, else `~/.cache/lazyload`.

    Returns:
        One verification an entry, and one of its copy on a disk in front of a bucket, where there is one; an entry that
        cannot be read is one with problems.

    Raises:
        CacheError: A target is not in the cache.

    Example:
        >>> lazyload.verify(cache_dir="/nowhere")
        []
    """
    cache = Cache(cache_dir)
    folders = cache.folders(*targets)
    return [_verified(folder) for folder in [*folders, *cache.copies_of(folders)]]


def _verified(folder: Folder) -> Verification:
    try:
        entry = read_entry(folder)
    except UnreadableManifestError as error:
        return Verification(folder, None, (str(error),))
    return Verification(folder, entry, _problems(entry))


def _problems(entry: Entry) -> tuple[str, ...]:
    # TensorStore takes a while to import, and nothing else here needs it.
    from lazyload.checkpoint.verify import find_damage

    try:
        storage = Storage.from_fields(entry.manifest.fields.get("storage"))
    except StorageError as error:
        return (f"its manifest does not say how it is stored: {error}",)
    try:
        files = entry.place.damaged_files(entry.manifest.data, entry.manifest.files)
    except CacheError as error:
        if not isinstance(entry.folder, Path):
            raise
        files = [str(error)]
    except OSError as error:
        files = [f"{error.filename}: cannot be read now: {error.strerror}"]
    found = find_damage(entry.path, entry.manifest.arrays, storage)
    is_on_disk = isinstance(entry.folder, Path)
    if not is_on_disk and found and not files and all("NOT_FOUND" in each for each in found):
        # The objects are there; TensorStore, which has credentials and an endpoint of its own, does not find them.
        raise CacheError(f"{entry.path} is there, but TensorStore cannot read it: {found[0]}")
    return (*found, *files)
