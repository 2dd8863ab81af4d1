"""A checkpoint in a local folder."""

import contextlib
import errno
import functools
import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lazyload.errors import AccessDeniedError, CorruptSourceError, SourceNotFoundError
from lazyload.progress import Advance, CallProgress
from lazyload.sources.content import Contents, NoContents, blob_of, sha256_of, status_of, wait_for_tick
from lazyload.sources.files import (
    CONFIG,
    MODELOPT_CONFIG,
    MissingFileError,
    before_each,
    index_name,
    most_bytes,
    weight_files,
)
from lazyload.sources.stretches import Wanted

_HASHED_AT_ONCE = 8


class LocalFiles:
    """The files of a folder; reads are by position, so that threads share a descriptor."""

    def __init__(
        self,
        folder: Path,
        name: str | None = None,
        variant: str = "",
        contents: Contents | None = None,
        progress: CallProgress | None = None,
    ):
        """Opens nothing yet.

        Args:
            folder: The folder.
            name: What messages call the model; None for the folder's path.
            variant: The variant of the weights that is wanted; empty for none.
            contents: What is remembered of folders, so that weights need not be read to tell which they are.
            progress: The call's, where they must; None for nobody's.
        """
        self.folder = folder
        self.variant = variant
        self.name = name or str(folder)
        self._contents = contents or NoContents()
        self._hashed: dict[str, Mapping[str, Any]] = {}
        self._progress = progress or CallProgress(False, self.name)
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def origin(self) -> Mapping[str, Any]:
        """The folder, and the sizes of its files of weights, by which copies of it can be told from others."""
        return {"path": str(self.folder), "sizes": {name: self.size(name) for name in weight_files(self).names}}

    def identity(self, advance: Advance | None = None) -> Mapping[str, Any]:
        """The content of every file, wherever the folder is and whenever it was made.

        What a file of weights contains is remembered for as long as its status stays, and known of the hub's own
        snapshots, whose files are named by their content; else the file is read as a whole.
        """
        names = weight_files(self).names
        known = self._known(names)
        if unknown := [name for name in names if name not in known]:
            known |= self._hash(unknown, advance)
            self._contents.remember(self._place, {name: self._hashed[name] for name in names if name in self._hashed})
        return {"kind": "folder", "files": self._small_files() | {name: {"sha256": known[name]} for name in names}}

    def status(self) -> Mapping[str, Any]:
        """Where the files are, and what the system says of them once any further change of one would show."""
        names = weight_files(self).names
        for name in names:
            wait_for_tick(self._status(name))
        statuses = {name: status_of(self._status(name)) for name in names}
        return {"kind": "folder", "folder": str(self._place), "files": self._small_files() | statuses}

    def _small_files(self) -> dict[str, dict[str, Any]]:
        """The content of the files that are no weights."""
        found = {name: self.find(name) for name in (CONFIG, MODELOPT_CONFIG, index_name(self.variant))}
        return {
            name: {"sha256": hashlib.sha256(content).hexdigest()}
            for name, content in found.items()
            if content is not None
        }

    @property
    def is_identified(self) -> bool:
        """Whether `identity` needs to read no weights."""
        names = weight_files(self).names
        return self._known(names).keys() == set(names)

    def _known(self, names: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of those files of which it is known without reading them."""
        remembered = {**self._contents.recall(self._place), **self._hashed}
        known = {}
        for name in names:
            status = status_of(self._status(name))
            before = remembered.get(name, {})
            if blob := blob_of(self.folder / name):
                known[name] = blob
            elif status.items() <= before.items():
                known[name] = before["sha256"]
                self._hashed[name] = before
        return known

    def _hash(self, names: Sequence[str], advance: Advance | None) -> dict[str, str]:
        """Reads files as a whole, and says what their SHA-256 is."""
        nbytes = sum(map(self.size, names))
        with contextlib.ExitStack() as stack:
            if advance is None:
                is_first = stack.enter_context(_first_to_hash(self._place))
                progress = self._progress if is_first else CallProgress(False, self.name)
                advance = stack.enter_context(progress.stage("fetch", nbytes, "hashing"))
            pool = stack.enter_context(ThreadPoolExecutor(_HASHED_AT_ONCE, thread_name_prefix="lazyload"))
            hashes = pool.map(functools.partial(self._hash_one, advance=advance), names)
            return dict(zip(names, hashes, strict=True))

    def _hash_one(self, name: str, advance: Advance) -> str:
        wait_for_tick(self._status(name))
        status = status_of(self._status(name))
        sha256 = sha256_of(functools.partial(self.read_into, name), status["size"], advance)
        if status_of(self._status(name)) != status:
            raise CorruptSourceError(f"{self.folder / name} is being written; call again when it is complete")
        self._hashed[name] = {**status, "sha256": sha256}
        return sha256

    @functools.cached_property
    def _place(self) -> Path:
        return self.folder.resolve()

    @property
    def is_far(self) -> bool:
        """It is here."""
        return False

    def answers(self) -> Mapping[str, Any]:
        """Nothing: each process sees the files."""
        return {}

    def names(self) -> list[str]:
        """The names of all files."""
        with self._explained(""):
            return [entry.name for entry in os.scandir(self.folder) if entry.is_file()]

    def find(self, name: str) -> bytes | None:
        """The whole content of a file; None where there is no such file."""
        try:
            size = self._status(name).st_size
            if size > (most := most_bytes(name)):
                raise CorruptSourceError(
                    f"{self.folder / name} has {size} bytes, more than the {most} that it can have"
                )
            with self._explained(name):
                return (self.folder / name).read_bytes()
        except MissingFileError:
            return None

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        return self._status(name).st_size

    def is_here(self, name: str) -> bool:
        """All are."""
        return True

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

    def nbytes_to_fetch(self, wanted: Wanted, *, keep: bool, is_shared: bool = False) -> int:
        """None: the files are here already."""
        return 0

    @contextmanager
    def arriving(
        self, wanted: Wanted, advance: Advance, *, keep: bool, is_shared: bool = False
    ) -> Iterator[Mapping[str, int]]:
        """Brings nothing: the files are here already, and stay."""
        yield before_each({name: self.size(name) for name in wanted})

    def versions(self) -> Mapping[str, Any]:
        """Nothing: the identity tells."""
        return {}

    def stop_arriving(self, error: BaseException) -> None:
        """Nothing is under way."""

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


_hashing: set[Path] = set()
"""The folders that this process is hashing."""


@contextmanager
def _first_to_hash(folder: Path) -> Iterator[bool]:
    """Whether nobody else in this process hashes a folder while the body runs.

    Others show no progress: a progress function that loads the same folder would be called by that load, and so on.
    """
    is_first = folder not in _hashing
    _hashing.add(folder)
    try:
        yield is_first
    finally:
        if is_first:
            _hashing.discard(folder)
