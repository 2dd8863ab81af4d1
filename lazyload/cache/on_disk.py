"""An entry on a disk, as loads see it; see `lazyload.cache.place`."""

import contextlib
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from lazyload.cache import generation
from lazyload.cache.disk import share
from lazyload.cache.files import Files, changed_files, damaged_files
from lazyload.cache.manifest import FILE_NAME, DamagedError, InaccessibleError, Summary


@dataclass(frozen=True)
class OnDisk:
    """The folder of an entry."""

    folder: Path

    def require_data(self, manifest: Summary) -> None:
        """Makes sure that the checkpoint is there, and not empty."""
        where = self.folder / FILE_NAME
        try:
            with os.scandir(f"{self.folder}/{manifest.data}/{manifest.item}") as found:
                is_empty = next(found, None) is None
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise DamagedError(f"{where}: its data {manifest.data!a} is not there") from None
        except OSError as error:
            raise InaccessibleError(f"{where}: its data cannot be looked at now: {error.strerror}") from None
        if is_empty:
            raise DamagedError(f"{where}: its data {manifest.data!a} is empty")

    def is_there(self, data: str) -> bool:
        """Whether it is a folder."""
        return (self.folder / data).is_dir()

    def last_used(self) -> float | None:
        """When the file for that was touched."""
        with contextlib.suppress(OSError):
            return os.stat(f"{self.folder}/last-used").st_mtime
        return None

    def note_of_use(self) -> float | None:
        """When the file for that was touched."""
        return self.last_used()

    def note_use(self) -> None:
        """Touches the file for that."""
        with contextlib.suppress(OSError):
            used = self.folder / "last-used"
            used.touch()
            share(used, self.folder.parents[1])

    def leased(self, data: str) -> AbstractContextManager[None]:
        """By a lock and a mark; see `lazyload.cache.generation`."""
        return generation.leased(self.folder / data)

    def user_of(self, data: str) -> str | None:
        """By locks and marks."""
        return generation.user_of(self.folder / data)

    def changed_files(self, data: str, files: Files) -> list[str]:
        """Costs a `stat` each."""
        return changed_files(self.folder / data, files)

    def damaged_files(self, data: str, files: Files) -> list[str]:
        """Reads the small ones."""
        return damaged_files(self.folder / data, files)
