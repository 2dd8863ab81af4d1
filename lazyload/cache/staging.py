"""A data folder that is being written, and the one atomic step that makes it an entry."""

import contextlib
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lazyload.cache import generation, liveness
from lazyload.cache.disk import explained, make_folder
from lazyload.cache.entry import Entry, read_entry
from lazyload.cache.files import Files, changed_files, list_files
from lazyload.cache.key import Key
from lazyload.cache.manifest import FILE_NAME, Manifest, UnreadableManifestError
from lazyload.errors import CacheError

_PROGRAMS = ("lazyload", "tensorstore", "numpy", "ml_dtypes", "huggingface_hub", "orbax-checkpoint", "jax")


@dataclass
class Staging:
    """A data folder that is being written; no entry until it is published.

    Attributes:
        folder: The entry's folder.
        path: The data folder.
        key: What it will be.
        model: The model's name.
        may_be_published: Whether the manifest may name it by now; then it is no longer its writer's to remove.
    """

    folder: Path
    path: Path
    key: Key
    model: str
    may_be_published: bool = False
    _created: os.stat_result = field(repr=False, kw_only=True)
    _owner: os.stat_result = field(repr=False, kw_only=True)
    _held: contextlib.ExitStack = field(repr=False, kw_only=True)

    def move_to(self, key: Key) -> None:
        """Makes it the staging of another key of the same model, which has only now become known.

        Raises:
            CacheError: The cache cannot be written to, or the data has been removed.
        """
        folder = self.folder.with_name(key.digest)
        path = folder / self.path.name
        with explained(self.path):
            owner = _owned(path, self._held)
            self.folder, self.key, self._owner = folder, key, os.fstat(owner)
            os.rename(self.path, path)
            self.path = path

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
        """Makes the staged data, or its folder `item`, the entry's checkpoint, in one atomic step.

        Raises:
            CacheError: The manifest cannot be written, or the data is not what was written: somebody has removed it, or
                some of it.
        """
        with explained(self.path):
            files = list_files(self.path)
            self._require_complete(files)
            manifest = Manifest(
                key=self.key.digest,
                fields=self.key.fields,
                model=self.model,
                data=self.path.name,
                item=item,
                nbytes=nbytes,
                arrays=arrays,
                files=files,
                source=source,
                config=config,
                seconds=round(seconds, 3),
                **(made or made_by_this_process()),
            )
            temporary = self.folder / f"{FILE_NAME}.{os.urandom(16).hex()}"
            try:
                with temporary.open("w") as file:
                    file.write(manifest.to_json())
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(UnreadableManifestError, OSError):
                    # Marks when it was replaced: loads that began before still read it for a while.
                    os.utime(read_entry(self.folder).data)
                self._require_complete(files)
                self.may_be_published = True
                os.replace(temporary, self.folder / FILE_NAME)
            except BaseException:
                # A file that still has its first name has not got the other one.
                self.may_be_published = self.may_be_published and not os.path.lexists(temporary)
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            _sync_folder(self.folder)
            return Entry(self.folder, manifest)

    def _require_complete(self, files: Files) -> None:
        """Makes sure that folder, mark and files are those that this process made."""
        try:
            ours = os.path.samestat(self.path.stat(), self._created)
            ours = ours and os.path.samestat(generation.owner_of(self.path).stat(), self._owner)
        except FileNotFoundError:
            ours = False
        problems = changed_files(self.path, files) if ours else ["it has been removed"]
        if problems:
            raise CacheError(
                f"{self.path} was changed while it was written ({problems[0]}); call again, and see who removes files "
                "there"
            )


@contextlib.contextmanager
def new_staging(folder: Path, key: Key, model: str) -> Iterator[Staging]:
    """A fresh data folder in an entry's folder; removed again unless the body publishes it."""
    path = folder / f"data-{os.urandom(16).hex()}"
    staging = None
    try:
        with contextlib.ExitStack() as held:
            owner = _owned(path, held)
            try:
                path.mkdir()
                made = os.fstat(held.enter_context(liveness.locked_shared(path)))
                staging = Staging(folder, path, key, model, _created=made, _owner=os.fstat(owner), _held=held)
                yield staging
            finally:
                if staging is None or not staging.may_be_published:
                    _discard(staging.path if staging else path)
    finally:
        for used in dict.fromkeys([folder, staging.folder if staging else folder]):
            with contextlib.suppress(OSError):
                used.rmdir()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def _discard(path: Path) -> None:
    """Deletes what will not be published; once more where the disk refused, or a signal came in between."""
    try:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _owned(path: Path, held: contextlib.ExitStack) -> int:
    """Makes the entry's folder and the owner's mark in it; again where another writer removes the empty folder."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            make_folder(path.parent, path.parents[2])
            return held.enter_context(liveness.marked(generation.owner_of(path)))
    raise CacheError(f"{path.parent} is removed again and again by another process; call again")


def made_by_this_process() -> dict[str, Any]:
    """What a manifest says of who made its entry, and when."""
    writer = liveness.this_process()
    return {
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "versions": _versions(),
        "writer": {"host": writer.host, "pid": writer.pid},
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for program in _PROGRAMS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[program] = metadata.version(program)
    return versions


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
