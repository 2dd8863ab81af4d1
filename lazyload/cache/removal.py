"""Removing from the cache: what no load can use, and entries that somebody chose."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lazyload.bucket.path import Folder
from lazyload.cache import generation, liveness
from lazyload.cache.disk import paths_in
from lazyload.cache.entry import named_data
from lazyload.cache.manifest import FILE_NAME, DamagedError, OlderFormatError, UnreadableManifestError

KEPT_SECONDS = 3600.0
"""How long data that a newer conversion has replaced is kept for the loads that began before."""


@dataclass(frozen=True)
class Removal:
    """Something that was removed from the cache, or with `dry_run` would be.

    Attributes:
        path: The folder or file.
        nbytes: What it takes on disk.
        reason: Why.
    """

    path: Folder
    nbytes: int
    reason: str


def leftovers(folder: Path) -> list[Removal]:
    """What is in an entry's folder that neither a load nor a conversion can still use.

    Where a manifest is there but cannot be read, or is of a newer format, no data is known to be unused.
    """
    removals = list(_dead_files(folder))
    try:
        named = named_data(folder)
    except DamagedError as error:
        return [*removals, Removal(folder, size(folder), f"damaged: {error}")]
    except OlderFormatError as error:
        in_use = any(map(generation.user_of, _generations(folder)))
        unread = f"made by lazyload {error.version}, which this version does not read"
        return removals if in_use else [*removals, Removal(folder, size(folder), unread)]
    except UnreadableManifestError:
        return removals
    return [*removals, *_unpublished(folder, named), *_replaced(folder, named)]


def unfinished(folder: Path) -> list[Removal]:
    """What conversions and removals that did not finish have left in an entry's folder.

    Where the manifest cannot be read, no data is known to be unfinished.
    """
    removals = list(_dead_files(folder))
    try:
        named = named_data(folder)
    except UnreadableManifestError:
        return removals
    return [*removals, *_unpublished(folder, named)]


def remove(path: Path, *, force: bool = False) -> str | None:
    """Removes an entry's folder, a data folder, or a file beside one; to be called under the key's lock.

    Args:
        path: What to remove.
        force: Whether to remove also what somebody writes or reads.

    Returns:
        Why it stays, a clause; None if it is gone.

    Raises:
        OSError: It cannot be removed.
    """
    folder = path if path.is_dir() and not path.name.startswith(("data-", generation.TOMBSTONE)) else path.parent
    try:
        if path == folder:
            return _remove_entry(folder, force)
        if path.name.startswith("data-") and path.is_dir():
            return generation.remove(path, force=force)
        generation.bury(path)
        return None
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def size(folder: Path) -> int:
    """What a folder or file takes on disk, in bytes."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _remove_entry(folder: Path, force: bool) -> str | None:
    """Removes all generations of an entry; says who uses one that stays."""
    manifest = folder / FILE_NAME
    try:
        named = named_data(folder)
    except UnreadableManifestError:
        named = ""
    generations = _generations(folder)
    kept = [
        reason
        for data in generations
        if (reason := generation.remove(data, manifest if named in ("", data.name) else None, force=force))
    ]
    if kept:
        return kept[0]
    for rest in (*paths_in(folder, f"{FILE_NAME}*", f"{generation.TOMBSTONE}*"), folder / "last-used"):
        generation.bury(rest)
    for mark in _marks(folder):
        if force or not liveness.is_alive(mark):
            mark.unlink(missing_ok=True)
    return None


def _unpublished(folder: Path, named: str) -> Iterator[Removal]:
    """What a conversion left that is gone: its data, or beside published data, which the manifest names, its mark."""
    for data in _generations(folder):
        owner = generation.owner_of(data)
        if data.name == named:
            if owner.exists() and not liveness.is_alive(owner):
                yield Removal(owner, 0, "its process is gone")
        elif owner.exists() and not generation.user_of(data):
            yield Removal(data, size(data), "a conversion that did not finish")


def _replaced(folder: Path, named: str) -> Iterator[Removal]:
    for data in _generations(folder):
        is_candidate = data.name != named and not generation.owner_of(data).exists()
        if is_candidate and not generation.user_of(data) and liveness.age(data) > KEPT_SECONDS:
            yield Removal(data, size(data), "replaced by a newer conversion")


def _generations(folder: Path) -> list[Path]:
    return [data for data in sorted(paths_in(folder, "data-*")) if data.is_dir() and not data.is_symlink()]


def _marks(folder: Path) -> list[Path]:
    """All marks in an entry's folder, also those that were killed before they had their name."""
    return paths_in(folder, "data-*.owner", "data-*.lease-*", "lease-*", ".*.mark")


def _dead_files(folder: Path) -> Iterator[Removal]:
    for mark in _marks(folder):
        # An owner's mark goes with the data that it tells of.
        is_owner = mark.suffix == ".owner" and mark.with_suffix("").is_dir()
        if not is_owner and not liveness.is_alive(mark):
            yield Removal(mark, 0, "its process is gone")
    for rest in paths_in(folder, f"{FILE_NAME}.*", f"{generation.TOMBSTONE}*"):
        if liveness.age(rest) > KEPT_SECONDS:
            yield Removal(rest, size(rest), "what an interrupted conversion or removal left")
