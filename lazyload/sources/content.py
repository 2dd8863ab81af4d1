"""What a file contains, by its SHA-256: the name that the hub has for it, too."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

_BYTES_AT_ONCE = 1 << 20

_TICK_SECONDS = 0.02
"""File systems take the time from the kernel's tick, which on Linux is 10 ms long at most."""

_COARSE_TICK_SECONDS = 2.0
"""Where they keep whole seconds only, or (FAT) every second one."""

_BLOB = re.compile("[0-9a-f]{64}")


class Contents(Protocol):
    """A memory of what files contain; see `lazyload.cache.contents.Contents`."""

    def recall(self, folder: Path) -> Mapping[str, Mapping[str, Any]]:
        """What is remembered of a folder's files, by name: `status_of` each one then, and its `sha256`."""

    def remember(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Remembers that of some files of a folder."""


class NoContents:
    """Remembers nothing."""

    def recall(self, folder: Path) -> Mapping[str, Mapping[str, Any]]:
        """Nothing."""
        return {}

    def remember(self, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Forgets it."""


def status_of(status: os.stat_result) -> dict[str, int]:
    """What of a file's status changes whenever its content does.

    Who copies one file over another may keep its size and its modification time (`cp -p`, `rsync -t`), but cannot set
    the time at which the system last changed anything about it.
    """
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
    }


def wait_for_tick(status: os.stat_result) -> None:
    """Waits until any further change of a file would show in its status.

    Two changes in one tick of the file system's clock have the same time, so that of a file that has just been changed,
    the status does not tell whether it is being changed further.
    """
    is_coarse = status.st_ctime_ns % 1_000_000_000 == 0
    tick = _COARSE_TICK_SECONDS if is_coarse else _TICK_SECONDS
    age = time.time() - status.st_ctime_ns / 1e9
    # A time in the future is another machine's, whose clock is ahead.
    if age < tick:
        time.sleep(tick)


def sha256_of(read_into: Callable[[int, memoryview], None], size: int, advance: Callable[[int], None]) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits.

    Args:
        read_into: Fills memory from a position of the file on.
        size: The size of the file.
        advance: Called with the number of bytes that were just read.
    """
    digest = hashlib.sha256()
    memory = memoryview(bytearray(min(size, _BYTES_AT_ONCE)))
    for start in range(0, size, _BYTES_AT_ONCE):
        piece = memory[: min(_BYTES_AT_ONCE, size - start)]
        read_into(start, piece)
        digest.update(piece)
        advance(len(piece))
    return digest.hexdigest()


def blob_of(path: Path) -> str | None:
    """The SHA-256 of a file of the hub's cache, whose blobs are named by it; None for any other file.

    `snapshots/<commit>/model.safetensors` is a link to `../../blobs/<sha256>`
    (https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
    """
    if not path.is_symlink():
        return None
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name) else None
