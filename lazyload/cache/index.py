"""The index of a root: summaries of its manifests, so that lists need not read what may be megabytes an entry.

<root>/.index/entries     a line an entry: digest of the rest, folder, status of the manifest, summary as JSON

It is derived. A line is believed for as long as the manifest's file has the very status that it was read with, and
where nobody may write the index, or it is damaged, the manifests are read. Processes that write it at the same time
replace each other's.
"""

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

from lazyload.cache.disk import make_folder, share
from lazyload.cache.key import ENTRY_FORMAT
from lazyload.cache.manifest import FORMAT, Status, Summary

_FOLDER = ".index"
_FILE = "entries"

WORTH_BYTES = 1 << 20
"""So many bytes of manifests are read as quickly as an index is written."""

_SETTLED_SECONDS = 2.0
"""How long ago a manifest was changed so that a further change shows in its status: the longest tick (FAT's)."""

_LEFT_SECONDS = 3600.0
"""How old a file beside the index is that nobody is writing any more."""

_VERSION = f"1 {FORMAT} {ENTRY_FORMAT}".encode()
"""Part of every digest: what other versions wrote counts as damaged."""

_NAMES = tuple(field.name for field in fields(Summary))
_PLAIN = re.compile(r"[\w.-]+/[0-9a-f]{32}", re.ASCII)


class Index:
    """What the index of a root says."""

    def __init__(self, root: Path):
        """Reads it as a whole, and believes nothing yet."""
        content = b""
        with contextlib.suppress(OSError):
            content = (root / _FOLDER / _FILE).read_bytes()
        self._root = root
        self._lines: dict[bytes, tuple[bytes, bytes]] = {}
        for line in content.split(b"\n"):
            digest, _, rest = line.partition(b"\t")
            self._lines[rest.partition(b"\t")[0]] = digest, rest

    def find(self, folder: str, status: Status) -> Summary | None:
        """The summary of a manifest; None where its file is another one than was read, or has never been.

        Args:
            folder: Its folder below the root, `models--Qwen--Qwen3-8B/0f3c...`.
            status: Of its file, now.
        """
        digest, rest = self._lines.get(folder.encode(errors="surrogateescape"), (b"", b""))
        start = _start(folder, status)
        if not rest.startswith(start) or digest != _digest(rest):
            return None
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return Summary(**dict(zip(_NAMES, json.loads(rest[len(start) :].decode()), strict=True)))
        return None

    def write(self, summaries: Mapping[str, tuple[Status, Summary]]) -> None:
        """Writes the index anew, where this process may.

        Args:
            summaries: By folder below the root.
        """
        lines = b"".join(_lines(summaries, time.time()))
        folder = self._root / _FOLDER
        temporary = folder / f"{_FILE}.{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            make_folder(folder, self._root)
            try:
                temporary.write_bytes(lines)
                share(temporary, self._root)
                os.replace(temporary, folder / _FILE)
            finally:
                temporary.unlink(missing_ok=True)


def abandoned(root: Path) -> list[Path]:
    """Files that processes have left beside an index which ended while they wrote it."""
    with contextlib.suppress(OSError):
        beside = sorted((root / _FOLDER).glob(f"{_FILE}.*"))
        return [path for path in beside if time.time() - path.stat().st_mtime > _LEFT_SECONDS]
    return []


def _lines(summaries: Mapping[str, tuple[Status, Summary]], now: float) -> Iterator[bytes]:
    for folder, (status, summary) in summaries.items():
        if _PLAIN.fullmatch(folder) and status.ctime_ns / 1e9 + _SETTLED_SECONDS < now:
            values = [getattr(summary, name) for name in _NAMES]
            rest = _start(folder, status) + json.dumps(values, separators=(",", ":")).encode()
            yield _digest(rest) + b"\t" + rest + b"\n"


def _start(folder: str, status: Status) -> bytes:
    # Not the device, which hosts that share a root number differently.
    _, *rest = status
    return f"{folder}\t{'.'.join(map(str, rest))}\t".encode(errors="surrogateescape")


def _digest(rest: bytes) -> bytes:
    return hashlib.sha256(_VERSION + rest).hexdigest()[:32].encode()
