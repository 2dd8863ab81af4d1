"""An entry of the cache: a complete converted checkpoint."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from lazyload.bucket.path import Folder
from lazyload.cache.disk import explained
from lazyload.cache.key import ENTRY_FORMAT, Key
from lazyload.cache.manifest import (
    FILE_NAME,
    AbsentError,
    DamagedError,
    InaccessibleError,
    Manifest,
    OlderFormatError,
    Summary,
    UnreadableManifestError,
    Version,
    read_manifest,
    read_with_status,
    version_of,
)
from lazyload.cache.place import Place, place_of
from lazyload.display import text
from lazyload.display.values import named
from lazyload.errors import CacheError, EntryRemovedError

Form = Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]
"""The shape of every array of a checkpoint, by path, and the dtypes it may have; whole numbers keep the source's."""


@dataclass(frozen=True)
class Listed:
    """A complete converted checkpoint, as lists show it: without its arrays and files.

    Attributes:
        folder: The folder of the manifest.
        manifest: What is known of it.
    """

    folder: Folder
    manifest: Summary

    def __repr__(self) -> str:
        fields = {name: self.manifest.fields.get(name) for name in ("layout", "dtype")}
        return named(self, repr(self.model), text.size(self.nbytes), key=self.key, **fields, folder=str(self.folder))

    @property
    def key(self) -> str:
        """The key's digest."""
        return self.manifest.key

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest.model

    @property
    def place(self) -> Place:
        """What the folder is to loads."""
        return place_of(self.folder)

    @property
    def data(self) -> Folder:
        """The data folder."""
        return self.folder / self.manifest.data

    @property
    def path(self) -> Folder:
        """The Orbax checkpoint."""
        return self.data / self.manifest.item

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.manifest.nbytes

    @property
    def revision(self) -> str | None:
        """The branch, tag or commit that was asked for of a hub model; None for a folder or URL."""
        source = self.manifest.source
        return str(source.get("revision") or "main") if self.commit else None

    @property
    def commit(self) -> str | None:
        """The commit of a hub model; None for a folder or URL."""
        match self.manifest.fields.get("source"):
            case {"commit": str(commit)}:
                return commit
        return None

    @property
    def is_pinned(self) -> bool:
        """Whether a hub model was asked for by its commit, which no branch leads away from."""
        return self.commit is not None and self.revision == self.commit

    @property
    def layers(self) -> str:
        """Which layers of the decoder it has, such as `0:8`; empty for all."""
        match self.manifest.fields.get("layers"):
            case [first, end]:
                return f"{first}:{end}"
        return ""

    @property
    def created(self) -> datetime:
        """When it was made."""
        return datetime.fromisoformat(self.manifest.created)

    @property
    def last_used(self) -> float:
        """When it was last restored, in seconds since 1970 and never in the future; when it was made if never."""
        used = self.place.last_used()
        return self.created.timestamp() if used is None else min(max(0.0, used), time.time())

    def state(self) -> object:
        """What is the same until it is converted again or a load uses it."""
        return self.manifest.data, self.place.note_of_use()

    def is_in_use(self) -> bool:
        """Whether a load that is in progress reads it."""
        return self.user() is not None

    def user(self) -> str | None:
        """Who reads it: a clause; None where nobody does."""
        return self.place.user_of(self.manifest.data)


@dataclass(frozen=True, repr=False)
class Entry(Listed):
    """A complete converted checkpoint.

    Attributes:
        folder: The folder of the manifest.
        manifest: What is known of it.
        status: Which manifest was read; None where that is not known.
    """

    manifest: Manifest
    status: Version | None = field(default=None, compare=False)

    def _repr_html_(self) -> str:
        # What notebooks alone show takes a while to import.
        from lazyload.display import weights
        from lazyload.display.html import Html, element, facts, page

        arrays, source = weights.of_records(self.manifest.arrays), self.manifest.source
        made = datetime.fromisoformat(self.manifest.created).timestamp()
        rows: list[tuple[str, Html | str]] = [
            ("layout", str(self.manifest.fields.get("layout", ""))),
            ("dtype", weights.dtypes(arrays)),
            ("made of", ", ".join(f"{name} {value}" for name, value in source.items() if value and name != "sizes")),
            ("made", f"{text.moment(made)}, in {text.duration(self.manifest.seconds)}"),
            ("used last", text.moment(self.last_used)),
            ("key", element("code", self.key)),
            ("path", element("code", str(self.path))),
        ]
        said = f"cached checkpoint, {text.size(self.nbytes)} in {len(arrays)} arrays"
        return page(self.model, said, facts(rows), weights.bar(arrays)).text

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the entry from being removed while the body runs, and counts as use.

        Raises:
            EntryRemovedError: It has been removed, or converted again, since it was found.
        """
        with self.place.leased(self.manifest.data):
            if not self._is_there():
                raise EntryRemovedError(f"{self.data} has just been removed by another process; call again")
            self.place.note_use()
            yield

    @contextlib.contextmanager
    def in_use_by_writer(self) -> Iterator[None]:
        """The same for who has just published it: the data stays even if somebody else has published since."""
        with self.place.leased(self.manifest.data):
            self.place.note_use()
            yield

    def _is_there(self) -> bool:
        where = self.folder / FILE_NAME
        try:
            is_same = self.status is not None and version_of(where) == self.status
            data = self.manifest.data if is_same else read_manifest(where).data
            return data == self.manifest.data and self.place.is_there(data)
        except UnreadableManifestError:
            return False

    def differences(self, form: Form) -> list[str]:
        """How the recorded arrays differ from those wanted, which `form` describes: sentences."""
        records = self.manifest.arrays
        problems = [f"{path}: is no array of this layout" for path in records.keys() - form.keys()]
        for path, (shape, dtypes) in form.items():
            record = records.get(path, {})
            dtype = str(record.get("dtype"))
            has_dtype = dtype in dtypes or dtype.startswith(("int", "uint", "bool"))
            if not (has_dtype and _is_shape(record.get("shape"), shape)):
                wanted = f"{' or '.join(dtypes)}{list(shape)}"
                problems.append(f"{path}: is {record.get('dtype')}{record.get('shape')}, not {wanted}")
        return problems

    def lost_files(self) -> list[str]:
        """Files of the data that are gone or have another size: sentences; costs a `stat` each.

        Raises:
            InaccessibleError: One cannot be looked at now.
        """
        try:
            return self.place.changed_files(self.manifest.data, self.manifest.files)
        except CacheError as error:
            raise InaccessibleError(str(error)) from None
        except OSError as error:
            raise InaccessibleError(f"{error.filename}: cannot be looked at now: {error.strerror}") from None

    def is_lost(self, error: CacheError) -> bool:
        """Whether an error of reading it comes from data that is gone; not where that cannot be looked at now."""
        try:
            return isinstance(error, EntryRemovedError) or bool(self.lost_files())
        except InaccessibleError:
            return False

    def require_undamaged_files(self) -> None:
        """Compares the files with what was written, small ones by their content.

        Raises:
            CacheError: One is damaged, or cannot be read now.
        """
        with explained(self.data):
            problems = self.place.damaged_files(self.manifest.data, self.manifest.files)
        if problems:
            raise CacheError(f"{self.data} is damaged: {problems[0]}; call again with force_convert=True")


def read_entry(folder: Folder) -> Entry:
    """The entry of a folder.

    Raises:
        UnreadableManifestError: There is no complete entry; the subclass says why.
    """
    where = folder / FILE_NAME
    manifest, status = read_with_status(where)
    try:
        belongs = Key(manifest.fields).digest == folder.name == manifest.key
    except ValueError as error:
        raise DamagedError(f"{where}: {error}") from None
    if not belongs:
        raise DamagedError(f"{where}: the key does not belong to this folder")
    made_in = manifest.fields.get("format")
    if isinstance(made_in, int) and made_in < ENTRY_FORMAT:
        raise OlderFormatError(where, {"versions": manifest.versions, "nbytes": manifest.nbytes})
    place_of(folder).require_data(manifest)
    return Entry(folder, manifest, status)


def named_data(folder: Folder) -> str:
    """The name of the data folder that the manifest in an entry's folder names; empty where there is no manifest.

    Raises:
        UnreadableManifestError: There is one, but no complete entry.
    """
    try:
        return read_entry(folder).manifest.data
    except AbsentError:
        return ""


def _is_shape(recorded: object, shape: tuple[int, ...]) -> bool:
    """Whether a manifest has recorded a shape, in whole numbers: 64.0 is not 64."""
    return isinstance(recorded, list) and tuple(recorded) == shape and {*map(type, recorded)} <= {int}


def problem_of(folder: Folder) -> UnreadableManifestError | None:
    """What keeps a folder from being an entry; None where it is one, and where there is nothing."""
    try:
        read_entry(folder)
    except AbsentError:
        return None
    except UnreadableManifestError as error:
        return error
    return None
