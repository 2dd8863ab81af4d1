"""A root of the cache in a bucket.

<root>/.locks/<key>.holder                  who is converting it: a heartbeat that saves work and guards nothing
<root>/models--Qwen--Qwen3-8B/<key>/...     an entry; see `lazyload.cache.in_bucket`
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lazyload.bucket.bucket import Stored
from lazyload.bucket.path import BucketPath, Folder
from lazyload.cache import bucket_removal, heartbeat
from lazyload.cache.key import Key, is_digest
from lazyload.cache.liveness import HEARTBEAT_SECONDS, STALE_SECONDS, described_process
from lazyload.cache.removal import Removal
from lazyload.errors import CacheError, LockTimeoutError

if TYPE_CHECKING:
    from lazyload.cache.bucket_staging import BucketStaging

logger = logging.getLogger("lazyload")

_LOOK_SECONDS = 0.5
"""How long a call waits before it looks again whether somebody is still converting."""

_LONGEST_LOOK_SECONDS = 5.0
_SAY_AGAIN_SECONDS = 60.0
_MOST_MISSED_BEATS = 6
"""A holder that has not been written again for so many heartbeats is gone. Taking over too early costs work only."""

_tried: set[str] = set()
"""The buckets that are known to create objects only where there are none."""


@dataclass(frozen=True)
class BucketRoot:
    """A folder of entries; see `lazyload.cache.root.Root`.

    Attributes:
        folder: Where it is; it need not exist.
    """

    folder: BucketPath

    @property
    def names_last(self) -> bool:
        """To rename is to copy all of it."""
        return False

    def folders(self, model: str | None = None, key: str | None = None) -> list[BucketPath]:
        """The folders of entries; nothing outside the cache's own names."""
        bucket = self.folder.bucket
        models = [model] if model is not None else self._models()
        if key is not None:
            found = [self.folder / name / key for name in models]
            return [folder for folder, known in zip(found, bucket.at_once(_objects, found), strict=True) if known]
        keys = bucket.at_once(lambda name: bucket.children(f"{(self.folder / name).key}/")[1], models)
        pairs = [(name, own) for name, several in zip(models, keys, strict=True) for own in several]
        return [self.folder / name / own for name, own in pairs if is_digest(own)]

    def find(self, key: str, model: str) -> list[BucketPath]:
        """The model's own folder, without a look; those of other names where there is none."""
        own = self.folder / model / key
        return [own] if _objects(own) else self.folders(key=key)

    def _models(self) -> list[str]:
        """The names of the models' folders.

        Raises:
            CacheError: There is no such bucket, or it cannot be looked into.
        """
        objects, names = self.folder.bucket.children(f"{self.folder.key}/".lstrip("/"))
        if not objects and not names:
            self.folder.bucket.require()
        return [name for name in names if name.startswith("models--")]

    @contextlib.contextmanager
    def lock(self, digest: str, timeout: float | None, watch: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the holder's object of a key, or waits while somebody else keeps it young.

        Raises:
            CacheError: The bucket cannot be written to, or writes objects also where there are some.
            LockTimeoutError: Somebody else held it all that time.
        """
        holder, content = self.folder / ".locks" / f"{digest}.holder", heartbeat.content_of_mark()
        started = time.monotonic()
        while not holder.bucket.create(holder.key, content):
            _wait_for(holder, started, timeout, watch)
        with heartbeat.beating(holder, content):
            self._require_creates_only(holder)
            yield

    def _require_creates_only(self, there: BucketPath) -> None:
        """Makes sure, once a process, that an object is not written where there is one; found out by trying it."""
        bucket = there.bucket
        if str(bucket) not in _tried and bucket.create(there.key, heartbeat.content_of_mark()):
            raise CacheError(
                f"{bucket} writes an object although there is one, when it is asked to write it only where there is "
                "none: two conversions would mix there; use a store that knows preconditions, or give another cache_dir"
            )
        _tried.add(str(bucket))

    @contextlib.contextmanager
    def staging(self, key: Key, model: str, folder: str, nbytes: int) -> "Iterator[BucketStaging]":
        """A fresh data folder, once what others have left of the same entry is removed."""
        # What a conversion alone needs takes a while to import.
        from lazyload.cache.bucket_staging import new_staging

        entry = self.folder / folder / key.digest
        for leftover in bucket_removal.leftovers(entry):
            with contextlib.suppress(CacheError):
                self.remove(leftover.path)
        with new_staging(entry, key, model) as staging:
            yield staging

    def leftovers(self, folder: BucketPath) -> list[Removal]:
        """See `lazyload.cache.bucket_removal`."""
        return bucket_removal.leftovers(folder)

    def unfinished(self, folder: BucketPath) -> list[Removal]:
        """See `lazyload.cache.bucket_removal`."""
        return bucket_removal.unfinished(folder)

    def remove(self, path: Folder, *, force: bool = False) -> str | None:
        """See `lazyload.cache.bucket_removal`."""
        assert isinstance(path, BucketPath)
        return bucket_removal.remove(path, force=force)

    def abandoned(self) -> list[Removal]:
        """The marks of those who held a key, or asked whether others see this cache, and are gone."""
        marks = [
            (mark / name, stored, seconds)
            for mark, seconds in ((self.folder / ".locks", _stale_seconds()), (self.folder / ".teams", STALE_SECONDS))
            for name, stored in _objects(mark).items()
        ]
        now = self.folder.bucket.now() if marks else 0.0
        return [
            Removal(path, stored.size, "its process is gone")
            for path, stored, seconds in marks
            if now - stored.time > seconds or heartbeat.has_ended(path)
        ]

    def compare_clocks(self) -> None:
        """Finds out how far the store's clock is ahead of ours."""
        self.folder.bucket.now()

    def discard(self, path: Folder) -> None:
        """Removes one of these."""
        assert isinstance(path, BucketPath)
        path.bucket.remove([path.key])

    def size(self, folder: BucketPath) -> int:
        """The sizes of all objects in it."""
        return bucket_removal.size(folder)


def _objects(folder: BucketPath) -> dict[str, Stored]:
    return folder.bucket.children(f"{folder.key}/")[0]


def _stale_seconds() -> float:
    """After which a holder is gone that has not been written again."""
    return _MOST_MISSED_BEATS * HEARTBEAT_SECONDS


def _wait_for(holder: BucketPath, started: float, timeout: float | None, watch: Callable[[], None]) -> None:
    """Waits until a holder's object is gone, or has not been written again for long; then it is removed.

    The store's clock tells how long it has not been when this begins; from then on time is measured here.
    """
    seen = time.monotonic()
    said = -_SAY_AGAIN_SECONDS
    version, look = None, _LOOK_SECONDS
    while True:
        found = _objects(holder.parent).get(holder.name)
        if found is None:
            return
        now = time.monotonic()
        process, is_dead = heartbeat.read_whether_ended(holder)
        if version is None and not is_dead:
            is_dead = holder.bucket.now() - found.time > _stale_seconds()
        if found.version != version:
            version, seen = found.version, now
        if is_dead or now - seen > _stale_seconds():
            logger.warning("%s no longer shows that it is converting: going on", described_process(process))
            holder.bucket.remove([holder.key])
            return
        waited = now - started
        if timeout is not None and waited >= timeout:
            raise LockTimeoutError(
                f"{holder} has been held for {waited:.0f} s by {described_process(process)}; wait for that conversion, "
                "or end it if it hangs: its unfinished work is cleaned up"
            )
        watch()
        if waited - said >= _SAY_AGAIN_SECONDS:
            said = waited
            logger.warning("waiting for a conversion of the same checkpoint by %s", described_process(process))
        left = float("inf") if timeout is None else timeout - waited
        threading.Event().wait(max(0.0, min(look, left)))
        look = min(look * 1.5, _LONGEST_LOOK_SECONDS)
