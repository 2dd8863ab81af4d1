"""Removing things from a root, each under its key's lock, unless somebody uses it or has used it meanwhile."""

import contextlib
from collections.abc import Callable, Sequence

from lazyload.bucket.path import Folder
from lazyload.cache.key import is_digest
from lazyload.cache.removal import Removal
from lazyload.cache.root import Root
from lazyload.errors import LockTimeoutError

IsStillRight = Callable[[Removal], bool]
"""Whether a thing is still to be removed; asked under the lock."""


def carry_out(
    root: Root, removals: Sequence[Removal], is_still_right: IsStillRight, *, force: bool = False
) -> tuple[list[Removal], list[tuple[Removal, str]]]:
    """Removes what can be removed; says what was, and what was kept, and why."""
    removed: list[Removal] = []
    kept: list[tuple[Removal, str]] = []
    for removal in removals:
        reason = carry_out_one(root, removal, is_still_right, force)
        if reason is None:
            removed.append(removal)
        else:
            kept.append((removal, reason))
    return removed, kept


def carry_out_one(root: Root, removal: Removal, is_still_right: IsStillRight, force: bool) -> str | None:
    """Removes one thing; why it was kept, if it was."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(root.lock(entry_folder(removal.path).name, 0.0))
        except LockTimeoutError as error:
            if not force:
                return str(error)
        try:
            if not is_still_right(removal):
                return "it has been used or replaced meanwhile"
            return root.remove(removal.path, force=force)
        except OSError as error:
            return f"it cannot be removed: {error.strerror or error}"


def entry_folder(path: Folder) -> Folder:
    """The entry's folder that a path is, or is in."""
    return path if is_digest(path.name) else path.parent
