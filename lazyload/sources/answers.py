"""Answers of the hub about the files of a model: kept for a call, and handed on to processes that read the same files.

With them, another process knows the headers and where the weights lie, and asks the hub nothing.
"""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub.file_download import HfFileMetadata

_SMALL_BYTES = 16 << 10
_MOST_SMALL_BYTES = 8 << 20


@dataclass
class Answers:
    """What the hub has answered about a model at one commit.

    Attributes:
        commit: The commit.
        revision: The revision that was asked for, which it was at.
        contents: Small files by name; None for one that is not there.
        starts: Of other files the first bytes, and their sizes.
        ranges: Further bytes, by the file's name and where they begin.
        metadata: Where files lie, and what they contain.
        absent: Files that are not there.
    """

    commit: str
    revision: str | None
    contents: dict[str, bytes | None] = field(default_factory=dict)
    starts: dict[str, tuple[bytes | bytearray, int]] = field(default_factory=dict)
    ranges: dict[tuple[str, int], bytes] = field(default_factory=dict)
    metadata: dict[str, HfFileMetadata] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    def note_range(self, name: str, start: int, content: bytes | bytearray) -> None:
        """Keeps a range of a file, if it is small."""
        if len(content) <= _SMALL_BYTES and sum(map(len, self.ranges.values())) < _MOST_SMALL_BYTES:
            self.ranges[name, start] = bytes(content)

    def known(self, name: str, start: int, nbytes: int) -> bytes | bytearray | None:
        """So many bytes of a file, where they are among the answers."""
        first = self.starts[name][0][start : start + nbytes] if name in self.starts else b""
        content = first if len(first) == nbytes else self.ranges.get((name, start), b"")
        return content if len(content) == nbytes else None

    def as_json(self) -> dict[str, Any]:
        """The same for JSON; of what files begin with, the header alone."""
        return {
            "commit": self.commit,
            "revision": self.revision,
            "contents": {name: None if text is None else _packed(text) for name, text in self.contents.items()},
            "starts": {name: [_packed(_header(start)), size] for name, (start, size) in self.starts.items()},
            "ranges": [[name, start, _packed(content)] for (name, start), content in self.ranges.items()],
            "metadata": {
                name: {"etag": told.etag, "location": told.location, "size": told.size}
                for name, told in self.metadata.items()
            },
            "absent": sorted(self.absent),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Answers":
        """What `as_json` gave."""
        return cls(
            value["commit"],
            value["revision"],
            {name: None if text is None else _unpacked(text) for name, text in value["contents"].items()},
            {name: (_unpacked(start), size) for name, (start, size) in value["starts"].items()},
            {(name, start): _unpacked(content) for name, start, content in value["ranges"]},
            {
                name: HfFileMetadata(commit_hash=value["commit"], xet_file_data=None, **told)
                for name, told in value["metadata"].items()
            },
            set(value["absent"]),
        )


def _header(start: bytes | bytearray) -> bytes | bytearray:
    """What a safetensors file begins with, up to its first tensor (`lazyload/sources/safetensors.py`)."""
    return start[: 8 + int.from_bytes(start[:8], "little")]


def _packed(content: bytes | bytearray) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
