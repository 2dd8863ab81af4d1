"""A data folder that is being written in a bucket, and the one request that makes it an entry."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lazyload.bucket.path import BucketPath
from lazyload.cache import heartbeat
from lazyload.cache.entry import Entry, named_data, read_entry
from lazyload.cache.files import SMALL_BYTES
from lazyload.cache.in_bucket import InBucket, sha256_of
from lazyload.cache.key import Key
from lazyload.cache.manifest import FILE_NAME, AbsentError, Manifest, UnreadableManifestError
from lazyload.cache.staging import made_by_this_process
from lazyload.errors import CacheError

_TRIES = 5


@dataclass
class BucketStaging:
    """A data folder that is being written; no entry until it is published.

    Attributes:
        folder: The entry's folder.
        path: The data folder.
        key: What it will be.
        model: The model's name.
        replaces: The data that the manifest named when this began; empty for none.
        may_be_published: Whether the manifest may name it by now; then it is no longer its writer's to remove.
    """

    folder: BucketPath
    path: BucketPath
    key: Key
    model: str
    replaces: str
    may_be_published: bool = False

    def move_to(self, key: Key) -> None:
        """Cannot be done in a bucket; see `lazyload.cache.root.Root.names_last`."""
        raise CacheError(f"{self.path} cannot become {key.digest}: objects have no other names")

    def publish(
        self,
        *,
        arrays: Mapping[str, Mapping[str, Any]],
        nbytes: int,
        item: str = "",
        source: Mapping[str, Any],
        config: Mapping[str, Any],
        seconds: float,
        made: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Writes the manifest where there is none.

        Where another writer has published meanwhile, its entry is the one, and the staged data is left aside. A
        manifest that was there from the start, or is damaged, is removed first: for a moment there is no entry then,
        and who looks converts.

        Returns:
            The entry.

        Raises:
            CacheError: The bucket cannot be written to, or some of the data is not there any more.
        """
        manifest = Manifest(
            key=self.key.digest,
            fields=self.key.fields,
            model=self.model,
            data=self.path.name,
            item=item,
            nbytes=nbytes,
            arrays=arrays,
            files=self._list_objects(),
            source=source,
            config=config,
            seconds=round(seconds, 3),
            **(made or made_by_this_process()),
        )
        where, text = self.folder / FILE_NAME, manifest.to_json().encode()
        for _ in range(_TRIES):
            there = self._published()
            if there is not None and there.manifest.data not in (self.replaces, self.path.name):
                return there
            if there is None or there.manifest.data == self.replaces:
                where.bucket.remove([where.key] if there or self._is_unreadable() else [])
            self.may_be_published = True
            if where.bucket.create(where.key, text):
                return Entry(self.folder, manifest)
            self.may_be_published = False
        raise CacheError(f"{where} is written again and again by another process; call again")

    def _published(self) -> Entry | None:
        """The entry that there is."""
        with contextlib.suppress(UnreadableManifestError):
            return read_entry(self.folder)
        return None

    def _is_unreadable(self) -> bool:
        """Whether there is a manifest that makes no entry."""
        try:
            read_entry(self.folder)
        except AbsentError:
            return False
        except UnreadableManifestError:
            return True
        return False

    def _list_objects(self) -> dict[str, dict[str, Any]]:
        """All objects of the data with their sizes, and small ones with their SHA-256; read, as nobody else is sure."""
        found = self.path.bucket.below(f"{self.path.key}/")
        owner = f"{self.path.name}.owner"
        if not found or owner not in InBucket(self.folder).children()[0]:
            raise CacheError(
                f"{self.path} was changed while it was written (it has been removed); call again, and see who removes "
                "objects there"
            )
        small = [name for name, stored in found.items() if stored.size <= SMALL_BYTES]
        sums = dict(zip(small, self.path.bucket.at_once(lambda name: sha256_of(self.path / name), small), strict=True))
        return {
            name: {"size": stored.size} | ({"sha256": sums[name]} if name in sums else {})
            for name, stored in sorted(found.items())
        }


@contextlib.contextmanager
def new_staging(folder: BucketPath, key: Key, model: str) -> Iterator[BucketStaging]:
    """A fresh data folder in an entry's folder; removed again unless the body publishes it."""
    path = folder / f"data-{os.urandom(16).hex()}"
    try:
        replaces = named_data(folder)
    except UnreadableManifestError:
        replaces = ""
    staging = BucketStaging(folder, path, key, model, replaces)
    with heartbeat.marked(folder / f"{path.name}.owner"):
        try:
            yield staging
        finally:
            if not staging.may_be_published:
                with contextlib.suppress(CacheError):
                    path.bucket.remove(f"{path.key}/{name}" for name in path.bucket.below(f"{path.key}/"))
