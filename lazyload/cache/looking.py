"""What lists show of a root: its entries, and what is none, with one look at each folder.

On a disk that comes from the index, as far as it holds, and else from the manifests; in a bucket from these, many at a
time.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lazyload.bucket.path import Folder
from lazyload.cache.entry import Listed, read_entry
from lazyload.cache.index import WORTH_BYTES, Index
from lazyload.cache.manifest import FILE_NAME, AbsentError, Status, Summary, UnreadableManifestError, Version
from lazyload.cache.place import place_of
from lazyload.cache.root import Root

_FEW = 8
"""So few manifests are read as quickly as an index."""

_Look = tuple[Listed, Version | None, bool]
"""An entry, the status of its manifest where it is known, and whether that had to be read."""


def look_at(root: Root, model: str | None, *, writes_index: bool = False) -> tuple[list[Listed], dict[Folder, str]]:
    """The entries of a root, and the folders that are none, with the reason.

    Args:
        root: The root.
        model: The name of a model's folder; None for all.
        writes_index: Whether what had to be read is to be in the index the next time.
    """
    entries: list[Listed] = []
    problems: dict[Folder, str] = {}
    folders = root.folders(model)
    index = _index(root, folders)
    known: dict[str, tuple[Status, Summary]] = {}
    nbytes = 0
    for folder, found in zip(folders, _looks(folders, index), strict=True):
        if isinstance(found, AbsentError):
            continue
        if isinstance(found, UnreadableManifestError):
            problems[folder] = str(found)
            continue
        listed, status, is_new = found
        entries.append(listed)
        if isinstance(status, Status):
            known[_name(folder)] = status, listed.manifest
            nbytes += status.size * is_new
    if index is not None and writes_index and nbytes > WORTH_BYTES:
        index.write(known)
    return entries, problems


def names_in(root: Root) -> tuple[list[str], list[str]]:
    """The models and the keys that there are in a root, with a look at one manifest a model."""
    models: dict[Folder, str] = {}
    keys = []
    folders = root.folders()
    index = _index(root, folders)
    for folder in folders:
        keys.append(folder.name)
        if folder.parent not in models:
            with contextlib.suppress(UnreadableManifestError):
                models[folder.parent] = _look(folder, index)[0].model
    return sorted(set(models.values())), keys


def _index(root: Root, folders: Sequence[Folder]) -> Index | None:
    return Index(root.folder) if isinstance(root.folder, Path) and len(folders) > _FEW else None


def _looks(folders: Sequence[Folder], index: Index | None) -> Iterator[_Look | UnreadableManifestError]:
    """What there is in folders, or why there is nothing."""

    def look(folder: Folder) -> _Look | UnreadableManifestError:
        try:
            return _look(folder, index)
        except UnreadableManifestError as error:
            return error

    if folders and not isinstance(folders[0], Path):
        return folders[0].bucket.at_once(look, folders)
    return map(look, folders)


def _look(folder: Folder, index: Index | None) -> _Look:
    """What there is in a folder.

    Raises:
        UnreadableManifestError: There is no complete entry.
    """
    if index is not None:
        with contextlib.suppress(OSError):
            status = Status.of(os.stat(f"{folder}/{FILE_NAME}"))
            summary = index.find(_name(folder), status)
            if summary is not None:
                place_of(folder).require_data(summary)
                return Listed(folder, summary), status, False
    entry = read_entry(folder)
    return entry, entry.status, True


def _name(folder: Folder) -> str:
    """An entry's folder as the index calls it, below the root."""
    # A thousand times, the parents of a path are slow.
    return "/".join(str(folder).rsplit("/", 2)[1:])
