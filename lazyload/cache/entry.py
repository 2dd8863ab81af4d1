"""An entry of the cache, and the staging folder from which one is published."""

import contextlib
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lazyload.cache import liveness
from lazyload.cache.key import Key
from lazyload.cache.manifest import FILE_NAME, Manifest, UnreadableManifestError, read_manifest
from lazyload.errors import CacheError

_PROGRAMS = ("lazyload", "tensorstore", "numpy", "ml_dtypes", "huggingface_hub", "orbax-checkpoint", "jax")


@dataclass(frozen=True)
class Entry:
    """A complete converted checkpoint.

    Attributes:
        folder: The folder of the manifest.
        manifest: What is known of it.
    """

    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """The key's digest."""
        return self.manifest.key

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest.model

    @property
    def path(self) -> Path:
        """The Orbax checkpoint."""
        return self.folder / self.manifest.data / self.manifest.item

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.manifest.nbytes

    @property
    def last_used(self) -> float:
        """When it was last restored, in seconds since 1970 and never in the future; when it was made if never."""
        with contextlib.suppress(OSError):
            return min(max(0.0, (self.folder / "last-used").stat().st_mtime), time.time())
        return datetime.fromisoformat(self.manifest.created).timestamp()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the entry from being removed while the body runs; a read-only cache needs no such protection.

        Raises:
            CacheError: It has been removed since it was found.
        """
        with liveness.marked(self.folder / f"lease-{uuid.uuid4().hex}"):
            with contextlib.suppress(OSError):
                (self.folder / "last-used").touch()
            if not self.path.is_dir() or not (self.folder / FILE_NAME).exists():
                raise CacheError(f"{self.folder} has just been removed by another process; call again to convert anew")
            yield

    def is_in_use(self) -> bool:
        """Whether a load that is in progress reads it."""
        return any(liveness.is_alive(lease) for lease in self.folder.glob("lease-*"))


def read_entry(folder: Path) -> Entry:
    """The entry of a folder.

    Raises:
        UnreadableManifestError: There is no complete entry; the message says why.
    """
    manifest = read_manifest(folder / FILE_NAME)
    if Key(manifest.fields).digest != folder.name or manifest.key != folder.name:
        raise UnreadableManifestError(f"{folder / FILE_NAME}: the key does not belong to this folder")
    entry = Entry(folder, manifest)
    try:
        is_empty = not any(entry.path.iterdir())
    except (OSError, ValueError) as error:
        raise UnreadableManifestError(f"{folder / FILE_NAME}: its data cannot be looked at: {error}") from None
    if is_empty:
        raise UnreadableManifestError(f"{folder / FILE_NAME}: its data {manifest.data} is empty")
    return entry


@dataclass(frozen=True)
class Staging:
    """A data folder that is being written; no entry until it is published.

    Attributes:
        folder: The entry's folder.
        path: The data folder.
        key: What it will be.
        model: The model's name.
    """

    folder: Path
    path: Path
    key: Key
    model: str

    def publish(
        self,
        *,
        arrays: Mapping[str, Mapping[str, Any]],
        nbytes: int,
        item: str = "",
        source: Mapping[str, Any],
        config: Mapping[str, Any],
        seconds: float,
    ) -> Entry:
        """Makes the staged data, or its folder `item`, the entry's checkpoint, in one atomic step."""
        writer = liveness.this_process()
        manifest = Manifest(
            key=self.key.digest,
            fields=self.key.fields,
            model=self.model,
            data=self.path.name,
            item=item,
            nbytes=nbytes,
            arrays=arrays,
            source=source,
            config=config,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            versions=_versions(),
            writer={"host": writer.host, "pid": writer.pid},
        )
        target = self.folder / FILE_NAME
        temporary = self.folder / f"{FILE_NAME}.{uuid.uuid4().hex}"
        with temporary.open("w") as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(UnreadableManifestError):
            # Marks when it was replaced: loads that began before still read it for a while.
            os.utime(self.folder / read_entry(self.folder).manifest.data)
        os.replace(temporary, target)
        _sync_folder(self.folder)
        return Entry(self.folder, manifest)


@contextlib.contextmanager
def new_staging(folder: Path, key: Key, model: str) -> Iterator[Staging]:
    """A fresh data folder in an entry's folder; removed again unless the body publishes it."""
    staging = Staging(folder, folder / f"data-{uuid.uuid4().hex}", key, model)
    owner = owner_of(staging.path)
    folder.mkdir(parents=True, exist_ok=True)
    liveness.write(owner)
    try:
        staging.path.mkdir()
        yield staging
    finally:
        if not _is_published(staging):
            shutil.rmtree(staging.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            owner.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()


def owner_of(data: Path) -> Path:
    """The mark of the process that is writing a data folder; gone once it is published."""
    return data.with_name(f"{data.name}.owner")


def _is_published(staging: Staging) -> bool:
    try:
        return read_manifest(staging.folder / FILE_NAME).data == staging.path.name
    except UnreadableManifestError:
        return False


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
