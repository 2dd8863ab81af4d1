"""A root of the cache on a disk.

<root>/CACHEDIR.TAG
<root>/.locks/<key>.lock
<root>/.contents/<folder>.json                            what the files of a source folder contain
<root>/.index/entries                                     summaries of the manifests, by their status
<root>/.told/<formats>                                    an upgrade to these formats has said what it does not read
<root>/models--Qwen--Qwen3-8B/<key>/manifest.json         there = the entry is complete
                                   /data-<unique>/...     the Orbax checkpoint that the manifest names
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lazyload.bucket.path import Folder
from lazyload.cache import index, nonce, removal
from lazyload.cache.disk import explained, make_folder, share
from lazyload.cache.key import Key, is_digest
from lazyload.cache.removal import Removal
from lazyload.errors import CacheError

if TYPE_CHECKING:
    from lazyload.cache.staging import Staging

_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Converted checkpoints; https://bford.info/cachedir/\n"


@dataclass(frozen=True)
class DiskRoot:
    """A folder of entries; see `lazyload.cache.root.Root`.

    Attributes:
        folder: Where it is; it need not exist.
    """

    folder: Path

    @property
    def names_last(self) -> bool:
        """A folder can be renamed."""
        return True

    def folders(self, model: str | None = None, key: str | None = None) -> list[Path]:
        """The folders of entries; nothing outside the cache's own names, and no links."""
        found: list[Path] = []
        with explained(self.folder):
            for name in _subfolders(str(self.folder), model):
                if name.startswith("models--"):
                    within = f"{self.folder}/{name}"
                    found += [Path(f"{within}/{own}") for own in _subfolders(within, key) if is_digest(own)]
        return found

    def find(self, key: str, model: str) -> list[Path]:
        """All of that key: a folder costs nothing to look for."""
        return self.folders(key=key)

    @contextlib.contextmanager
    def lock(self, digest: str, timeout: float | None, watch: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the lock file of a key."""
        with explained(self.folder):
            locks = self.folder / ".locks"
            make_folder(locks, self.folder)
            tag = self.folder / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text(_TAG)
            lock = locks / f"{digest}.lock"
            if not lock.exists():
                lock.touch()
                share(lock, self.folder)
        # What locks takes longer to import than a command that only looks takes in all.
        from lazyload.cache.lock import hold

        with hold(lock, timeout, watch):
            yield

    @contextlib.contextmanager
    def staging(self, key: Key, model: str, folder: str, nbytes: int) -> "Iterator[Staging]":
        """A fresh data folder, once what others have left of the same entry is removed.

        Raises:
            CacheError: The disk cannot be written to, or has not the space.
        """
        # What a conversion alone needs takes a while to import.
        from lazyload.cache.staging import new_staging

        entry = self.folder / folder / key.digest
        with contextlib.ExitStack() as held:
            with explained(self.folder):
                for leftover in removal.leftovers(entry):
                    with contextlib.suppress(OSError):
                        self.remove(leftover.path)
                self._require_space(nbytes)
                staging = held.enter_context(new_staging(entry, key, model))
            yield staging

    def leftovers(self, folder: Path) -> list[Removal]:
        """See `lazyload.cache.removal`."""
        return removal.leftovers(folder)

    def unfinished(self, folder: Path) -> list[Removal]:
        """See `lazyload.cache.removal`."""
        return removal.unfinished(folder)

    def remove(self, path: Folder, *, force: bool = False) -> str | None:
        """See `lazyload.cache.removal`."""
        assert isinstance(path, Path)
        return removal.remove(path, force=force)

    def abandoned(self) -> list[Removal]:
        """What interrupted calls and commands have left beside the entries; a mark of a process goes with its lock."""
        found = [*index.abandoned(self.folder), *nonce.abandoned(self.folder)]
        return [Removal(path, self.size(path), "what an interrupted command left") for path in found]

    def compare_clocks(self) -> None:
        """Nothing: file systems of other hosts keep their clocks."""

    def discard(self, path: Folder) -> None:
        """Removes one of these."""
        os.unlink(path)

    def size(self, folder: Path) -> int:
        """See `lazyload.cache.removal`."""
        return removal.size(folder)

    def _require_space(self, nbytes: int) -> None:
        # As in `generation`.
        import shutil

        existing = next(path for path in [self.folder, *self.folder.parents] if path.exists())
        free = shutil.disk_usage(existing).free
        if free < nbytes:
            raise CacheError(
                f"{self.folder}: the converted checkpoint takes {nbytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are "
                "free; make space (`lazyload cache ls`, `lazyload cache rm`) or give another cache_dir"
            )


def _subfolders(folder: str, name: str | None) -> list[str]:
    """The names of the folders in one, links left out; or the one of a name, if it is there."""
    if name is not None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return [name] if stat.S_ISDIR(os.lstat(f"{folder}/{name}").st_mode) else []
        return []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as found:
        return sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False))
    return []
