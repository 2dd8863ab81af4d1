"""How patiently the hub is asked: again where it is busy or the connection breaks, within bounds."""

import math
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from huggingface_hub import errors as hub_errors

from lazyload.sources.hub_errors import HUB_ERRORS, response_of
from lazyload.sources.hub_internals import HTTP_ERRORS, ImpatientError, bounded, is_from_xet, seconds_to_wait

BUSY = (429, 500, 502, 503, 504)
_WAITS = (0.5, 1.0, 2.0)
"""Seconds before a request is repeated that the hub was too busy for."""

_LONGEST_WAIT = 10.0
"""Seconds that the hub may ask to wait for."""

_PATIENCE = 15.0
"""Seconds after which a request is not repeated any more."""

Answered = TypeVar("Answered")


class PassingError(Exception):
    """What may be over when a request is made again.

    Attributes:
        error: What to raise if it is not.
        headers: Those of the answer.
    """

    def __init__(self, error: Exception, headers: Mapping[str, str]):
        super().__init__(error)
        self.error = error
        self.headers = headers


def patiently(request: Callable[[], Answered], most: float = math.inf) -> Answered:
    """Makes a request, and makes it again where the hub is busy or the connection breaks; within bounds.

    Raises:
        ImpatientError: The hub asks for more patience than it is given.
    """
    began = time.monotonic()
    for wait in (*_WAITS, None):
        try:
            with bounded(wait=_LONGEST_WAIT, seconds=_PATIENCE, nbytes=most):
                return request()
        except PassingError as error:
            passing = error
        except HUB_ERRORS as error:
            if not _may_pass(error):
                raise
            response = response_of(error)
            passing = PassingError(error, {} if response is None else response.headers)
        asked = seconds_to_wait(passing.headers)
        if asked > _LONGEST_WAIT:
            raise ImpatientError(f"asks to wait {asked:.0f} s before it is asked again")
        if wait is None or time.monotonic() - began > _PATIENCE:
            break
        time.sleep(max(wait, asked))
    raise passing.error


def _may_pass(error: Exception) -> bool:
    """Whether an error of `huggingface_hub` may be over when the request is made again."""
    response = response_of(error)
    if response is not None:
        return response.status_code in BUSY
    is_final = isinstance(error, hub_errors.EntryNotFoundError | hub_errors.OfflineModeIsEnabled) or is_from_xet(error)
    # What the disk refuses has a number.
    return isinstance(error, HTTP_ERRORS) and not is_final and getattr(error, "errno", None) is None
