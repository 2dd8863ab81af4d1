"""The cache: folders of converted checkpoints, an entry a key, on disks and in buckets."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lazyload.bucket.path import Folder
from lazyload.cache.clearing import carry_out, carry_out_one, entry_folder
from lazyload.cache.contents import Contents
from lazyload.cache.disk import explained
from lazyload.cache.entry import Entry, Form, Listed, problem_of, read_entry
from lazyload.cache.key import Key, is_digest
from lazyload.cache.looking import look_at, names_in
from lazyload.cache.manifest import (
    FILE_NAME,
    AbsentError,
    InaccessibleError,
    NewerFormatError,
    OlderFormatError,
    UnreadableManifestError,
    version_of,
)
from lazyload.cache.removal import Removal
from lazyload.cache.root import Root, Staging, chosen_roots, default_root, root_of
from lazyload.cache.superseded import Superseded, find_superseded
from lazyload.cache.targets import folder_name, selected
from lazyload.display import text
from lazyload.errors import ArgumentError, CacheAccessError, CacheError
from lazyload.log import logger

if TYPE_CHECKING:
    from lazyload.progress import Advance

Found = TypeVar("Found")

_MOST_ROWS = 100
"""How many entries a notebook shows."""


class Cache:
    """A folder of converted checkpoints.

    Example:
        >>> [entry.model for entry in Cache("/nowhere").entries()]
        []

    Attributes:
        contents: What is known of source folders, on a disk.
    """

    contents: Contents

    def __init__(self, root: str | os.PathLike[str] | None = None):
        """Opens the cache in a folder.

        Args:
            root: A folder, or a URL such as `gs://bucket/path` or `s3://bucket/path`; None for `$LAZYLOAD_CACHE`, else
                `$XDG_CACHE_HOME/lazyload`, else `~/.cache/lazyload`. The variable may name several, `/shared:/own` or
                `/local:gs://bucket/path`: all are looked in, and the last is written to.

        Raises:
            CacheError: The root is a URL, but not of a bucket, or has a backslash.
        """
        self._all = tuple(chosen_roots(root))
        self._root = self._all[-1]
        self._out_of_reach: set[Folder] = set()
        # Folders are this machine's: what they contain is not for a bucket.
        *before, last = [each for each in (*self.shared, self.root) if isinstance(each, Path)] or [
            Path(default_root()).expanduser()
        ]
        self.contents = Contents(last, before)
        self._recalled: dict[Folder, Entry] = {}

    @property
    def root(self) -> Folder:
        """The root that is written to; it need not exist."""
        return self._root.folder

    @property
    def shared(self) -> tuple[Folder, ...]:
        """Other roots, whose entries are used.

        Nothing is written to them but leases, and copies to a first one on a disk of what is found in a bucket.
        """
        return tuple(root.folder for root in self._all if root is not self._root)

    @property
    def names_last(self) -> bool:
        """Whether an entry can be named when it is complete."""
        return self._root.names_last

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    def entries(self, model: str | None = None, *, filters: Sequence[str] = ()) -> list[Entry]:
        """All complete entries, by model and age; or just those of one model, or those that fulfil all filters.

        Args:
            model: The model's name.
            filters: Conditions such as `"size>1GB"`, `"accessed>30d"`, `"model=Qwen/*"`, `"superseded=yes"`.

        Raises:
            ArgumentError: A filter is none.
        """
        entries = self._entries(model)
        if not filters:
            return entries
        # What lists do without is imported where it is used.
        from lazyload.cache.filters import filtered

        return filtered(entries, filters, entries)

    def look(self) -> tuple[list[Listed], dict[Folder, str]]:
        """What `entries` and `problems` return, in short, with one look at each folder."""
        return self._look(writes_index=True)

    def _look(
        self, model: str | None = None, *, shared: bool = False, writes_index: bool = False
    ) -> tuple[list[Listed], dict[Folder, str]]:
        """Entries as lists show them, and what is none."""
        name = None if model is None else folder_name(model)
        looks = [
            found
            for root in self._roots(shared=shared)
            if (found := self._reached(root, lambda root: look_at(root, name, writes_index=writes_index))) is not None
        ]
        entries = sorted((entry for found, _ in looks for entry in found), key=_by_model_and_age)
        return entries, {folder: problem for _, found in looks for folder, problem in found.items()}

    def names(self) -> tuple[list[str], list[str]]:
        """The models and the keys that there are, with a look at one manifest a model."""
        return names_in(self._root)

    def superseded(self) -> dict[Folder, Superseded]:
        """The entries that later ones have taken the place of, by their folders; see `cache/superseded.py`."""
        return find_superseded(self._look()[0])

    def _entries(self, model: str | None = None, *, shared: bool = False) -> list[Entry]:
        found = []
        for folder in self._folders(model, shared=shared):
            with contextlib.suppress(UnreadableManifestError):
                found.append(read_entry(folder))
        return sorted(found, key=_by_model_and_age)

    def visible(self, model: str) -> list[Entry]:
        """All complete entries of a model that a call may use, those of shared roots included."""
        return self._entries(model, shared=True)

    def problems(self, model: str | None = None) -> dict[Folder, str]:
        """Folders whose manifest or data keep them from being entries, and why; all, or just those of one model."""
        found = {folder: problem_of(folder) for folder in self._folders(model)}
        return {folder: str(problem) for folder, problem in found.items() if problem}

    def outdated(self, model: str | None = None) -> dict[Folder, OlderFormatError]:
        """Folders of entries that an older version made and this one does not read; all, or those of one model."""
        found = {folder: problem_of(folder) for folder in self._folders(model)}
        return {folder: problem for folder, problem in found.items() if isinstance(problem, OlderFormatError)}

    def find(self, key: Key, forms: Iterable[Form] = (), model: str = "") -> Entry | None:
        """The entry of a key; None, with the reason logged, where there is none, or one that is damaged.

        Args:
            key: The key.
            forms: What its arrays must be, one of these; none for whatever they are. Further ones are not looked at
                once one fits.
            model: The model's name, under which it is looked for first.

        Raises:
            CacheError: There may be one, but it cannot be looked at now, or was made by a newer version.
        """
        for folder in self._folders_of(key, folder_name(model) if model else ""):
            try:
                entry = self._entry(folder)
                problems = _fewest(map(entry.differences, forms)) or entry.lost_files()
            except AbsentError:
                continue
            except (InaccessibleError, NewerFormatError) as error:
                if folder.parents[1] != self.root:
                    logger().warning("not using a cached checkpoint: %s", error)
                    continue
                newer = ": a newer lazyload made it; install that" if isinstance(error, NewerFormatError) else ""
                raise CacheError(
                    f"{error}{newer or '; try again, see who may read it'}, or give another cache_dir (LAZYLOAD_CACHE)"
                ) from None
            except UnreadableManifestError as error:
                logger().warning("not using a cached checkpoint: %s", error)
                continue
            if not problems:
                return entry
            logger().warning(
                "not using a cached checkpoint, which is damaged: %s: %s%s",
                entry.data,
                problems[0],
                f", and {len(problems) - 1} more" if len(problems) > 1 else "",
            )
        return None

    def _entry(self, folder: Folder) -> Entry:
        """The entry of a folder; a manifest that `recall` has read is not read again while it stays the same.

        Raises:
            UnreadableManifestError: There is no complete entry.
        """
        recalled = self._recalled.get(folder)
        if recalled and recalled.status and recalled.status == version_of(folder / FILE_NAME):
            return recalled
        return read_entry(folder)

    def _folders_of(self, key: Key, name: str) -> Iterator[Folder]:
        """The folders that may hold the entry of a key; of several roots, without a bucket that is out of reach."""
        for root in self._roots(shared=True):
            yield from self._reached(root, lambda root: root.find(key.digest, name)) or ()

    def _reached(self, root: Root, task: Callable[[Root], Found]) -> Found | None:
        """What a task finds in a root; None, with a warning, of several roots for a bucket that is out of reach."""
        try:
            return task(root)
        except CacheError as error:
            if isinstance(root.folder, Path) or len(self._all) == 1:
                raise
            if root.folder not in self._out_of_reach:
                self._out_of_reach.add(root.folder)
                logger().warning("not looking for a cached checkpoint in %s: %s", root.folder, error)
            return None

    def explain(self, key: Key, model: str) -> list[str]:
        """Why there is no entry of a key: how it differs from the entries of the same model, the closest one."""
        for folder in self._folders(key=key.digest):
            if problem := problem_of(folder):
                return [f"what there is of it cannot be used: {problem}"]
            if (folder / FILE_NAME).exists():
                return [f"what there is of it is damaged: {folder}"]
        others = [entry for entry in self.entries(model) if entry.key != key.digest]
        if not others:
            return self.explain_outdated(model) or [f"{model} has not been converted into {self.root}"]
        differences = [key.differences(Key(entry.manifest.fields)) for entry in others]
        return min(differences, key=len)

    def explain_outdated(self, model: str) -> list[str]:
        """What an older version has made of a model, a sentence; none where it has made nothing."""
        versions = {error.version for error in self.outdated(model).values()}
        made_by = ", ".join(sorted(versions))
        return [f"what lazyload {made_by} converted of {model} is not read by this version"] if versions else []

    def has_made(self, origin: Mapping[str, Any]) -> bool:
        """Whether an entry was made of files of the same names and sizes, which `origin["sizes"]` has by name."""
        entries, _ = self._look(shared=True)
        return any(entry.manifest.source.get("sizes") == origin.get("sizes") for entry in entries)

    def recall(self, model: str, revision: str | None) -> list[Entry]:
        """The entries of a hub model and revision (branch, tag or commit), the newest first."""
        wanted, name = revision or "main", folder_name(model)
        found: list[Entry] = []
        # A disk answers without a bucket, and so without a network.
        for root in sorted(self._roots(shared=True), key=lambda root: not isinstance(root.folder, Path)):
            if not found or isinstance(root.folder, Path):
                entries, _ = self._reached(root, lambda root: look_at(root, name)) or ([], {})
                found += _of_revision(entries, model, wanted)
        self._recalled = {entry.folder: entry for entry in found}
        return sorted(found, key=lambda entry: entry.manifest.created, reverse=True)

    @contextlib.contextmanager
    def lock(self, key: Key, timeout: float | None = None, model: str = "") -> Iterator[None]:
        """Keeps others from converting the same key while the body runs.

        Args:
            key: The key.
            timeout: Seconds to wait at most; None for `$LAZYLOAD_LOCK_TIMEOUT`, else for as long as it takes.
            model: What messages call that which is to be converted.

        Raises:
            CacheError: The cache cannot be written to, the environment's limit is no number of seconds, or the
                conversion that would be waited for waits for this call.
            LockTimeoutError: Somebody else held the lock for `timeout` seconds.
        """
        from lazyload.cache.conversions import Watch

        limit = _lock_timeout() if timeout is None else timeout
        watch = Watch(self.root, key, model or key.digest)
        watch()
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._root.lock(key.digest, limit, watch))
            except CacheAccessError as error:
                if not self._write_to_an_earlier_root():
                    raise
                logger().warning("converting into %s: %s", self.root, error)
                watch = Watch(self.root, key, model or key.digest)
                held.enter_context(self._root.lock(key.digest, limit, watch))
            yield

    def _write_to_an_earlier_root(self) -> bool:
        """Has the last root before this one be written to, where there is one."""
        earlier = self._all[: self._all.index(self._root)]
        if not earlier:
            return False
        self._root = earlier[-1]
        return True

    @contextlib.contextmanager
    def staging(self, key: Key, model: str, nbytes: int) -> Iterator[Staging]:
        """A fresh data folder for an entry; removed again unless the body publishes it.

        Args:
            key: The entry's key.
            model: The model's name.
            nbytes: Bytes that the entry will take.

        Raises:
            CacheError: The cache cannot be written to, or the disk has not the space.
        """
        with explained(self.root):
            self._remove_unfinished(model)
        with self._root.staging(key, model, folder_name(model), nbytes) as staging:
            yield staging
        self._forget_copies([key.digest])

    def _forget_copies(self, digests: Iterable[str]) -> None:
        """Removes what `brought_here` has copied of entries, unless somebody reads it, so that they are found anew."""
        for folder in self._copies(digests):
            carry_out_one(root_of(folder), Removal(folder, 0, "a copy"), lambda removal: True, force=False)

    def _copies(self, digests: Iterable[str]) -> list[Folder]:
        """The folders of the copies that `brought_here` has made of entries."""
        first = self._roots(shared=True)[0]
        if isinstance(self.root, Path) or not isinstance(first.folder, Path):
            return []
        return [folder for digest in digests for folder in first.folders(None, digest)]

    def copies_of(self, folders: Iterable[Folder]) -> list[Folder]:
        """The folders on a disk in front of a bucket to which entries have been copied, complete or not."""
        return [folder for folder in self._copies(each.name for each in folders) if _has_manifest(folder)]

    def copies(self, entry: Entry) -> bool:
        """Whether `brought_here` copies an entry."""
        return not isinstance(entry.folder, Path) and isinstance(self._roots(shared=True)[0].folder, Path)

    def brought_here(
        self, entry: Entry, advance: "Advance" = lambda nbytes: None, timeout: float | None = None
    ) -> Entry:
        """An entry that is in a bucket, copied to the first root where that is on a disk; else the entry itself.

        Args:
            entry: The entry.
            advance: Called with the numbers of bytes that have been copied, from any thread.
            timeout: Seconds to wait at most for somebody who copies it; see `lock`.
        """
        if not self.copies(entry):
            return entry
        # A cache on a disk does without it.
        from lazyload.cache.copying import copy_entry

        limit = _lock_timeout() if timeout is None else timeout
        try:
            return copy_entry(entry, self._roots(shared=True)[0], folder_name(entry.model), advance, limit)
        except CacheError as error:
            logger().warning("using %s where it is: %s", entry.folder, error)
            return entry

    def _remove_unfinished(self, model: str) -> None:
        """Removes what conversions of a model have left that did not finish, under whatever key."""
        for folder in self._folders(model):
            carry_out(
                self._root,
                self._root.unfinished(folder),
                lambda removal: removal in self._root.unfinished(entry_folder(removal.path)),
            )

    def remove(
        self, *targets: str, filters: Sequence[str] = (), dry_run: bool = False, force: bool = False
    ) -> list[Removal]:
        """Removes entries.

        Args:
            targets: Names of models (hub ids, folders, URLs), or the starts of keys (4 characters at least).
            filters: Conditions that these must fulfil, too, such as `"accessed>30d"`; without targets, all entries
                that fulfil them.
            dry_run: Whether to say only what would be removed.
            force: Whether to remove also what somebody writes or reads.

        Raises:
            ArgumentError: A filter is none.
            CacheError: A target is not in the cache, and nothing was removed; or somebody writes or reads an entry,
                which was kept while the others were removed.
        """
        folders = self._select(targets)
        if filters:
            from lazyload.cache.filters import filtered

            entries, _ = self._look()
            passed = {entry.folder for entry in filtered(entries, filters, entries)}
            folders = [folder for folder in (folders if targets else self._folders()) if folder in passed]
        removals = [Removal(folder, self._root.size(folder), "asked for") for folder in folders]
        if dry_run:
            return removals
        removed, kept = carry_out(self._root, removals, lambda removal: True, force=force)
        self._forget_copies(removal.path.name for removal in removed)
        if kept:
            raise CacheError(
                "; ".join(f"kept {removal.path}: {reason}" for removal, reason in kept)
                + f"; removed {len(removed)} of {len(removals)}; try again later, or give force=True (--force)"
            )
        return removed

    def discard(self, folder: Folder, is_still_right: Callable[[], bool]) -> str | None:
        """Removes one entry's folder under its key's lock, whatever is in it, unless somebody uses it.

        Args:
            folder: The folder.
            is_still_right: Asked under the lock.

        Returns:
            Why it stays, a clause; None if it is gone.
        """
        asked = Removal(folder, 0, "asked for")
        stays = carry_out_one(root_of(folder), asked, lambda removal: is_still_right(), force=False)
        if stays is None and folder.parents[1] == self.root:
            self._forget_copies([folder.name])
        return stays

    def select(self, *targets: str) -> list[Entry]:
        """The entries that targets name: models, or the starts of keys (4 characters at least).

        Raises:
            CacheError: A target is not in the cache.
        """
        found = []
        for folder in self._select(targets):
            with contextlib.suppress(UnreadableManifestError):
                found.append(read_entry(folder))
        return found

    def folders(self, *targets: str) -> list[Folder]:
        """The folders that have a manifest, usable or not: all, or those that targets name.

        Raises:
            CacheError: A target is not in the cache.
        """
        chosen = self._select(targets) if targets else self._folders()
        return [folder for folder in chosen if _has_manifest(folder)]

    def _select(self, targets: Sequence[str]) -> list[Folder]:
        """The folders that targets name."""
        models = {entry.folder: entry.model for entry in self._look()[0]}
        return selected(targets, self._folders(), models, self.root)

    def prune(
        self,
        *,
        older_than: float | None = None,
        max_bytes: int | None = None,
        superseded: bool = False,
        keep_last: int | None = None,
        incomplete: bool = False,
        everything: bool = False,
        dry_run: bool = False,
    ) -> list[Removal]:
        """Removes what no load can use, and on demand entries, each rule adding to the others.

        What no load can use is what unfinished conversions and removals left behind, data that a newer conversion
        replaced, what an older version made and this one does not read, what is proven to be damaged, and what is
        remembered of source folders that are gone. What somebody writes or reads stays, and so does what cannot be
        looked at now.

        Args:
            older_than: Also entries that have not been used for so many seconds.
            max_bytes: Also those used longest ago, until the rest takes no more than this.
            superseded: Also those that a later entry has taken the place of, because the branch, the folder, or the way
                of converting has changed.
            keep_last: Of each model, the so many entries used last stay, whatever else is asked for; alone, all others
                are removed.
            incomplete: Only what unfinished conversions and removals left behind.
            everything: Also all that nobody uses, whatever version can read it.
            dry_run: Whether to say only what would be removed.

        Raises:
            ArgumentError: `incomplete` stands beside another rule, or `keep_last` is less than 1.
        """
        from lazyload.cache.pruning import Rules

        rules = Rules(older_than, max_bytes, superseded, keep_last, everything)
        if incomplete and not rules.is_none:
            raise ArgumentError("incomplete=True removes nothing but what is unfinished; leave the other rules out")
        find = self._root.unfinished if incomplete else self._root.leftovers
        with explained(self.root):
            removals = [leftover for folder in self._folders() for leftover in find(folder)]
            forgotten = [] if incomplete else [*self._obsolete(), *self._root.abandoned()]
        if older_than is not None:
            self._root.compare_clocks()
        entries, problems = self.look()
        unread = {path for path in problems if everything and _is_of_other_version(path)}
        known = {removal.path for removal in removals}
        removals += [Removal(path, self._root.size(path), problems[path]) for path in sorted(unread - known)]
        unused = [entry for entry in entries if not entry.is_in_use()]
        states = {entry.folder: entry.state() for entry in unused}
        if not rules.is_none:
            sizes = {entry.folder: self._root.size(entry.folder) for entry in unused}
            total = sum(map(self._root.size, self._folders())) - sum(removal.nbytes for removal in removals)
            chosen = rules.choose(entries, unused, sizes, total)
            removals += [Removal(entry.folder, sizes[entry.folder], reason) for entry, reason in chosen]
        if dry_run:
            return [*removals, *forgotten]

        def is_still_right(removal: Removal) -> bool:
            if any(removal.path == leftover.path for leftover in find(entry_folder(removal.path))):
                return True
            try:
                return read_entry(removal.path).state() == states.get(removal.path)
            except UnreadableManifestError:
                return removal.path in unread

        removed, kept = carry_out(self._root, removals, is_still_right)
        self._forget_copies(removal.path.name for removal in removed if is_digest(removal.path.name))
        for removal, reason in kept:
            logger().info("kept %s: %s", removal.path, reason)
        for removal in forgotten:
            with explained(self.root):
                self._root.discard(removal.path)
        return [*removed, *forgotten]

    def _obsolete(self) -> list[Removal]:
        return self.contents.obsolete() if isinstance(self.root, Path) else []

    def _roots(self, *, shared: bool) -> tuple[Root, ...]:
        return self._all if shared else (self._root,)

    def _folders(self, model: str | None = None, key: str | None = None, *, shared: bool = False) -> list[Folder]:
        """The folders of entries, complete or not; nothing outside the cache's own names, and no links."""
        name = None if model is None else folder_name(model)
        return [
            folder
            for root in self._roots(shared=shared)
            for folder in self._reached(root, lambda root: root.folders(name, key)) or ()
        ]

    def _repr_html_(self) -> str:
        # Notebooks alone show it.
        from lazyload.display.html import element, page, table

        entries, _ = self._look()
        rows = [
            (
                entry.model,
                element("code", entry.key[:8]),
                str(entry.manifest.fields.get("layout", "")),
                str(entry.manifest.fields.get("dtype", "")),
                text.size(entry.nbytes),
                text.moment(entry.last_used),
            )
            for entry in entries[:_MOST_ROWS]
        ]
        total = text.size(sum(entry.nbytes for entry in entries))
        further = f"; the first {_MOST_ROWS} of them" if len(entries) > _MOST_ROWS else ""
        shown = table(("model", "key", "layout", "dtype", "size", "used last"), rows, right=("size",))
        return page(
            f"Cache {self.root}",
            f"{len(entries)} converted checkpoint{'' if len(entries) == 1 else 's'}, {total}{further}",
            shown,
        ).text


def _by_model_and_age(entry: Listed) -> tuple[str, str]:
    return entry.model, entry.manifest.created


def _of_revision(entries: Iterable[Listed], model: str, wanted: str) -> Iterator[Entry]:
    """Those of a hub model and revision."""
    for listed in entries:
        branch = listed.manifest.source.get("revision") or "main"
        match listed.manifest.fields.get("source"):
            case {"id": str(name), "commit": str(commit)} if name == model and wanted in (commit, branch):
                with contextlib.suppress(UnreadableManifestError):
                    yield listed if isinstance(listed, Entry) else read_entry(listed.folder)


def _fewest(problems: Iterable[list[str]]) -> list[str]:
    """The shortest of several lists, which is the first that is empty; an empty one for none."""
    fewest: list[str] | None = None
    for some in problems:
        if not some:
            return some
        fewest = some if fewest is None or len(some) < len(fewest) else fewest
    return fewest or []


def _has_manifest(folder: Folder) -> bool:
    where = folder / FILE_NAME
    return os.path.lexists(where) if isinstance(where, Path) else where.exists()


def _lock_timeout() -> float | None:
    """What the environment says of waiting for another process."""
    text = os.environ.get("LAZYLOAD_LOCK_TIMEOUT")
    if not text:
        return None
    with contextlib.suppress(ValueError):
        if (seconds := float(text)) >= 0:
            return seconds
    raise CacheError(f"LAZYLOAD_LOCK_TIMEOUT={text!r}: give a number of seconds")


def _is_of_other_version(folder: Folder) -> bool:
    return isinstance(problem_of(folder), OlderFormatError | NewerFormatError)
