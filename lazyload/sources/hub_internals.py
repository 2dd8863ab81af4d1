"""What is relied on of huggingface_hub beyond what it documents, as it is in 0.34 to 2.4.

* A downloaded file lies at `<cache>/models--<org>--<name>/snapshots/<commit>/<file>`.
* `try_to_load_from_cache` answers with something that is neither text nor None where a commit is known not to have a
  file.
* A downloaded file of weights is a link to one that is named by its SHA-256.
* `get_session` gives a session of requests, or a client of httpx or httpx2, whose streams differ.
* What its HTTP library raises is an `OSError` (requests) or an `errors.HTTPError` (httpx and httpx2).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, get_session

HTTP_ERRORS: tuple[type[Exception], ...] = (OSError, HTTPError)
"""The bases of what the HTTP library raises."""


def commit_of_file(path: Path, depth: int = 0) -> str:
    """The commit that a file, so many folders below the top of a repository, was downloaded from."""
    return path.parents[depth].name


def is_known_missing(model: str, name: str, commit: str) -> bool:
    """Whether the hub has said before that there is no such file at a commit."""
    return not isinstance(try_to_load_from_cache(model, name, revision=commit), str | None)


class Answer(NamedTuple):
    """What a server says to a request for a range.

    Attributes:
        status: The status.
        headers: The headers; names in any case.
        content: The bytes of the range, as far as there are any.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


def get_range(url: str, headers: Mapping[str, str], timeout: float, start: int, stop: int) -> Answer:
    """Asks for a range, and reads no more than it, also from a server that sends the whole file."""
    wanted = {**headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with _streamed(url, wanted, timeout) as (response, pieces):
        skipped = start if response.status_code == 200 else 0
        content = bytearray()
        for piece in pieces:
            content += piece[skipped:]
            skipped = max(0, skipped - len(piece))
            if len(content) >= stop - start:
                break
        return Answer(response.status_code, response.headers, bytes(content[: stop - start]))


@contextmanager
def _streamed(url: str, headers: Mapping[str, str], timeout: float) -> Iterator[tuple[Any, Iterator[bytes]]]:
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=timeout) as response:
            yield response, response.iter_bytes()
    else:
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response, response.iter_content(1 << 16)


def sha256_of_download(path: Path) -> str | None:
    """The SHA-256 that the hub named for a downloaded file; None where it named another kind of version."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{64}", name) else None


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Keeps downloads from showing bars while the body runs, unless they are wanted."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
