"""Versions of files of which several processes read parts: all of them must have read the same.

What a file of the hub contains is told by its SHA-256, which only who has read all of it can compare. With each part, a
server says of which version it is a part (its ETag). Where all processes have been sent parts of one version, and one
of them has read and compared all of it, all have read what was meant; where none has, they have at least read one file.
Two hosts may call one version differently; a host that names two has had two.
"""

import collections
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lazyload.sources.files import NotAsReadError

_UNNAMED = ""
"""Of a server that does not say."""

_WEAK = "W/"
"""Before what a version is called, where something between may have packed it otherwise (RFC 9110, 8.8.3)."""


class Versions:
    """Which versions of files a process has read."""

    def __init__(self) -> None:
        """Of none yet."""
        self._named: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
        self._compared: set[str] = set()

    def note(self, file: str, host: str, etag: str | None) -> None:
        """Takes note of what a host's answer with a part of a file has called its version."""
        self._named[file].add((host, (etag or _UNNAMED).removeprefix(_WEAK)))

    def note_compared(self, files: Iterable[str]) -> None:
        """Takes note of files whose SHA-256 is compared."""
        self._compared.update(files)

    def as_json(self) -> dict[str, Any]:
        """The same for JSON: by file, pairs of a host and what it called the version; and the files compared."""
        return {
            "named": {file: [list(pair) for pair in sorted(named)] for file, named in self._named.items()},
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
    named: dict[str, set[tuple[str, str]]] = collections.defaultdict(set)
    compared: dict[str, list[bool]] = collections.defaultdict(list)
    for one in versions:
        for file, pairs in one["named"].items():
            named[file].update((host, etag) for host, etag in pairs)
            compared[file].append(file in one["compared"])
    return dict(sorted(collections.Counter(_kind(model, file, named[file], compared[file]) for file in named).items()))


def _kind(model: str, file: str, named: Collection[tuple[str, str]], compared: Iterable[bool]) -> str:
    """What was compared of a file.

    Args:
        model: What messages call the model.
        file: The file.
        named: Hosts, and what they have called versions of it.
        compared: Of each process that has read of it, whether it has compared the SHA-256.
    """
    if all(compared):
        return "sha256"
    by_host: dict[str, set[str]] = collections.defaultdict(set)
    for host, etag in named:
        by_host[host].update({etag} - {_UNNAMED})
    for host, etags in sorted(by_host.items()):
        if len(etags) > 1:
            raise NotAsReadError(
                f"{model}: what has arrived of {file} from {host} are parts of different versions "
                f"({', '.join(sorted(etags)[:3])}); call again, and see what is between here and the hub"
            )
    every = {etag for _, etag in named}
    if len(every) > 1 or _UNNAMED in every:
        return "size"
    return "sha256" if any(compared) else "etag"
