"""Files of a checkpoint on a disk: read and written at positions, by any number of threads."""

import contextlib
import ctypes
import errno
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

_MOST_AT_ONCE = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16
_MOST_OPEN = 256
"""There may be more files than a process can have open."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileRanges:
    """The files of a checkpoint, to be read; see `lazyload.checkpoint.uncompressed.Ranges`."""

    threads = min(16, max(4, os.cpu_count() or 4))
    batch_bytes = 16 << 20
    # It stays in the processor's cache until it is copied; of smaller ones, Python takes longer than the copy.
    strip_bytes = 2 << 20

    def __init__(self, folder: Path):
        """`folder` is that of the arrays."""
        self._folder = folder
        self._files = OpenFiles(folder)

    def read(self, file: str, offset: int, parts: Sequence[memoryview]) -> None:
        """Fills memory in one call."""
        with self._files.opened(file) as descriptor:
            read_at(descriptor, offset, parts)

    def expect(self, spans: Sequence[tuple[str, int, int]]) -> None:
        """Nothing: to read a file costs no more in several calls."""

    def require_size(self, file: str, nbytes: int) -> None:
        """Looks at the file."""
        if (self._folder / file).stat().st_size != nbytes:
            raise ValueError(f"{self._folder / file} has not the {nbytes} bytes of a chunk")

    def close(self) -> None:
        """Closes the files."""
        self._files.close()


class OpenFiles:
    """The files of a checkpoint, each opened once; threads share them."""

    def __init__(self, folder: Path, flags: int = os.O_RDONLY):
        """`flags` are those of `os.open`."""
        self._folder = folder
        self._flags = flags | os.O_CLOEXEC
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def descriptor(self, file: str) -> int:
        """An open file's descriptor.

        Raises:
            OSError: It cannot be opened.
        """
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self._folder / file, self._flags, 0o666)
            return self._descriptors[file]

    @contextlib.contextmanager
    def opened(self, file: str) -> Iterator[int]:
        """The same; where many are open, for as long as the body runs."""
        if file in self._descriptors or len(self._descriptors) < _MOST_OPEN:
            yield self.descriptor(file)
            return
        descriptor = os.open(self._folder / file, self._flags, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Closes them."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])


def read_at(descriptor: int, offset: int, parts: Sequence[memoryview]) -> None:
    """Fills memory from a position of a file on, one part after another.

    Raises:
        ValueError: The file ends before.
        OSError: It cannot be read.
    """
    waiting = [part for part in parts if len(part)]
    while waiting:
        count = os.preadv(descriptor, waiting[:_MOST_AT_ONCE], offset)
        if count == 0:
            raise ValueError(f"a file ends at byte {offset}, {sum(map(len, waiting))} bytes too early")
        offset += count
        waiting = _after(waiting, count)


def reserve(path: Path, nbytes: int) -> None:
    """Makes a file with all of its space, where the file system can do that: each write has less to do then.

    Not by `os.posix_fallocate`, which writes into every block of the file where the file system cannot.

    Raises:
        OSError: The file cannot be made, or there is not so much space.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if not sys.platform.startswith("linux"):
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.fallocate(descriptor, 0, ctypes.c_longlong(0), ctypes.c_longlong(nbytes)):
            number = ctypes.get_errno()
            if number in _FULL:
                raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)


def write_at(descriptor: int, offset: int, content: memoryview) -> None:
    """Writes bytes at a position of a file.

    Raises:
        OSError: It cannot be written to.
    """
    while len(content):
        count = os.pwrite(descriptor, content, offset)
        offset += count
        content = content[count:]


def _after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of memory when so many bytes of it are filled."""
    for number, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[number + 1 :]]
        count -= len(part)
    return []
