"""The cache: a folder of converted checkpoints, one entry a key.

<root>/CACHEDIR.TAG
<root>/.locks/<key>.lock
<root>/models--Qwen--Qwen3-8B/<key>/manifest.json         there = the entry is complete
                                   /data-<unique>/...     the Orbax checkpoint that the manifest names
"""

import contextlib
import errno
import glob
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyload.cache import liveness
from lazyload.cache.entry import Entry, Staging, new_staging, owner_of, read_entry
from lazyload.cache.key import Key
from lazyload.cache.lock import hold
from lazyload.cache.manifest import FILE_NAME, UnreadableManifestError
from lazyload.errors import CacheError

logger = logging.getLogger("lazyload")

_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Converted checkpoints; https://bford.info/cachedir/\n"
_KEPT_SECONDS = 3600.0
"""How long data that a newer conversion has replaced is kept for the loads that began before."""


@dataclass(frozen=True)
class Removal:
    """Something that was removed from the cache, or with `dry_run` would be.

    Attributes:
        path: The folder or file.
        nbytes: What it takes on disk.
        reason: Why.
    """

    path: Path
    nbytes: int
    reason: str


class Cache:
    """A folder of converted checkpoints.

    Example:
        >>> [entry.model for entry in Cache("/nowhere").entries()]
        []

    Attributes:
        root: The folder; it need not exist.
    """

    root: Path

    def __init__(self, root: str | os.PathLike[str] | None = None):
        """Opens the cache in a folder.

        Args:
            root: None for `$LAZYLOAD_CACHE`, else `$XDG_CACHE_HOME/lazyload`, else `~/.cache/lazyload`.

        Raises:
            CacheError: The root is a URL: entries are published by what only a file system can do.
        """
        chosen = os.fspath(root) if root is not None else os.environ.get("LAZYLOAD_CACHE")
        if not chosen:
            chosen = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "lazyload")
        if "://" in chosen:
            raise CacheError(f"{chosen}: the cache must be a folder; give cache_dir= or LAZYLOAD_CACHE a path")
        self.root = Path(chosen).expanduser().absolute()

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def entries(self, model: str | None = None) -> list[Entry]:
        """All complete entries, by model and age; or just those of one model."""
        found = []
        for folder in self._folders("models--*" if model is None else glob.escape(_folder_name(model))):
            with contextlib.suppress(UnreadableManifestError):
                found.append(read_entry(folder))
        return sorted(found, key=lambda entry: (entry.model, entry.manifest.created))

    def find(self, key: Key) -> Entry | None:
        """The entry of a key; None, with the reason logged, where there is none that can be used."""
        for folder in self.root.glob(f"models--*/{key.digest}"):
            try:
                return read_entry(folder)
            except UnreadableManifestError as error:
                if (folder / FILE_NAME).exists():
                    logger.warning("not using a cached checkpoint: %s", error)
        return None

    def explain(self, key: Key, model: str) -> list[str]:
        """Why there is no entry of a key: how it differs from the entries of the same model, the closest one."""
        others = [entry for entry in self.entries(model) if entry.key != key.digest]
        if not others:
            return [f"{model} has not been converted into {self.root}"]
        differences = [key.differences(Key(entry.manifest.fields)) for entry in others]
        return min(differences, key=len)

    def recall(self, model: str, revision: str | None) -> list[Entry]:
        """The entries of a hub model and revision (branch, tag or commit), the newest first."""
        wanted = revision or "main"
        found = []
        for entry in self.entries(model):
            branch = entry.manifest.source.get("revision") or "main"
            match entry.manifest.fields.get("source"):
                case {"id": str(name), "commit": str(commit)} if name == model and wanted in (commit, branch):
                    found.append(entry)
        return sorted(found, key=lambda entry: entry.manifest.created, reverse=True)

    @contextlib.contextmanager
    def lock(self, key: Key, timeout: float | None = None) -> Iterator[None]:
        """Keeps other processes from converting the same key while the body runs.

        Raises:
            CacheError: The cache cannot be written to.
            LockTimeoutError: Another process held the lock for `timeout` seconds.
        """
        with self._writing():
            locks = self.root / ".locks"
            locks.mkdir(parents=True, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text(_TAG)
            (locks / f"{key.digest}.lock").touch()
        with hold(locks / f"{key.digest}.lock", timeout):
            yield

    @contextlib.contextmanager
    def staging(self, key: Key, model: str, nbytes: int) -> Iterator[Staging]:
        """A fresh data folder for an entry of so many bytes; removed again unless the body publishes it.

        Raises:
            CacheError: The cache cannot be written to, or the disk has not the space.
        """
        folder = self.root / _folder_name(model) / key.digest
        for leftover in self._leftovers(folder):
            _remove(leftover)
        self._require_space(nbytes)
        with self._writing(), new_staging(folder, key, model) as staging:
            yield staging

    def remove(self, *targets: str, dry_run: bool = False) -> list[Removal]:
        """Removes entries.

        Args:
            targets: Names of models (hub ids, folders, URLs), or the starts of keys (4 characters at least).
            dry_run: Whether to say only what would be removed.

        Raises:
            CacheError: A target is not in the cache, or its entry is in use; then nothing is removed.
        """
        chosen = self.select(*targets)
        for entry in chosen:
            if entry.is_in_use():
                raise CacheError(f"{entry.model} ({entry.key[:8]}) is being loaded; try again when that is done")
        removals = [Removal(entry.folder, _size(entry.folder), "asked for") for entry in chosen]
        return self._carry_out(removals, dry_run)

    def select(self, *targets: str) -> list[Entry]:
        """The entries that targets name: models, or the starts of keys (4 characters at least).

        Raises:
            CacheError: A target is not in the cache.
        """
        chosen: dict[Path, Entry] = {}
        entries = self.entries()
        for target in targets:
            names = (target, os.path.abspath(os.path.expanduser(target)))
            matching = [e for e in entries if e.model in names or (len(target) >= 4 and e.key.startswith(target))]
            if not matching:
                known = ", ".join(sorted({entry.model for entry in entries})) or "nothing"
                raise CacheError(
                    f"{target!r} is neither a model nor the start of a key in {self.root}; there is {known}"
                )
            chosen |= {entry.folder: entry for entry in matching}
        return list(chosen.values())

    def prune(
        self, *, older_than: float | None = None, max_bytes: int | None = None, dry_run: bool = False
    ) -> list[Removal]:
        """Removes what no load can use, and on demand what has not been used for long.

        That is: what unfinished conversions left behind, data that a newer conversion replaced, and entries whose
        manifest cannot be read. What a load or a conversion is using stays.

        Args:
            older_than: Also entries that have not been used for so many seconds.
            max_bytes: Also those used longest ago, until the rest takes no more than this.
            dry_run: Whether to say only what would be removed.
        """
        removals = [leftover for folder in self._folders() for leftover in self._leftovers(folder)]
        entries = sorted((e for e in self.entries() if not e.is_in_use()), key=lambda entry: entry.last_used)
        sizes = {entry.folder: _size(entry.folder) for entry in entries}
        total = sum(_size(folder) for folder in self._folders()) - sum(removal.nbytes for removal in removals)
        for entry in entries:
            age = time.time() - entry.last_used
            if older_than is not None and age > older_than:
                reason = f"not used for {age / 86400:.1f} days"
            elif max_bytes is not None and total > max_bytes:
                reason = "used longest ago"
            else:
                continue
            removals.append(Removal(entry.folder, sizes[entry.folder], reason))
            total -= sizes[entry.folder]
        return self._carry_out(removals, dry_run)

    def _folders(self, models: str = "models--*") -> list[Path]:
        """The folders of entries, complete or not; nothing outside the cache's own names."""
        candidates = self.root.glob(f"{models}/*") if self.root.is_dir() else []
        return sorted(
            path
            for path in candidates
            if re.fullmatch("[0-9a-f]{32}", path.name) and path.is_dir() and not path.is_symlink()
        )

    def _leftovers(self, folder: Path) -> list[Removal]:
        """What is left in an entry's folder that neither a load nor a conversion can still use."""
        try:
            named = read_entry(folder).manifest.data
        except UnreadableManifestError:
            named = None
        leased = any(liveness.is_alive(lease) for lease in folder.glob("lease-*"))
        removals = [
            Removal(mark, 0, "its process is gone")
            for mark in [*folder.glob("lease-*"), *folder.glob(f"{FILE_NAME}.*")]
            if not liveness.is_alive(mark)
        ]
        for data in folder.glob("data-*"):
            owner = owner_of(data)
            if not data.is_dir() or data.name == named or data.is_symlink():
                continue
            if owner.exists():
                if not liveness.is_alive(owner):
                    removals.append(Removal(data, _size(data), "a conversion that did not finish"))
            elif not leased and liveness.age(data) > _KEPT_SECONDS:
                removals.append(Removal(data, _size(data), "replaced by a newer conversion"))
        return removals

    def _carry_out(self, removals: Sequence[Removal], dry_run: bool) -> list[Removal]:
        if not dry_run:
            with self._writing():
                for removal in removals:
                    _remove(removal)
        return list(removals)

    def _require_space(self, nbytes: int) -> None:
        existing = next(path for path in [self.root, *self.root.parents] if path.exists())
        free = shutil.disk_usage(existing).free
        if free < nbytes:
            raise CacheError(
                f"{self.root}: the converted checkpoint takes {nbytes / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free; "
                "make space (`lazyload cache ls`, `lazyload cache rm`) or give another cache_dir"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what the operating system says about a cache that cannot be written to into an error of ours."""
        try:
            yield
        except CacheError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            where = Path(error.filename or self.root)
            ours = where.is_relative_to(self.root) or self.root.is_relative_to(where)
            if not ours or not (error.filename or full):
                raise
            remedy = "make space (`lazyload cache ls`, `lazyload cache rm`)" if full else "check who may write there"
            raise CacheError(
                f"{where}: {error.strerror}; {remedy} or give another cache_dir (LAZYLOAD_CACHE)"
            ) from error


def _remove(removal: Removal) -> None:
    """Removes a folder or a file, a manifest before everything else, so that no half entry is ever seen."""
    path = removal.path
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    (path / FILE_NAME).unlink(missing_ok=True)
    if any(liveness.is_alive(lease) for lease in path.glob("lease-*")):
        # A load began at this very moment; it keeps its data, and a later prune takes it away.
        return
    shutil.rmtree(path, ignore_errors=True)
    owner_of(path).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _size(folder: Path) -> int:
    """What a folder takes on disk, in bytes."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _folder_name(model: str) -> str:
    """A model's name as the name of a folder: `models--Qwen--Qwen3-8B`; what is not safe is replaced, and hashed."""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "_", model.replace("/", "--"))[:120]
    if safe.replace("--", "/") != model:
        safe += f"-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return f"models--{safe}"
