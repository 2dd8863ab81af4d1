"""Whether several processes see the same cache: one writes a file of a name that nobody knew, the others look for it.

<root>/.teams/<nonce>
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from lazyload.cache.disk import make_folder

_FOLDER = ".teams"


@contextlib.contextmanager
def written(root: Path) -> Iterator[str | None]:
    """A name that can be looked for below a cache's root while the body runs; None where it cannot be written there."""
    nonce = uuid.uuid4().hex
    path = root / _FOLDER / nonce
    try:
        make_folder(path.parent, root)
        path.touch()
    except OSError:
        yield None
        return
    try:
        yield nonce
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def is_visible(root: Path, nonce: str | None) -> bool:
    """Whether a name that another process has written is below this root, too."""
    return nonce is not None and os.path.exists(root / _FOLDER / nonce)
