"""What the operating system says of the cache's disk, as an error that says what to do."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from lazyload.errors import CacheError, LazyLoadError


@contextlib.contextmanager
def explained(where: Path) -> Iterator[None]:
    """Turns every `OSError` of the body, which works at nothing but the cache, into a `CacheError`.

    Args:
        where: What the error is told of, where it does not say that itself.
    """
    try:
        yield
    except LazyLoadError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "make space (`lazyload cache ls`, `lazyload cache rm`)" if full else "check who may write there"
        if error.errno in (errno.EIO, errno.ESTALE):
            remedy = "check the disk"
        raise CacheError(
            f"{error.filename or where}: {error.strerror or error}; {remedy} or give another cache_dir (LAZYLOAD_CACHE)"
        ) from error
