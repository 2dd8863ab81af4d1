"""A checkpoint behind an fsspec URL, `gs://`, `s3://`, `memory://` and so on, read range by range."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import fsspec

from lazyload.errors import AccessDeniedError, CorruptSourceError, LazyLoadError, SourceNotFoundError
from lazyload.progress import Advance, CallProgress
from lazyload.sources.content import sha256_of
from lazyload.sources.files import CONFIG, MODELOPT_CONFIG, MissingFileError, index_name, weight_files
from lazyload.sources.passing import Passing, PassingFile
from lazyload.sources.secrets import without_secrets
from lazyload.sources.stretches import Stretch, Wanted

_IS_WEB = re.compile("https?://")
_VERSION_FIELDS = (
    "generation",
    "etag",
    "ETag",
    "md5Hash",
    "crc32c",
    "content_md5",
    "Content-MD5",
    "Digest",
    "CRC",
    "sha",
    "checksum",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "updated",
    "modified",
    "created",
)
"""What file systems call that which changes with a file's content."""


class RemoteFiles:
    """The files below a URL."""

    def __init__(self, url: str, subfolder: str = "", variant: str = "", progress: CallProgress | None = None):
        """Opens the file system.

        Raises:
            SourceNotFoundError: Nothing is installed that reads such URLs, or the URL is malformed.
        """
        self.name = without_secrets(url).rstrip("/")
        self.variant = variant
        self._subfolder = subfolder
        self._progress = progress or CallProgress(False, self.name)
        self._passing: Passing | None = None
        try:
            self._system, root = fsspec.url_to_fs(url.rstrip("/"))
            # What is signed for a folder is signed for its files: the query stays at the end.
            root, mark, query = root.partition("?") if _IS_WEB.match(url) else (root, "", "")
            self._behind = mark + query
            self._root = f"{root.rstrip('/')}/{subfolder}" if subfolder else root
        except ImportError as error:
            raise SourceNotFoundError(f"{self.name}: {error}") from None
        except ValueError as error:
            known = ", ".join(sorted(fsspec.available_protocols()))
            why = without_secrets(str(error))
            raise SourceNotFoundError(f"{self.name} cannot be opened: {why}; fsspec knows {known}") from None
        # Every file system has its own errors of credentials and networks, with no common base.
        except Exception as error:
            why = without_secrets(str(error))
            raise SourceNotFoundError(f"{self.name} cannot be opened: {type(error).__name__}: {why}") from None

    @property
    def origin(self) -> Mapping[str, Any]:
        """The URL."""
        return {"url": self.name, "subfolder": self._subfolder}

    def identity(self, advance: Advance | None = None) -> Mapping[str, Any]:
        """The URL, and of each file its size and what its file system tells versions by.

        Where it tells none, the size alone would take one file for another: such a file is read as a whole.
        """
        small = [
            name
            for name in (CONFIG, MODELOPT_CONFIG, index_name(self.variant))
            if self._system.exists(self._path(name))
        ]
        files = {name: self._version(name) for name in (*small, *weight_files(self).names)}
        return {"kind": "url", "url": self.name, "subfolder": self._subfolder, "files": files}

    def status(self) -> Mapping[str, Any]:
        """Nothing: the identity has been asked for before anything is read."""
        return {}

    @property
    def is_identified(self) -> bool:
        """File systems that tell no versions are rare, and asking costs requests."""
        return True

    @property
    def is_far(self) -> bool:
        """All of it is."""
        return True

    def answers(self) -> Mapping[str, Any]:
        """Nothing: there is nobody to ask but who sends the bytes."""
        return {}

    def names(self) -> list[str]:
        """The names of all files."""
        with self._explained(""):
            entries = self._system.ls(self._root, detail=True)
        return [entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]

    def find(self, name: str) -> bytes | None:
        """The whole content of a file; None where there is no such file."""
        try:
            with self._explained(name):
                return bytes(self._system.cat_file(self._path(name)))
        except MissingFileError:
            return None

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        return int(self._info(name)["size"])

    def is_here(self, name: str) -> bool:
        """None is."""
        return False

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` from a position on."""
        if self._passing is not None and self._passing.holds(name):
            self._passing.read_into(name, start, out)
        else:
            out[:] = self._fetch(name, Stretch(start, start + len(out)))

    def _fetch(self, name: str, at: Stretch, look: Callable[[], None] = lambda: None) -> bytes:
        """A range of a file."""
        with self._explained(name):
            content = bytes(self._system.cat_file(self._path(name), start=at.start, end=at.stop))
        if len(content) != at.nbytes:
            raise CorruptSourceError(
                f"{self.name}/{name} gave {len(content)} of {at.nbytes} bytes from byte {at.start}; it has been "
                "truncated"
            )
        return content

    def nbytes_to_fetch(self, wanted: Wanted, *, keep: bool, is_shared: bool = False) -> int:
        """None: files are read where they are."""
        return 0

    @contextmanager
    def arriving(
        self, wanted: Wanted, advance: Advance, *, keep: bool, is_shared: bool = False
    ) -> Iterator[Mapping[str, int]]:
        """Reads ahead of what is asked for, in order; nothing is stored."""
        files = [
            PassingFile(name, self.size(name), stretches, is_shared=is_shared) for name, stretches in wanted.items()
        ]
        passing = Passing(self._fetch, files, self.name, advance=lambda nbytes: None)
        with passing:
            self._passing = passing
            try:
                yield passing.starts()
            finally:
                self._passing = None

    def versions(self) -> Mapping[str, Any]:
        """Nothing: the identity tells."""
        return {}

    def stop_arriving(self, error: BaseException) -> None:
        """Ends what is read ahead."""
        if self._passing is not None:
            self._passing.stop(error)

    def close(self) -> None:
        """Forgets what was listed, so that the next call sees what is there then."""
        self._system.invalidate_cache()

    def _path(self, name: str) -> str:
        path = f"{self._root.rstrip('/')}/{name}" if name else self._root
        return path + self._behind

    def _info(self, name: str) -> Mapping[str, Any]:
        with self._explained(name):
            info: Mapping[str, Any] = self._system.info(self._path(name))
        if info.get("type") == "directory" or info.get("size") is None:
            raise SourceNotFoundError(f"{self.name}/{name} is not a file")
        return info

    def _version(self, name: str) -> dict[str, Any]:
        info = self._info(name)
        size = int(info["size"])
        version = {field: str(info[field]) for field in _VERSION_FIELDS if info.get(field)}
        if not version:
            with self._progress.stage("fetch", size, "hashing") as advance:
                version["sha256"] = sha256_of(functools.partial(self.read_into, name), size, advance)
        return {"size": size, **version}

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turns whatever the file system's library raises into errors that name the file."""
        where = f"{self.name}/{name}".rstrip("/")
        try:
            yield
        except LazyLoadError:
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise MissingFileError(f"{where} does not exist") from None
        except PermissionError as error:
            why = without_secrets(str(error))
            raise AccessDeniedError(f"{where}: access is denied ({why}); check the credentials") from None
        # Every file system has its own network and credential errors, with no common base.
        except Exception as error:
            why = without_secrets(str(error))
            raise SourceNotFoundError(f"{where} cannot be read: {type(error).__name__}: {why}") from None
