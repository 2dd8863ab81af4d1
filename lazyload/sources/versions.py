"""Versions of files of which several processes read parts: all of them must have read the same.

What a file of the hub contains is told by its SHA-256, which only who has read all of it can compare. With each part, a
server says of which version it is a part (its ETag). Where all processes have been sent parts of one version, and one
of them has read and compared all of it, all have read what was meant; where none has, they have at least read one file.
"""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

from lazyload.sources.files import NotAsReadError

_UNNAMED = ""
"""Of a server that does not say."""


class Versions:
    """Which versions of files a process has read."""

    def __init__(self) -> None:
        """Of none yet."""
        self._etags: dict[str, set[str]] = collections.defaultdict(set)
        self._compared: set[str] = set()

    def note(self, file: str, etag: str | None) -> None:
        """Takes note of what an answer with a part of a file has called its version."""
        self._etags[file].add(etag or _UNNAMED)

    def note_compared(self, files: Iterable[str]) -> None:
        """Takes note of files whose SHA-256 is compared."""
        self._compared.update(files)

    def as_json(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "etags": {file: sorted(etags) for file, etags in self._etags.items()},
            "compared": sorted(self._compared),
        }


def counted(model: str, versions: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Makes sure that several processes have read the same versions of files.

    Args:
        model: What messages call the model.
        versions: What each of them has read (`Versions.as_json`).

    Returns:
        Of how many files what was compared: `sha256`, or `etag`, or only `size`.

    Raises:
        NotAsReadError: They have read different ones.
    """
    readers: dict[str, list[set[str]]] = collections.defaultdict(list)
    compared: set[str] = set()
    for one in versions:
        compared.update(one["compared"])
        for file, etags in one["etags"].items():
            readers[file].append({*etags})
    kinds: collections.Counter[str] = collections.Counter()
    for file, seen in sorted(readers.items()):
        etags = set.union(*seen)
        if len(etags - {_UNNAMED}) > 1:
            raise NotAsReadError(
                f"{model}: what has arrived of {file} are parts of different versions "
                f"({', '.join(sorted(etags)[:3])}); call again, and see what is between here and the hub"
            )
        is_one = len(seen) == 1 or _UNNAMED not in etags
        kinds["sha256" if file in compared and is_one else "size" if _UNNAMED in etags else "etag"] += 1
    return dict(sorted(kinds.items()))
