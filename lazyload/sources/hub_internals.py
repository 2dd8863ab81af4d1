"""What is relied on of huggingface_hub beyond what it documents, as it is in 0.34 to 2.4.

* A downloaded file lies at `<cache>/models--<org>--<name>/snapshots/<commit>/<file>`.
* `try_to_load_from_cache` answers with something that is neither text nor None where a commit is known not to have a
  file.
* A downloaded file of weights is a link to one that is named by its SHA-256; from 2.4 on that may be a link, too, to
  one that is named by its Xet hash.
* While it is downloaded over HTTPS, it grows at `<cache>/models--<org>--<name>/blobs/<sha256>.incomplete`, in 2.4
  with something of the process's own before the last dot; with Xet, where `is_xet_available`, it grows in any order.
* `get_session` gives a session of requests, or a client of httpx or httpx2, whose streams differ.
* What its HTTP library raises is an `OSError` (requests) or an `errors.HTTPError` (httpx and httpx2).
* What hf_xet raises is a `RuntimeError`, or an `OSError` of its own.
* From 1.0 on it repeats requests by itself, for minutes, and sleeps for as long as a server asks it to; its client
  then has `event_hooks`, which see every request and every answer.
* Up to 1.1, `file_download` makes the bars of downloads with `_get_progress_bar_context(total=, initial=, ...)`; later
  `hf_hub_download` takes a `tqdm_class`, and from 2.0 on makes two bars a file, unless that has `update_transfer`.
* Its loggers `file_download` and `utils._http` warn of requests that fail, with their addresses.
"""

import inspect
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, file_download, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from huggingface_hub.file_download import HfFileMetadata, is_xet_available
from huggingface_hub.utils import get_session
from tqdm.std import tqdm

from lazyload.errors import CorruptSourceError
from lazyload.progress import Advance
from lazyload.sources.secrets import without_secrets

HTTP_ERRORS: tuple[type[Exception], ...] = (OSError, HTTPError)
"""The bases of what the HTTP library raises."""


def commit_of_file(path: Path, depth: int = 0) -> str:
    """The commit that a file, so many folders below the top of a repository, was downloaded from."""
    return path.parents[depth].name


def snapshot_folder(model: str, commit: str) -> Path:
    """Where the files of a model at a commit lie once they have been downloaded."""
    name = file_download.repo_folder_name(repo_id=model, repo_type="model")
    return Path(constants.HF_HUB_CACHE, name, "snapshots", commit)


def is_known_missing(model: str, name: str, commit: str) -> bool:
    """Whether the hub has said before that there is no such file at a commit."""
    return not isinstance(try_to_load_from_cache(model, name, revision=commit), str | None)


class ImpatientError(Exception):
    """A server asks for more patience than it is given: a clause that goes on after its name."""


class _Bounds(NamedTuple):
    """What `huggingface_hub` may do by itself."""

    wait: float
    until: float
    nbytes: float


class _Local(threading.local):
    """What holds for this thread."""

    bounds: _Bounds | None = None
    bar: "type[tqdm] | None" = None


_local = _Local()


@contextmanager
def bounded(*, wait: float, seconds: float, nbytes: float) -> Iterator[None]:
    """Bounds what `huggingface_hub` does by itself, in this thread, while the body runs.

    Args:
        wait: Seconds that a server may ask to wait for.
        seconds: How long a server is asked again about a file.
        nbytes: The size that a file may have.

    Raises:
        ImpatientError: The server asks for a longer wait, or has not answered well in that time.
        CorruptSourceError: A file is larger.
    """
    hooks = getattr(get_session(), "event_hooks", {})
    for kind, look in (("request", _look_at_request), ("response", _look_at_answer)):
        if look not in hooks.get(kind, [look]):
            hooks[kind].append(look)
    before, _local.bounds = _local.bounds, _Bounds(wait, time.monotonic() + seconds, nbytes)
    try:
        yield
    finally:
        _local.bounds = before


def _look_at_request(request: Any) -> None:
    if _local.bounds is None or request.method != "HEAD":
        return
    if time.monotonic() > _local.bounds.until:
        raise ImpatientError("does not answer as it should when it is asked")
    limits = request.extensions["timeout"]
    limits.update({kind: min(limit or math.inf, constants.HF_HUB_ETAG_TIMEOUT) for kind, limit in limits.items()})


def _look_at_answer(response: Any) -> None:
    if _local.bounds is None:
        return
    if response.status_code >= 400:
        asked = seconds_to_wait(response.headers)
        if asked > _local.bounds.wait:
            raise ImpatientError(f"asks to wait {asked:.0f} s before it is asked again")
        return
    told = [response.headers.get(name, "") for name in ("X-Linked-Size", "Content-Length")]
    nbytes = max((int(number) for number in told if number.isdecimal()), default=0)
    if nbytes > _local.bounds.nbytes:
        where = without_secrets(str(response.request.url))
        raise CorruptSourceError(f"{where} has {nbytes} bytes, more than the {_local.bounds.nbytes} that it can have")


def seconds_to_wait(headers: Mapping[str, str]) -> float:
    """How long a server asks to wait before it is asked again; 0 where it does not say, or names a date."""
    asked = headers.get("Retry-After", "")
    return float(asked) if re.fullmatch(r"\d+(\.\d+)?", asked) else 0.0


def _conceal(record: logging.LogRecord) -> bool:
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


for _name in ("huggingface_hub.file_download", "huggingface_hub.utils._http"):
    logging.getLogger(_name).addFilter(_conceal)


def is_from_xet(error: Exception) -> bool:
    """Whether it is hf_xet that raised it, which downloads most weights."""
    return type(error) is RuntimeError or type(error).__module__ == "hf_xet"


class Answer(NamedTuple):
    """What a server says to a request for a range.

    Attributes:
        status: The status.
        headers: The headers; names in any case.
        content: The bytes of the range, as far as there are any.
        start: Where the range that was asked for begins.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes | bytearray
    start: int

    @property
    def size(self) -> int | None:
        """The size of the file; None where this is no answer to what was asked."""
        if self.headers.get("Content-Encoding", "identity") != "identity":
            return None
        forms = {
            200: ("Content-Length", r"(\d+)"),
            206: ("Content-Range", rf"bytes {self.start}-\d+/(\d+)"),
            416: ("Content-Range", r"bytes \*/(\d+)"),
        }
        name, form = forms.get(self.status, ("", "()no answer"))
        told = re.fullmatch(form, self.headers.get(name, ""))
        return int(told[1]) if told else None


def get_range(
    url: str,
    headers: Mapping[str, str],
    timeout: float,
    start: int,
    stop: int,
    look: Callable[[], None] = lambda: None,
) -> Answer:
    """Asks for a range, and reads no more than it, also from a server that sends the whole file.

    `look` is called again and again; what it raises ends the request.
    """
    wanted = {**headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with _streamed(url, wanted, timeout) as (response, pieces):
        skipped = start if response.status_code == 200 else 0
        content, done = bytearray(stop - start), 0
        for piece in pieces:
            look()
            part = piece[skipped : skipped + len(content) - done]
            content[done : done + len(part)] = part
            done += len(part)
            skipped = max(0, skipped - len(piece))
            if done == len(content):
                break
        del content[done:]
        is_content = response.status_code in (200, 206)
        return Answer(response.status_code, response.headers, content if is_content else b"", start)


@contextmanager
def _streamed(url: str, headers: Mapping[str, str], timeout: float) -> Iterator[tuple[Any, Iterator[bytes]]]:
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=timeout) as response:
            yield response, response.iter_bytes()
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response, response.iter_content(1 << 16)


def sha256_of_file(metadata: HfFileMetadata) -> str | None:
    """The SHA-256 that the hub names for a file; None where it names another kind of version."""
    return metadata.etag if re.fullmatch("[0-9a-f]{64}", metadata.etag or "") else None


def partial_download(snapshot: Path, metadata: HfFileMetadata) -> Path | None:
    """Where a file grows while `hf_hub_download` writes it from its first byte to its last one.

    Args:
        snapshot: The folder `snapshots/<commit>` that it belongs to.
        metadata: What the hub says of the file.

    Returns:
        None where it is not there, or is not written in order: Xet and hf_transfer write several pieces at once.
    """
    is_in_order = metadata.xet_file_data is None or not is_xet_available()
    if not is_in_order or getattr(constants, "HF_HUB_ENABLE_HF_TRANSFER", False):
        return None
    found = (snapshot.parent.parent / "blobs").glob(f"{metadata.etag}*.incomplete")
    return max(found, key=lambda path: path.stat().st_size, default=None)


def sha256_of_download(path: Path) -> str | None:
    """The SHA-256 that the hub named for a downloaded file; None where it named another kind of version."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


class DownloadCount:
    """Counts the bytes of one file that have arrived, each of them once, however often a download begins anew.

    Attributes:
        size: The size of the file; what arrives beyond it does not count.
    """

    def __init__(self, size: int, advance: Advance):
        """`advance` is called with the number of bytes that are new."""
        self.size = size
        self._advance = advance
        self._reached = 0
        self._lock = threading.Lock()

    def reach(self, position: float) -> None:
        """Counts what lies before a position of the file."""
        with self._lock:
            more = min(int(position), self.size) - self._reached
            self._reached += max(more, 0)
        if more > 0:
            self._advance(more)


@contextmanager
def counted(count: DownloadCount | None) -> Iterator[Mapping[str, Any]]:
    """Keeps a download of this thread from showing a bar, and counts its bytes, while the body runs.

    Args:
        count: Counts them; None where nobody asks.

    Yields:
        What `hf_hub_download` is to be given for that.
    """
    bar = _bar_for(count or DownloadCount(0, lambda nbytes: None))
    if _TAKES_A_BAR:
        yield {"tqdm_class": bar}
        return
    before, _local.bar = _local.bar, bar
    try:
        yield {}
    finally:
        _local.bar = before


def _bar_for(count: DownloadCount) -> "type[tqdm]":
    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        """Stands for the bar of a download, and shows nothing."""

        monitor_interval = 0

        def __init__(self, *_: Any, initial: float = 0, **options: Any):
            super().__init__(disable=True)
            self._position = initial
            count.reach(initial)

        def update(self, n: float | None = 1) -> None:
            self._position += n or 0
            count.reach(self._position)

        def update_transfer(self, n: float) -> None:
            """What has passed the network is compressed, and in other pieces than the file."""

        def set_transfer_postfix_str(self, *_: Any, **options: Any) -> None:
            """Nor is its rate shown."""

    Bar.set_lock(threading.RLock())
    return Bar


_TAKES_A_BAR = "tqdm_class" in inspect.signature(hf_hub_download).parameters
if not _TAKES_A_BAR:
    _get_bar = file_download._get_progress_bar_context

    def _get_own_bar(**options: Any) -> Any:
        return _local.bar(**options) if _local.bar else _get_bar(**options)

    file_download._get_progress_bar_context = _get_own_bar
