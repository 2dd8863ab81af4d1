"""What `huggingface_hub` raises, as errors that name the model and the remedy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from lazyload.errors import AccessDeniedError, CacheError, LazyLoadError, SourceNotFoundError
from lazyload.sources.hub_internals import HTTP_ERRORS, is_from_xet
from lazyload.sources.reference import ModelReference
from lazyload.sources.secrets import without_secrets

HUB_ERRORS: tuple[type[Exception], ...] = (*HTTP_ERRORS, ValueError, hub_errors.EntryNotFoundError, RuntimeError)
"""The bases of what `huggingface_hub` raises."""


@contextmanager
def explained(reference: ModelReference, offline: bool) -> Iterator[None]:
    """Turns what `huggingface_hub` raises into errors that name the model and the remedy."""
    try:
        yield
    except LazyLoadError:
        raise
    except HUB_ERRORS as error:
        raise explanation(error, reference, offline) from None


def explanation(error: Exception, reference: ModelReference, offline: bool) -> LazyLoadError:
    """What an error means for a model, and what to do about it."""
    model, revision = reference.name, reference.revision or "main"
    if isinstance(error, hub_errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        # Why the hub was not asked, or what it said.
        error = error.__cause__
    if is_from_xet(error):
        return SourceNotFoundError(
            f"{model} cannot be downloaded from where the hub stores it: {_first_line(error)}; try again later, or do "
            "without Xet (HF_HUB_DISABLE_XET=1)"
        )
    status = getattr(response_of(error), "status_code", None)
    match error:
        case hub_errors.HFValidationError():
            return SourceNotFoundError(f"{model!r} is neither a folder nor a model id of the hub: {error}")
        case hub_errors.GatedRepoError():
            return AccessDeniedError(
                f"{model} is gated: accept its conditions at {endpoint()}/{model}, then log in with "
                "`hf auth login` or give token="
            )
        case hub_errors.RevisionNotFoundError():
            return SourceNotFoundError(f"{model} has no revision {revision!r} on the hub; check its branches")
        case hub_errors.RepositoryNotFoundError():
            return SourceNotFoundError(
                f"{model} is neither a folder here nor a model that the hub ({endpoint()}) shows; check "
                "the name, or log in (`hf auth login`, token=) if it is private"
            )
        case hub_errors.LocalEntryNotFoundError() | hub_errors.OfflineModeIsEnabled():
            return unreachable(error, reference, offline)
        case hub_errors.EntryNotFoundError():
            url = without_secrets(str(getattr(response_of(error), "url", model)))
            return SourceNotFoundError(f"{model} lacks a file that was there before: {url}; call again")
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return CacheError(
                f"{constants.HF_HUB_CACHE}: the disk is full; make space (`hf cache ls`) or move it with HF_HUB_CACHE"
            )
        case PermissionError():
            return AccessDeniedError(
                f"{without_secrets(str(error))}; check who may write to the hub's cache, or move it with HF_HUB_CACHE"
            )
    return denied(model, status) if status in (401, 403) else unreachable(error, reference, offline)


def unreachable(error: Exception, reference: ModelReference, offline: bool) -> SourceNotFoundError:
    """That a model is not here, and why the hub does not help."""
    why = "must not be asked" if offline else f"({endpoint()}) cannot be reached"
    at = f" at {reference.revision}" if reference.revision else ""
    return SourceNotFoundError(
        f"{reference.name}{at} is not in the hub's cache ({constants.HF_HUB_CACHE}), and the hub {why}: "
        f"{_first_line(error)}"
    )


def denied(model: str, status: int) -> AccessDeniedError:
    """That the hub answers with 401 or 403."""
    return AccessDeniedError(
        f"the hub refuses {model} ({status}): the token may not read it, or is wrong; log in with `hf auth login`, or "
        "give token= (False for none)"
    )


def response_of(error: Exception) -> Any:
    """The server's answer that an error is about, or the error that led to it."""
    response = getattr(error, "response", None)
    return response if response is not None else getattr(error.__cause__, "response", None)


def endpoint() -> str:
    """The hub's address, as it may be shown."""
    return without_secrets(constants.ENDPOINT)


def _first_line(error: Exception) -> str:
    return without_secrets(str(error) or type(error).__name__).splitlines()[0][:200]
