"""What a damaged checkpoint makes others raise, as an error that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lazyload.bucket.path import Folder
from lazyload.errors import CacheError, LazyLoadError

_NO_ANSWER = "retry attempts failed"
"""What TensorStore says of a bucket that it has asked in vain."""


@contextmanager
def explained(folder: Folder, path: str) -> Iterator[None]:
    """Turns what reading an array of a checkpoint raises into an error that names both."""
    try:
        yield
    except LazyLoadError:
        raise
    # TensorStore's errors are ValueErrors, Orbax's bare Exceptions.
    except Exception as error:
        said = said_by(error)
        advice = (
            "call again later, and see what is between here and the store"
            if _NO_ANSWER in said
            else "look at it with `lazyload cache verify`, and call again with force_convert=True"
        )
        raise CacheError(f"{path} cannot be read from {folder}: {said}; {advice}") from error


def said_by(error: BaseException) -> str:
    """What is wrong by the words of TensorStore or others: the end of a line, without what they note beside it."""
    return re.sub(r" \[\w+='.*", "", str(error).partition("\n")[0])[-300:]
