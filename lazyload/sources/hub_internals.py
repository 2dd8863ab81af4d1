"""What is relied on of huggingface_hub beyond what it documents, as it is in 0.34 to 2.4.

* A downloaded file lies at `<cache>/models--<org>--<name>/snapshots/<commit>/<file>`.
* `try_to_load_from_cache` answers with something that is neither text nor None where a commit is known not to have a
  file.
* What its HTTP library raises is an `OSError` (requests) or an `errors.HTTPError` (httpx and httpx2).
"""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HTTPError

HTTP_ERRORS: tuple[type[Exception], ...] = (OSError, HTTPError)
"""The bases of what the HTTP library raises."""


def commit_of_file(path: Path, depth: int = 0) -> str:
    """The commit that a file, so many folders below the top of a repository, was downloaded from."""
    return path.parents[depth].name


def is_known_missing(model: str, name: str, commit: str) -> bool:
    """Whether the hub has said before that there is no such file at a commit."""
    return not isinstance(try_to_load_from_cache(model, name, revision=commit), str | None)
