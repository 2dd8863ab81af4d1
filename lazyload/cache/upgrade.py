"""What an upgrade says once: which entries this version does not read, and what becomes of them."""

import contextlib
import logging
import threading
from pathlib import Path

from lazyload.cache.cache import Cache
from lazyload.cache.disk import make_folder, share
from lazyload.cache.key import ENTRY_FORMAT
from lazyload.cache.manifest import FORMAT, OlderFormatError
from lazyload.display import text

logger = logging.getLogger("lazyload")

_MARK = f".told/{FORMAT}.{ENTRY_FORMAT}"
"""The file in a cache's root that says that it has been told; versions of the same formats say the same."""

_told: set[Path] = set()
"""The roots that this process has looked at."""

_lock = threading.Lock()


def tell_outdated(cache: Cache) -> None:
    """Logs once a cache, and once a process where it cannot be written to, what of it this version does not read.

    Where it has been told already, that costs a `stat`. What is only looked in, the roots before the last one of
    `$LAZYLOAD_CACHE`, is left to those who write there.
    """
    if not isinstance(cache.root, Path):
        # No version before this one wrote to buckets.
        return
    mark = cache.root / _MARK
    # A load that finds the disk failing says so by itself.
    with contextlib.suppress(OSError):
        with _lock:
            if cache.root in _told or mark.exists() or not any(cache.root.glob("models--*")):
                return
            _told.add(cache.root)
            if not _is_first(mark, cache.root):
                return
        if outdated := list(cache.outdated().values()):
            logger.warning("%s: %s", cache.root, _told_of(outdated))


def _is_first(mark: Path, root: Path) -> bool:
    """Leaves the mark; False where somebody else has just left it."""
    with contextlib.suppress(OSError):
        make_folder(mark.parent, root)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    share(mark, root)
    return True


def _told_of(outdated: list[OlderFormatError]) -> str:
    made_by = ", ".join(sorted({error.version for error in outdated}))
    amount = text.size(sum(error.nbytes for error in outdated))
    some = f"{len(outdated)} converted checkpoint{'s' * (len(outdated) > 1)}"
    are = "are" if len(outdated) > 1 else "is"
    return (
        f"{some} ({amount}) of lazyload {made_by} {are} not read by this version; each is converted again when it is "
        "asked for, and `lazyload cache prune` removes the old ones"
    )
