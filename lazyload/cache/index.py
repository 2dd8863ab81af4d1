"""The index of a root: summaries of its manifests, so that lists need not read what may be megabytes an entry.

<root>/.index/entries   digest of the rest, and {FOLDER: [[INODE, SIZE, MTIME_NS, CTIME_NS], [KEY, FIELDS, ...]]}

It is derived. A summary is believed for as long as the manifest's file has the very status that it was read with, and
where nobody may write the index, or it is damaged, the manifests are read. Processes that write it at the same time
replace each other's.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

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

_NAMES = tuple(field.name for field in fields(Summary))
_VERSION = f"2 {FORMAT} {ENTRY_FORMAT} {' '.join(_NAMES)} ".encode()
"""Part of the digest: what other versions wrote counts as damaged."""

_PLAIN = r"[A-Za-z0-9_.-]+/[0-9a-f]{32}"


class Index:
    """What the index of a root says."""

    def __init__(self, root: Path):
        """Reads it as a whole, at once: a thousand pieces of JSON take twice as long."""
        self._root = root
        self._known: dict[str, tuple[list[int], list[Any]]] = {}
        with contextlib.suppress(OSError):
            digest, _, content = (root / _FOLDER / _FILE).read_bytes().partition(b"\n")
            if digest == _digest(content):
                self._known = json.loads(content)

    def find(self, folder: str, status: Status) -> Summary | None:
        """The summary of a manifest; None where its file is another one than was read, or has never been.

        Args:
            folder: Its folder below the root, `models--Qwen--Qwen3-8B/0f3c...`.
            status: Of its file, now.
        """
        known, values = self._known.get(folder, ([], []))
        return Summary(**dict(zip(_NAMES, values, strict=True))) if known == _compared(status) else None

    def write(self, summaries: Mapping[str, tuple[Status, Summary]]) -> None:
        """Writes the index anew, where this process may.

        Args:
            summaries: By folder below the root.
        """
        now = time.time()
        known = {
            folder: (_compared(status), [getattr(summary, name) for name in _NAMES])
            for folder, (status, summary) in summaries.items()
            if re.fullmatch(_PLAIN, folder) and status.ctime_ns / 1e9 + _SETTLED_SECONDS < now
        }
        content = json.dumps(known, separators=(",", ":")).encode()
        folder = self._root / _FOLDER
        temporary = folder / f"{_FILE}.{os.urandom(16).hex()}"
        with contextlib.suppress(OSError):
            make_folder(folder, self._root)
            try:
                temporary.write_bytes(_digest(content) + b"\n" + content)
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


def _compared(status: Status) -> list[int]:
    # Not the device, which hosts that share a root number differently.
    _, *rest = status
    return rest


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(_VERSION + content).hexdigest().encode()
