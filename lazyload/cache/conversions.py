"""The conversions of this process, and whether a call that waits for one is what that one waits for.

A conversion goes on when its progress function returns. Where that function asks for the same checkpoint, its thread
tells. Where it waits for another thread that asks, nothing does: a thread knows neither who has started it nor who
waits for it. So a function that does not return while a call waits for its conversion is taken, after a while, for one
that waits for that call.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from lazyload.bucket.path import Folder
from lazyload.cache.key import Key
from lazyload.cache.lock import LOOK_SECONDS
from lazyload.errors import CacheError
from lazyload.progress import Advance, Noted

_LONGEST_REPORT_SECONDS = 5.0


@dataclass
class _Conversion:
    """A conversion that is in progress.

    Attributes:
        reporting: The threads that are in its progress function, or wait for their turn.
        reports: How often it has returned.
    """

    reporting: set[int] = field(default_factory=set)
    reports: int = 0


_conversions: dict[tuple[Folder, str], _Conversion] = {}


@contextlib.contextmanager
def in_progress(root: Folder, *keys: Key) -> Iterator[Noted]:
    """Has this process known to convert something while the body runs.

    Args:
        root: The cache's.
        keys: The keys whose locks are held for that.

    Yields:
        What makes a function that reports progress, from any thread, note that it is running.
    """
    conversion = _Conversion()
    places = [(root, key.digest) for key in keys]
    _conversions.update(dict.fromkeys(places, conversion))
    lock = threading.Lock()

    def noted(advance: Advance) -> Advance:
        def noting(nbytes: int) -> None:
            thread = threading.get_ident()
            conversion.reporting.add(thread)
            try:
                advance(nbytes)
            finally:
                with lock:
                    conversion.reporting.discard(thread)
                    conversion.reports += 1

        return noting

    try:
        yield noted
    finally:
        # Not what another thread does that holds the lock of the same key, too, because that lies.
        for place in places:
            if _conversions.get(place) is conversion:
                del _conversions[place]


class Watch:
    """Looks, as often as it is called, whether a conversion waits for the call that waits for it."""

    def __init__(self, root: Folder, key: Key, model: str):
        """`model` is what messages call it."""
        self._place = root, key.digest
        self._model = model
        self._reports = -1
        self._looks = 0

    def __call__(self) -> None:
        """Takes a look.

        Raises:
            CacheError: It does, or seems to.
        """
        conversion = _conversions.get(self._place)
        if conversion is None:
            return
        if threading.get_ident() in conversion.reporting:
            raise CacheError(
                f"{self._model} is being converted by the call whose progress this is; call again when it is done"
            )
        # Not by the clock, which goes on where the process is stopped.
        is_same = conversion.reports == self._reports and bool(conversion.reporting)
        self._looks = self._looks + 1 if is_same else 0
        self._reports = conversion.reports
        if self._looks * LOOK_SECONDS > _LONGEST_REPORT_SECONDS:
            raise CacheError(
                f"{self._model} is being converted by another thread of this process, whose progress function has not "
                f"returned for {_LONGEST_REPORT_SECONDS:.0f} s and seems to wait for this call; call again when it is "
                "done"
            )
