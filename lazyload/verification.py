"""Verifying the cache: every array of an entry is read again and compared with its checksum."""

import os
from dataclasses import dataclass

from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry
from lazyload.errors import StorageError
from lazyload.storage import Storage


@dataclass(frozen=True)
class Verification:
    """The comparison of one entry with its checksums.

    Attributes:
        entry: The entry.
        problems: What is wrong, a sentence each; none if all is well.
    """

    entry: Entry
    problems: tuple[str, ...]


def verify(*targets: str, cache_dir: str | os.PathLike[str] | None = None) -> list[Verification]:
    """Compares every array of cached checkpoints with its checksum.

    Args:
        targets: Names of models, or the starts of keys (4 characters at least); none for all entries.
        cache_dir: The cache's root; None for `$LAZYLOAD_CACHE`, else `~/.cache/lazyload`.

    Returns:
        One verification an entry; an entry that cannot be read is one with problems.

    Raises:
        CacheError: A target is not in the cache.

    Example:
        >>> lazyload.verify(cache_dir="/nowhere")
        []
    """
    cache = Cache(cache_dir)
    entries = cache.select(*targets) if targets else cache.entries()
    return [Verification(entry, _problems(entry)) for entry in entries]


def _problems(entry: Entry) -> tuple[str, ...]:
    # TensorStore takes a while to import, and nothing else here needs it.
    from lazyload.checkpoint.verify import find_damage

    try:
        storage = Storage.from_fields(entry.manifest.fields.get("storage"))
    except StorageError as error:
        return (f"its manifest does not say how it is stored: {error}",)
    return tuple(find_damage(entry.path, entry.manifest.arrays, storage))
