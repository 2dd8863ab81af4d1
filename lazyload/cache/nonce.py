"""Whether several processes see the same cache: one writes a file of a name that nobody knew, the others look for it.

<root>/.teams/<nonce>
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lazyload.bucket.path import Folder
from lazyload.cache.disk import make_folder, paths_in

_FOLDER = ".teams"
_LEFT_SECONDS = 3600.0


@contextlib.contextmanager
def written(root: Folder) -> Iterator[str | None]:
    """A name that can be looked for below a cache's root while the body runs; None where it cannot be written there."""
    nonce = os.urandom(16).hex()
    path = root / _FOLDER / nonce
    try:
        if isinstance(path, Path):
            make_folder(path.parent, Path(root))
        path.write_bytes(b"")
    except OSError:
        yield None
        return
    try:
        yield nonce
    finally:
        with contextlib.suppress(OSError):
            path.unlink() if isinstance(path, Path) else path.bucket.remove([path.key])


def is_visible(root: Folder, nonce: str | None) -> bool:
    """Whether a name that another process has written is below this root, too."""
    return nonce is not None and (root / _FOLDER / nonce).exists()


def abandoned(root: Path) -> list[Path]:
    """Names that processes have left on a disk which ended while others looked for them."""
    found = []
    for path in sorted(paths_in(root / _FOLDER, "*")):
        # One that is in use may be gone by now.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _LEFT_SECONDS:
                found.append(path)
    return found
