"""A generation of an entry: one data folder, who writes or reads it, and how it is removed.

data-<unique>/                    an Orbax checkpoint
data-<unique>.owner               who is writing it; gone once it is published
data-<unique>.lease-<unique>      who is reading it
removed-<unique>                  a folder or manifest on its way out, which nobody can find any more
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lazyload.cache import liveness
from lazyload.cache.disk import paths_in
from lazyload.cache.manifest import FILE_NAME, UnreadableManifestError, read_manifest

TOMBSTONE = "removed-"


@contextlib.contextmanager
def leased(data: Path) -> Iterator[None]:
    """Keeps a data folder from being removed while the body runs.

    By a lock on the folder, which every reader can take, and by a mark beside it, where this process may write.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(liveness.locked_shared(data))
        with contextlib.suppress(OSError):
            held.enter_context(liveness.marked(data.with_name(f"{data.name}.lease-{os.urandom(16).hex()}")))
        yield


def owner_of(data: Path) -> Path:
    """The mark of the process that is writing a data folder."""
    return data.with_name(f"{data.name}.owner")


def marks_of(data: Path) -> list[Path]:
    """The marks of all who write or read a data folder."""
    # lazyload 0.1 did not say of what a lease is.
    beside = paths_in(data.parent, "data-*.*", "lease-*")
    return [mark for mark in beside if mark.name.startswith((f"{data.name}.", "lease-"))]


def user_of(data: Path) -> str | None:
    """Who writes or reads a data folder: a clause; None where nobody does."""
    for mark in marks_of(data):
        if liveness.is_alive(mark):
            doing = "writing" if mark == owner_of(data) else "reading"
            return f"{liveness.described(mark)} is {doing} it"
    return "another process is reading it" if liveness.is_locked(data, fcntl.LOCK_EX) else None


def remove(data: Path, manifest: Path | None = None, *, force: bool = False) -> str | None:
    """Removes a data folder, and the manifest first that names it, unless somebody writes or reads it.

    To be called under the key's lock. A reader leaves its mark before it looks whether the manifest is still there; so
    either it sees that it is not, or the mark is seen here, and the manifest comes back.

    Args:
        data: The folder.
        manifest: The manifest, if it names the folder or is damaged.
        force: Whether to remove it whoever uses it.

    Returns:
        Why it stays, a clause; None if it is gone.

    Raises:
        OSError: It cannot be removed.
    """
    user = None if force else user_of(data)
    if user:
        return user
    hidden = _hidden(manifest, data) if manifest else None
    user = None if force else user_of(data)
    if user:
        _restore(hidden)
        return user
    tombstone = data.with_name(f"{TOMBSTONE}{os.urandom(16).hex()}")
    try:
        os.rename(data, tombstone)
    except FileNotFoundError:
        # Somebody without a lock that works has removed it.
        pass
    except BaseException:
        _restore(hidden)
        raise
    else:
        if not force and (user := _user_of_moved(data, tombstone)):
            os.rename(tombstone, data)
            _restore(hidden)
            return user
        with contextlib.suppress(FileNotFoundError):
            bury(tombstone)
    if hidden:
        hidden.unlink(missing_ok=True)
    for mark in marks_of(data):
        if force or not liveness.is_alive(mark):
            mark.unlink(missing_ok=True)
    return None


def bury(path: Path) -> None:
    """Deletes a tombstone, or any other file or folder that nobody can find."""
    if path.is_dir() and not path.is_symlink():
        # It takes as long to import as a list of entries takes to read.
        import shutil

        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _user_of_moved(data: Path, tombstone: Path) -> str | None:
    return user_of(data) or ("another process is reading it" if liveness.is_locked(tombstone, fcntl.LOCK_EX) else None)


def _hidden(manifest: Path, data: Path) -> Path | None:
    """The manifest under the name of a tombstone; None where there is none, or by now one of another data folder."""
    hidden = manifest.with_name(f"{TOMBSTONE}{os.urandom(16).hex()}")
    try:
        os.rename(manifest, hidden)
    except FileNotFoundError:
        return None
    with contextlib.suppress(UnreadableManifestError):
        if read_manifest(hidden).data != data.name:
            _restore(hidden)
            return None
    return hidden


def _restore(hidden: Path | None) -> None:
    """Puts a hidden manifest back, unless somebody has published another one meanwhile."""
    if hidden is None:
        return
    manifest = hidden.with_name(FILE_NAME)
    try:
        os.link(hidden, manifest)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links.
        if not manifest.exists():
            os.rename(hidden, manifest)
            return
    hidden.unlink()
