"""A model of the Hugging Face hub.

`config.json` tells the commit; headers are read by range; files of weights are fetched into the hub's own cache only
when they are converted.
"""

import collections
import functools
import hashlib
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

with warnings.catch_warnings():
    # Of a notebook without ipywidgets, whose bars nothing here asks for.
    warnings.simplefilter("ignore")
    import tqdm.auto  # noqa: F401

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub import errors as hub_errors
from huggingface_hub.file_download import HfFileMetadata
from huggingface_hub.utils import build_hf_headers

from lazyload.errors import CorruptSourceError, SourceNotFoundError
from lazyload.progress import Advance
from lazyload.sources.answers import Answers
from lazyload.sources.files import (
    CONFIG,
    MODELOPT_CONFIG,
    MissingFileError,
    NotAsReadError,
    before_each,
    index_name,
    most_bytes,
    no_config,
    single_name,
)
from lazyload.sources.following import FollowedFile, Following
from lazyload.sources.hub_errors import denied, endpoint, explained, explanation, unreachable
from lazyload.sources.hub_internals import (
    HTTP_ERRORS,
    Answer,
    DownloadCount,
    ImpatientError,
    commit_of_file,
    counted,
    get_range,
    is_known_missing,
    partial_download,
    sha256_of_download,
    sha256_of_file,
    snapshot_folder,
)
from lazyload.sources.local import LocalFiles
from lazyload.sources.passing import Passing, PassingFile
from lazyload.sources.patience import BUSY, PassingError, patiently
from lazyload.sources.reference import ModelReference
from lazyload.sources.secrets import without_secrets
from lazyload.sources.stretches import Stretch, Wanted
from lazyload.sources.versions import Versions

logger = logging.getLogger("lazyload")

_FIRST_BYTES = 1 << 17
"""Read of a file to learn its size; most headers are shorter."""

_DOWNLOADS = 4
_DOWNLOADS_OF_XET = 2
"""Each of which is in several pieces at once, and is read when it is complete."""

_REQUESTS = 8
_EXPIRED = (400, 401, 403, 404, 410)
"""What an address that was signed is answered with when its time is over."""


class HubFiles:
    """The files of a model at one commit."""

    def __init__(self, reference: ModelReference, first: str = CONFIG, answers: Mapping[str, Any] | None = None):
        """Resolves the revision, with one request at most: for the file `first`, which each of these models has.

        With what another process was answered (`HubFiles.answers`), the hub is not asked for what stands in it.

        Raises:
            SourceNotFoundError: The hub has no such model or revision, or is out of reach and has not been before.
            AccessDeniedError: It may not be read.
        """
        self.name = reference.name
        self.variant = reference.variant
        self._reference = reference
        self._offline = reference.local_files_only or constants.HF_HUB_OFFLINE
        self._is_told = bool(answers)
        self._answers = Answers.from_json(answers) if answers else Answers(self._resolved(first), reference.revision)
        self._commit = self._answers.commit
        # What is asked for from now on.
        self._reference = replace(reference, revision=self._commit)
        self._snapshot = snapshot_folder(self.name, self._commit)
        self._local = LocalFiles(self._snapshot / reference.subfolder, self.name)
        self._arrival: Following | Passing | None = None
        self._versions = Versions()
        self._lock = threading.Lock()

    def _resolved(self, first: str) -> str:
        """The commit of the revision."""
        reference = self._reference
        with self._explained():
            try:
                file = self._download(first, reference.revision)
            except hub_errors.LocalEntryNotFoundError:
                raise
            except hub_errors.EntryNotFoundError:
                raise no_config(self.name, self._listed(reference.revision)) from None
        return commit_of_file(file, len(Path(reference.subfolder).parts))

    @property
    def origin(self) -> Mapping[str, Any]:
        """Model, revision and commit."""
        origin = {"id": self.name, "revision": self._answers.revision, "commit": self._commit}
        return origin | self._reference.place

    def identity(self, advance: Advance | None = None) -> Mapping[str, Any]:
        """Model and commit, and which files of it, which say all."""
        return {"kind": "hub", "id": self.name, "commit": self._commit} | self._reference.place

    def status(self) -> Mapping[str, Any]:
        """Nothing: a commit does not change."""
        return {}

    @property
    def is_identified(self) -> bool:
        """The commit says all."""
        return True

    @property
    def is_far(self) -> bool:
        """What is not in the hub's cache is."""
        return True

    def answers(self) -> Mapping[str, Any]:
        """What the hub has answered, and where the files of weights lie, each of which has been asked for its size."""
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="lazyload") as pool:
            collections.deque(pool.map(self._metadata, list(self._answers.starts)), maxlen=0)
        return self._answers.as_json()

    def names(self) -> list[str]:
        """The names of all files; of those in the hub's cache, where the hub must not be asked."""
        if self._offline:
            return self._local.names()
        with self._explained():
            return self._listed(self._commit)

    def _listed(self, revision: str | None) -> list[str]:
        api = HfApi(token=self._reference.token)
        ask = functools.partial(
            api.model_info, self.name, revision=revision or "main", timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        paths = [file.rfilename for file in patiently(ask).siblings or ()]
        prefix = _path(self._reference, "")
        names = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
        return [name for name in names if "/" not in name and "\\" not in name and name not in ("", ".", "..")]

    def find(self, name: str) -> bytes | None:
        """The whole content of a file; None where there is no such file."""
        if name not in (CONFIG, MODELOPT_CONFIG, index_name(self.variant)):
            return self._find(name)
        if name not in self._answers.contents:
            self._answers.contents[name] = self._find(name)
        return self._answers.contents[name]

    def _find(self, name: str) -> bytes | None:
        if is_known_missing(self.name, _path(self._reference, name), self._commit):
            return None
        try:
            self._download(name, self._commit)
            return self._local.find(name)
        except hub_errors.EntryNotFoundError as error:
            unknown = isinstance(error, hub_errors.LocalEntryNotFoundError) and not self._offline
            # Out of reach, but a checkpoint of one file that has been downloaded needs no index.
            if not unknown or (name == index_name(self.variant) and self.is_here(single_name(self.variant))):
                return None
            raise unreachable(error, self._reference, self._offline) from None
        except HTTP_ERRORS as error:
            raise explanation(error, self._reference, self._offline) from None

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        if self.is_here(name):
            return self._local.size(name)
        is_missing = name in self._answers.absent
        if is_missing or is_known_missing(self.name, _path(self._reference, name), self._commit):
            raise self._missing(name)
        try:
            return self._start(name)[1]
        except MissingFileError:
            self._answers.absent.add(name)
            raise
        except SourceNotFoundError as error:
            # Out of reach, but a checkpoint with an index that has been downloaded needs no single file.
            if name == single_name(self.variant) and self.is_here(index_name(self.variant)):
                raise self._missing(name) from error
            raise

    def is_here(self, name: str) -> bool:
        """Whether a file is in the hub's cache."""
        return (self._local.folder / name).exists()

    def read_into(self, name: str, start: int, out: memoryview) -> None:
        """Fills `out` from a position on: from the hub's cache, from what arrives, or by asking for that range."""
        if self._arrival is not None and self._arrival.holds(name):
            self._arrival.read_into(name, start, out)
            return
        if self.is_here(name):
            self._local.read_into(name, start, out)
            return
        _, size = self._start(name)
        if start + len(out) > size:
            raise CorruptSourceError(
                f"{self.name}: {name} has {size} bytes on the hub, {len(out)} from byte {start} are needed"
            )
        content = self._answers.known(name, start, len(out))
        if content is None:
            content = self._range(name, start, start + len(out), from_where_it_lies=self._is_told)[0]
            with self._lock:
                self._answers.note_range(name, start, content)
        out[:] = content

    def nbytes_to_fetch(self, wanted: Wanted, *, keep: bool, is_shared: bool = False) -> int:
        """How many bytes `arriving` downloads."""
        remote = self._remote(wanted)
        if keep:
            return sum(self.size(name) for name in remote)
        return self._passing(remote, lambda nbytes: None, is_shared).nbytes

    @contextmanager
    def arriving(
        self, wanted: Wanted, advance: Advance, *, keep: bool, is_shared: bool = False
    ) -> Iterator[Mapping[str, int]]:
        """Downloads files into the hub's cache, or fetches what is wanted of them without storing it."""
        remote = self._remote(wanted)
        here = before_each(
            {name: self.size(name) - sum(map(self.size, wanted)) for name in wanted if name not in remote}
        )
        if not remote:
            yield here
            return
        arrival = self._following(remote, advance) if keep else self._passing(remote, advance, is_shared)
        with arrival:
            self._arrival = arrival
            try:
                yield {**arrival.starts(), **here}
            finally:
                self._arrival = None

    def versions(self) -> Mapping[str, Any]:
        """What the answers with parts of files have called their versions, and which files have been compared."""
        return self._versions.as_json()

    def stop_arriving(self, error: BaseException) -> None:
        """Ends what is under way, and whoever waits for it, with an error."""
        if self._arrival is not None:
            self._arrival.stop(error)

    def close(self) -> None:
        """Closes what has been opened."""
        self._local.close()

    def _remote(self, wanted: Wanted) -> Wanted:
        return {name: stretches for name, stretches in wanted.items() if not self.is_here(name)}

    def _following(self, wanted: Wanted, advance: Advance) -> Following:
        files = [self._followed(name, advance) for name in wanted]
        is_in_xet = self._metadata(next(iter(wanted))).xet_file_data is not None
        return Following(files, _DOWNLOADS_OF_XET if is_in_xet else _DOWNLOADS, self._check, self.name)

    def _followed(self, name: str, advance: Advance) -> FollowedFile:
        size = self.size(name)

        def download(look: Callable[[], None]) -> Path:
            def arrived(nbytes: int) -> None:
                look()
                advance(nbytes)

            count = DownloadCount(size, arrived)
            with self._explained():
                path = self._download(name, self._commit, count)
            count.reach(size)
            logger.debug("downloaded %s", path)
            return path

        return FollowedFile(name, size, download, lambda: partial_download(self._snapshot, self._metadata(name)))

    def _check(self, name: str, path: Path, sha256: str) -> None:
        """Makes sure that a downloaded file is the one that is meant, and was when it was read."""
        expected = sha256_of_download(path)
        with path.open("rb") as file:
            known, size = self._answers.starts.get(name, (b"", path.stat().st_size))
            is_planned = file.read(len(known)) == known and path.stat().st_size == size
            if is_planned and expected in (None, sha256):
                return
            file.seek(0)
            if is_planned and hashlib.file_digest(file, "sha256").hexdigest() == expected:
                raise NotAsReadError(
                    f"{self.name}: {name} was read while it was being written otherwise than in order; it is complete "
                    "now: call again"
                )
        # Else the next call would take it for the file that it is not.
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise CorruptSourceError(
            f"{self.name}: what was downloaded as {name} is not the file that the hub speaks of, and has been "
            "removed again; call again, and see what is between here and the hub"
        )

    def _passing(self, wanted: Wanted, advance: Advance, is_shared: bool) -> Passing:
        with ThreadPoolExecutor(_REQUESTS, thread_name_prefix="lazyload") as pool:
            told = list(pool.map(self._metadata, wanted))
        files = [
            PassingFile(name, self.size(name), stretches, sha256_of_file(metadata), is_shared)
            for (name, stretches), metadata in zip(wanted.items(), told, strict=True)
        ]
        passing = Passing(self._fetch, files, self.name, advance)
        self._versions.note_compared(passing.compared)
        return passing

    def _fetch(self, name: str, at: Stretch, look: Callable[[], None]) -> bytes | bytearray:
        content, size, version = self._range(name, *at, look, from_where_it_lies=True)
        with self._lock:
            self._versions.note(name, *version)
        if size != self.size(name) or len(content) != at.nbytes:
            raise CorruptSourceError(f"{self.name}: {name} has {size} bytes now, and had {self.size(name)}; call again")
        return content

    def _metadata(self, name: str) -> HfFileMetadata:
        """What the hub says of a file; asked once, and again when where it lies has been forgotten."""
        with self._lock:
            if name in self._answers.metadata:
                return self._answers.metadata[name]
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        with self._explained():
            told = patiently(
                lambda: get_hf_file_metadata(self._url(name), token=self._reference.token, timeout=timeout)
            )
        with self._lock:
            return self._answers.metadata.setdefault(name, told)

    def _url(self, name: str) -> str:
        return hf_hub_url(self.name, _path(self._reference, name), revision=self._commit)

    def _download(self, name: str, revision: str | None, count: DownloadCount | None = None) -> Path:
        path, token = _path(self._reference, name), self._reference.token

        def download(local_files_only: bool) -> Path:
            with counted(count) as options:
                return Path(
                    hf_hub_download(
                        self.name, path, revision=revision, token=token, local_files_only=local_files_only, **options
                    )
                )

        try:
            return patiently(lambda: download(self._offline), most_bytes(name))
        except ImpatientError as error:
            # As `huggingface_hub` does where it is out of reach.
            with suppress(hub_errors.LocalEntryNotFoundError):
                return download(local_files_only=True)
            raise self._impatient(error) from None

    def _impatient(self, error: ImpatientError) -> SourceNotFoundError:
        return SourceNotFoundError(
            f"the hub ({endpoint()}) {error} for {self.name}; call again later, or log in (`hf auth login`), which "
            "allows more requests"
        )

    def _start(self, name: str) -> tuple[bytes | bytearray, int]:
        """The first bytes of a file, and its size."""
        with self._lock:
            if name in self._answers.starts:
                return self._answers.starts[name]
        content, size, _ = self._range(name, 0, _FIRST_BYTES)
        with self._lock:
            return self._answers.starts.setdefault(name, (content, size))

    def _range(
        self,
        name: str,
        start: int,
        stop: int,
        look: Callable[[], None] = lambda: None,
        *,
        from_where_it_lies: bool = False,
    ) -> tuple[bytes | bytearray, int, tuple[str, str | None]]:
        """A range of a file, the file's size, and a host with what it calls the version; what `look` raises ends it.

        The hub counts the requests for files; `from_where_it_lies` asks it once, and then where it says that it is.
        """
        if self._offline:
            raise MissingFileError(
                f"{self.name}: {name} is not in the hub's cache ({constants.HF_HUB_CACHE}), and the hub must not be "
                "asked (local_files_only or HF_HUB_OFFLINE)"
            )

        def ask() -> tuple[Answer, str]:
            url = self._metadata(name).location if from_where_it_lies else self._url(name)
            is_elsewhere = urlsplit(url).netloc != urlsplit(self._url(name)).netloc
            # An address elsewhere is signed, and a token is for the hub alone.
            headers = build_hf_headers(token=False if is_elsewhere else self._reference.token)
            try:
                answer = get_range(url, headers, constants.HF_HUB_DOWNLOAD_TIMEOUT, start, stop, look)
            except HTTP_ERRORS as error:
                raise PassingError(explanation(error, self._reference, self._offline), {}) from None
            told = SourceNotFoundError(f"{without_secrets(url)} answers with {answer.status}; try again later")
            if is_elsewhere and answer.status in _EXPIRED:
                with self._lock:
                    self._answers.metadata.pop(name, None)
                raise PassingError(told, answer.headers)
            if answer.status in BUSY:
                raise PassingError(told, answer.headers)
            if answer.size is not None and len(answer.content) < min(stop, answer.size) - start:
                raise PassingError(CorruptSourceError(f"{without_secrets(url)} ends too early; try again later"), {})
            return answer, urlsplit(url).netloc

        with self._explained():
            answer, host = patiently(ask)
        if answer.size is not None:
            return answer.content, answer.size, (host, answer.headers.get("ETag"))
        if answer.status == 404:
            raise self._missing(name)
        if answer.status in (401, 403):
            raise denied(self.name, answer.status)
        what = "with another range than was asked for" if answer.status in (200, 206) else f"with {answer.status}"
        raise SourceNotFoundError(
            f"{without_secrets(self._url(name))} answers {what}; try again later, and see what is between here and the "
            "hub"
        )

    def _missing(self, name: str) -> MissingFileError:
        return MissingFileError(f"{self.name} has no file {name} at {self._commit[:8]}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with explained(self._reference, self._offline):
            try:
                yield
            except ImpatientError as error:
                raise self._impatient(error) from None


def current_commit(reference: ModelReference, file: str = CONFIG) -> str:
    """The commit that a revision is at now; one request, for a file of it, not repeated where it fails.

    Raises:
        SourceNotFoundError: The hub has no such model or revision, or is out of reach.
        AccessDeniedError: It may not be read.
    """
    model = reference.name
    if constants.HF_HUB_OFFLINE:
        raise SourceNotFoundError(f"{model}: the hub must not be asked (HF_HUB_OFFLINE)")
    with explained(reference, offline=False):
        url = hf_hub_url(model, _path(reference, file), revision=reference.revision)
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        commit = get_hf_file_metadata(url, token=reference.token, timeout=timeout).commit_hash
    if commit is None:
        raise SourceNotFoundError(f"{endpoint()} does not say which commit of {model} it has; is it a hub?")
    return commit


def _path(reference: ModelReference, name: str) -> str:
    """The path in its repository of a checkpoint's file."""
    return f"{reference.subfolder}/{name}" if reference.subfolder else name
