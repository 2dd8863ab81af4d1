"""An entry in a bucket, as loads see it; see `lazyload.cache.place`.

models--Qwen--Qwen3-8B/<key>/manifest.json                 there = the entry is complete; written where there was none
                            /last-used                     written again by each load
                            /data-<unique>/...             a generation: the Orbax checkpoint
                            /data-<unique>.owner           who is writing it; gone once it is published
                            /data-<unique>.lease-<unique>  a load that is reading it
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lazyload.bucket.bucket import Stored
from lazyload.bucket.path import BucketPath
from lazyload.cache import heartbeat
from lazyload.cache.files import Files
from lazyload.cache.liveness import described_process
from lazyload.cache.manifest import Summary
from lazyload.errors import CacheError

LAST_USED = "last-used"

_SECONDS_BETWEEN_NOTES = 60.0


@dataclass(frozen=True)
class InBucket:
    """The folder of an entry."""

    folder: BucketPath

    def children(self) -> tuple[dict[str, Stored], list[str]]:
        """The objects in the folder, and the names of the data folders."""
        return self.folder.bucket.children(f"{self.folder.key}/")

    def require_data(self, manifest: Summary) -> None:
        """Nothing, which costs no request: whoever reads the data compares all of its objects first."""

    def is_there(self, data: str) -> bool:
        """Whether there are objects in it."""
        return data in self.children()[1]

    def last_used(self) -> float | None:
        """When the object for that was written; by our clock, as far as the store's is known, to a second."""
        note = self._note()
        return None if note is None else note.time - self.folder.bucket.seconds_ahead

    def note_of_use(self) -> str | None:
        """The version of the object for that."""
        note = self._note()
        return None if note is None else note.version

    def _note(self) -> Stored | None:
        """The object for that, as it was when the folder was looked into last."""
        with contextlib.suppress(CacheError):
            return self.folder.bucket.seen(f"{self.folder.key}/").get(LAST_USED)
        return None

    def note_use(self) -> None:
        """Writes the object for that, unless somebody has just done so: stores take one write of an object a second."""
        used = self.last_used()
        if used is not None and abs(time.time() - used) < _SECONDS_BETWEEN_NOTES:
            return
        with contextlib.suppress(CacheError):
            (self.folder / LAST_USED).write_bytes(b"used")

    @contextlib.contextmanager
    def leased(self, data: str) -> Iterator[None]:
        """By a mark, where this process may write."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(CacheError):
                held.enter_context(heartbeat.marked(self.folder / f"{data}.lease-{os.urandom(16).hex()}"))
            yield

    def user_of(self, data: str) -> str | None:
        """By marks."""
        return self.user_among(self.children()[0], data)

    def user_among(self, objects: Mapping[str, Stored], data: str) -> str | None:
        """The same, where it is known which objects there are in the folder."""
        marks = {name: stored for name, stored in objects.items() if name.startswith(f"{data}.")}
        now = self.now() if marks else 0.0
        for name, stored in marks.items():
            mark = self.folder / name
            if heartbeat.is_alive(mark, stored, now):
                doing = "writing" if name.endswith(".owner") else "reading"
                return f"{described_process(heartbeat.read(mark))} is {doing} it"
        return None

    def now(self) -> float:
        """The time by the store's clock."""
        return self.folder.bucket.now()

    def changed_files(self, data: str, files: Files) -> list[str]:
        """Costs a request for every thousand objects."""
        found = self.folder.bucket.below(f"{self.folder.key}/{data}/")
        return [
            f"{path}: is gone"
            if path not in found
            else f"{path}: has {found[path].size} bytes, was written with {file['size']}"
            for path, file in files.items()
            if path not in found or found[path].size != file["size"]
        ]

    def damaged_files(self, data: str, files: Files) -> list[str]:
        """Reads the small ones, many at a time."""
        changed = self.changed_files(data, files)
        gone = {problem.partition(": ")[0] for problem in changed}
        small = [path for path, file in files.items() if "sha256" in file and path not in gone]
        found = self.folder.bucket.at_once(lambda path: sha256_of(self.folder / data / path), small)
        return changed + [
            f"{path}: its content is not what was written"
            for path, sha256 in zip(small, found, strict=True)
            if sha256 != files[path]["sha256"]
        ]


def sha256_of(path: BucketPath) -> str:
    """The SHA-256 of an object's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
