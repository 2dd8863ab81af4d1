"""Files that somebody else downloads, read while they grow.

What a download has written is hashed as it appears, in order, and only what has been hashed is read: if the checksum is
right in the end, so was everything that was read. Where a file cannot be followed while it grows, because it is written
elsewhere or in another order, it is hashed and read when it is complete.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from lazyload.errors import CorruptSourceError, LazyLoadError
from lazyload.sources.background import Background

_SECONDS_BETWEEN_LOOKS = 0.02
_BYTES_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class FollowedFile:
    """One file that is downloaded.

    Attributes:
        name: Its name.
        size: Its size in bytes.
        download: Downloads it and says where it is then; is given what ends it when it is not wanted any more.
        partial: Says where it grows meanwhile; None where it is not there, or not in order.
    """

    name: str
    size: int
    download: Callable[[Callable[[], None]], Path]
    partial: Callable[[], Path | None]


@dataclass(eq=False)
class _Progress:
    """How far a file is.

    Attributes:
        hashed: How many of its bytes have been hashed, and can be read.
        sha256: Their checksum.
        opened: Where they are read.
    """

    hashed: int = 0
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    opened: FileIO | None = None


class Following:
    """Files that are downloaded in order, a few at once. Leaving the context waits for all, and for their checks."""

    def __init__(
        self, files: Sequence[FollowedFile], at_once: int, check: Callable[[str, Path, str], None], model: str
    ):
        """Downloads nothing yet.

        Args:
            files: The files, in the order in which they are wanted.
            at_once: How many are downloaded at once.
            check: Told of each file where it is and the SHA-256 of what has been read of it; raises what is wrong.
            model: What messages call the model.
        """
        self._model = model
        self._files = {file.name: file for file in files}
        self._at_once = at_once
        self._check = check
        self._progress = {file.name: _Progress() for file in files}
        self._background = Background(at_once)
        self._files_opened = contextlib.ExitStack()

    def holds(self, name: str) -> bool:
        """Whether a file is one of those that are downloaded."""
        return name in self._files

    def starts(self) -> Mapping[str, int]:
        """When the first byte of each file arrives, where so many arrive at once: as bytes of one that came before."""
        slots, starts = [0] * self._at_once, {}
        for name, file in self._files.items():
            slot = slots.index(min(slots))
            starts[name] = slots[slot]
            slots[slot] += file.size
        return starts

    def __enter__(self) -> Self:
        self._background.__enter__()
        for file in self._files.values():
            self._background.start(self._bring, file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._background.__exit__(kind, error, traceback)
        finally:
            self._files_opened.close()

    def stop(self, error: BaseException) -> None:
        """Ends all, and whatever waits, with an error."""
        self._background.stop(error)

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` from a position of a file on, as soon as its bytes are there.

        Raises:
            LazyLoadError: What keeps them from coming.
        """
        file, progress = self._files[name], self._progress[name]
        if start + len(out) > file.size:
            raise CorruptSourceError(
                f"{self._model}: {name} has {file.size} bytes, {len(out)} from byte {start} are needed"
            )
        done = 0
        while done < len(out):
            with self._background.changed:
                opened = self._background.wait_for(
                    lambda: progress.opened if progress.hashed >= start + len(out) else None
                )
            count = os.preadv(opened.fileno(), [out[done:]], start + done) if opened else 0
            done += count
            if not count:
                # It begins anew, with the same bytes, or is lost, which its download will tell.
                threading.Event().wait(_SECONDS_BETWEEN_LOOKS)

    def _bring(self, file: FollowedFile) -> None:
        with self._followed(file):
            path = file.download(self._background.require_running)
        # Also where all is to end: what lies in the hub's cache is taken for sound by the next call.
        progress = self._progress[file.name]
        self._hash(progress, path)
        self._check(file.name, path, progress.sha256.hexdigest())

    @contextlib.contextmanager
    def _followed(self, file: FollowedFile) -> Iterator[None]:
        """Hashes what appears of a file while the body runs."""
        is_complete = threading.Event()

        def follow() -> None:
            while not is_complete.wait(_SECONDS_BETWEEN_LOOKS):
                # It may be on its way to another place; and what the hub refuses to say, its download will tell.
                with contextlib.suppress(OSError, LazyLoadError):
                    if path := file.partial():
                        self._hash(self._progress[file.name], path, is_complete)

        thread = threading.Thread(target=follow, name="lazyload-follow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_complete.set()
            thread.join()

    def _opened(self, progress: _Progress, path: Path) -> FileIO:
        """The file to be read; the one that is open, where it has only been moved."""
        opened = FileIO(path)
        known = progress.opened
        if known is not None and os.path.sameopenfile(known.fileno(), opened.fileno()):
            opened.close()
            return known
        with self._background.changed:
            # Others may be reading the one that was there before: all are closed in the end.
            self._files_opened.callback(opened.close)
            progress.opened = opened
        return opened

    def _hash(self, progress: _Progress, path: Path, is_complete: threading.Event | None = None) -> None:
        """Hashes what is there of a file and has not been; again and again, until it is complete or does not grow."""
        opened = self._opened(progress, path)
        memory = memoryview(bytearray(_BYTES_AT_ONCE))
        while is_complete is None or not is_complete.is_set():
            count = os.preadv(opened.fileno(), [memory], progress.hashed)
            if count:
                progress.sha256.update(memory[:count])
                with self._background.changed:
                    progress.hashed += count
                    self._background.changed.notify_all()
            elif is_complete is None or os.fstat(opened.fileno()).st_nlink == 0:
                return
            else:
                is_complete.wait(_SECONDS_BETWEEN_LOOKS)
