"""A checkpoint in a local folder."""

import errno
import functools
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyload.errors import AccessDeniedError, CorruptSourceError, SourceNotFoundError
from lazyload.sources.files import CONFIG, MOST_JSON_BYTES, MissingFileError, index_name, weight_files
from lazyload.sources.safetensors import read_header


class LocalFiles:
    """The files of a folder; reads are by position, so that threads share a descriptor."""

    def __init__(self, folder: Path, name: str | None = None, variant: str = ""):
        """`name` is what messages call the model; None for the folder's path."""
        self.folder = folder
        self.variant = variant
        self.name = name or str(folder)
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def origin(self) -> Mapping[str, Any]:
        """The folder."""
        return {"path": str(self.folder)}

    def identity(self) -> Mapping[str, Any]:
        """The folder, the small files' content, and of each file of weights its size, times and header.

        The time at which the system last changed anything about a file counts, too: who copies one over another may
        keep its size and its modification time (`cp -p`, `rsync -t`), and cannot set that one.
        """
        small = {
            name: content for name in (CONFIG, index_name(self.variant)) if (content := self.find(name)) is not None
        }
        files: dict[str, Any] = {name: {"sha256": _sha256(content)} for name, content in small.items()}
        for name in weight_files(self).names:
            status = self._status(name)
            read_into = functools.partial(self.read_into, name)
            header = read_header(read_into, status.st_size, f"{self.name}: {name}")
            files[name] = {
                "size": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "ctime_ns": status.st_ctime_ns,
                "header_sha256": _sha256(header),
            }
        return {"kind": "folder", "path": str(self.folder), "files": files}

    def names(self) -> list[str]:
        """The names of all files."""
        with self._explained(""):
            return [entry.name for entry in os.scandir(self.folder) if entry.is_file()]

    def find(self, name: str) -> bytes | None:
        """The whole content of a file; None where there is no such file."""
        try:
            size = self._status(name).st_size
            if size > MOST_JSON_BYTES:
                raise CorruptSourceError(
                    f"{self.folder / name} has {size} bytes, more than the {MOST_JSON_BYTES} that it can have"
                )
            with self._explained(name):
                return (self.folder / name).read_bytes()
        except MissingFileError:
            return None

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        return self._status(name).st_size

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` from a position on."""
        with self._explained(name):
            descriptor = self._descriptor(name)
            done = 0
            while done < len(out):
                count = os.preadv(descriptor, [out[done:]], start + done)
                if count == 0:
                    raise CorruptSourceError(
                        f"{self.name}: {name} ends at byte {start + done}, {len(out) - done} bytes too early; it has "
                        "been truncated, or is still being written"
                    )
                done += count

    def fetch(self, names: Iterable[str], show_progress: bool) -> None:
        """The files are here already."""

    def close(self) -> None:
        """Closes what has been opened."""
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _descriptor(self, name: str) -> int:
        with self._lock:
            if name not in self._descriptors:
                self._descriptors[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[name]

    def _status(self, name: str) -> os.stat_result:
        with self._explained(name):
            status = (self.folder / name).stat()
            if not stat.S_ISREG(status.st_mode):
                raise SourceNotFoundError(f"{self.folder / name} is not a regular file")
            return status

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turns what the operating system says into errors that name the file."""
        path = self.folder / name
        try:
            yield
        except (CorruptSourceError, SourceNotFoundError):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise MissingFileError(f"{path}: {error.strerror}") from None
        except PermissionError as error:
            raise AccessDeniedError(f"{path}: {error.strerror}; check who may read it") from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                raise SourceNotFoundError(f"{path}: {error.strerror}") from None
            raise CorruptSourceError(f"{path} cannot be read: {error.strerror}; check the disk") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
