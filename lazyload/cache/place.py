"""What an entry is to a load, wherever it is: on a disk or in a bucket."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lazyload.bucket.path import Folder
from lazyload.cache.files import Files
from lazyload.cache.manifest import Summary
from lazyload.cache.on_disk import OnDisk


class Place(Protocol):
    """The folder of an entry."""

    def require_data(self, manifest: Summary) -> None:
        """Makes sure that the checkpoint that a manifest names is there, as far as one look tells.

        Raises:
            UnreadableManifestError: It is not.
        """

    def is_there(self, data: str) -> bool:
        """Whether a data folder is there."""

    def last_used(self) -> float | None:
        """When a load last used the entry, in seconds since 1970; None where that is not known."""

    def note_of_use(self) -> object:
        """What is the same until a load uses the entry again, by whatever clock."""

    def note_use(self) -> None:
        """Notes that a load uses the entry, where it may."""

    def leased(self, data: str) -> AbstractContextManager[None]:
        """Keeps a data folder from being removed while the body runs."""

    def user_of(self, data: str) -> str | None:
        """Who writes or reads a data folder: a clause; None where nobody does."""

    def changed_files(self, data: str, files: Files) -> list[str]:
        """Files that are gone, or have another size than they are listed with: sentences.

        Raises:
            OSError: One cannot be looked at now.
        """

    def damaged_files(self, data: str, files: Files) -> list[str]:
        """The same, and small files whose content is another one.

        Raises:
            OSError: One cannot be read now.
        """


def place_of(folder: Folder) -> Place:
    """What the folder of an entry is to loads."""
    if isinstance(folder, Path):
        return OnDisk(folder)
    # As of `lazyload.cache.root`.
    from lazyload.cache.in_bucket import InBucket

    return InBucket(folder)
