"""The cache's disk: folders as open to others as the root is, and errors that say what to do."""

import contextlib
import errno
import stat
from collections.abc import Iterator
from pathlib import Path

from lazyload.bucket.path import Folder
from lazyload.errors import CacheError, LazyLoadError


@contextlib.contextmanager
def explained(where: Folder) -> Iterator[None]:
    """Turns every `OSError` of the body, which works at nothing but the cache, into a `CacheError`.

    Args:
        where: What the error is told of, where it does not say that itself.
    """
    try:
        yield
    except LazyLoadError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make space (`lazyload cache ls`, `lazyload cache rm`)" if full else "check who may write there"
        if error.errno in (errno.EIO, errno.ESTALE):
            remedy = "check the disk"
        raise CacheError(
            f"{error.filename or where}: {error.strerror or error}; {remedy} or give another cache_dir (LAZYLOAD_CACHE)"
        ) from error


def paths_in(folder: Path, *patterns: str) -> list[Path]:
    """What a folder has under names of some patterns; nothing where it is gone, as it may be from one moment on."""
    found: list[Path] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for pattern in patterns:
            found += folder.glob(pattern)
    return found


def make_folder(folder: Path, root: Path) -> None:
    """Makes a folder at or below the root, and what is missing above it, as open to others as the root is.

    Raises:
        OSError: It cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    for path in (*reversed(folder.relative_to(root).parents), folder.relative_to(root)):
        with contextlib.suppress(FileExistsError):
            (root / path).mkdir()
            share(root / path, root)


def share(path: Path, root: Path) -> None:
    """Opens what this process has made to those to whom the root is open, whatever the umask."""
    with contextlib.suppress(OSError):
        shared = root.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if shared:
            status = path.stat()
            folders = (shared >> 1) | (root.stat().st_mode & stat.S_ISVTX) if stat.S_ISDIR(status.st_mode) else 0
            path.chmod(stat.S_IMODE(status.st_mode) | shared | (shared << 1) | folders)
