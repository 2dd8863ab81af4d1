"""What a damaged checkpoint makes others raise, as an error that says what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from lazyload.bucket.path import Folder
from lazyload.errors import CacheError, LazyLoadError


@contextmanager
def explained(folder: Folder, path: str) -> Iterator[None]:
    """Turns what reading an array of a checkpoint raises into an error that names both."""
    try:
        yield
    except LazyLoadError:
        raise
    # TensorStore's errors are ValueErrors, Orbax's bare Exceptions.
    except Exception as error:
        raise CacheError(
            f"{path} cannot be read from {folder}: {str(error).splitlines()[0][:300]}; look at it with "
            "`lazyload cache verify`, and call again with force_convert=True"
        ) from error
