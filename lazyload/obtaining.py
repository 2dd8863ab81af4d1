"""The entry that a request asks for: found in the cache, or converted under a lock; used while nobody can remove it.

What a folder contains is known only once all of it has been read. Where the cache may have an entry made of it, that
comes first, because the key needs it. Where it cannot have one, the folder is converted meanwhile, under a key that
says which files these are rather than what they contain, and the entry moves to its own key in the end.
"""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from lazyload.bucket.path import Folder
from lazyload.cache.conversions import in_progress
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key
from lazyload.errors import CacheError, EntryRemovedError
from lazyload.layouts.conversion import Conversion
from lazyload.layouts.source import Box
from lazyload.progress import CallProgress, Noted
from lazyload.report import Stopwatch
from lazyload.request import Request
from lazyload.sources.files import NotAsReadError
from lazyload.sources.remembered import RememberedSource
from lazyload.sources.source import Source

if TYPE_CHECKING:
    import numpy as np

    from lazyload.checkpoint.sharing import Share, Written

Used = TypeVar("Used")
Used_co = TypeVar("Used_co", covariant=True)

logger = logging.getLogger("lazyload")

_TRIES = 3
"""How often a conversion is begun where what arrives is not what was planned: shared, alone, and as is known then."""


class Use(Protocol[Used_co]):
    """What a call does with its entry."""

    def begin(self, request: Request, conversion: Conversion) -> None:
        """Is told, by the call that converts, what is about to be converted."""

    def take(self, path: str, box: Box, values: "np.ndarray") -> None:
        """Is given a box of an array while it is converted; see `lazyload.checkpoint.write.Deliver`."""

    def of(self, entry: Entry) -> Used_co:
        """Uses the entry."""


@dataclass(frozen=True)
class Obtained(Generic[Used]):
    """What a call ends with.

    Attributes:
        used: What it has made of its entry.
        entry: The entry.
        reasons: Why this call converted it; None if it did not.
    """

    used: Used
    entry: Entry
    reasons: tuple[str, ...] | None


@dataclass(frozen=True)
class Manner:
    """How a call goes about it.

    Attributes:
        force: Whether to convert again although the entry is there.
        keep_source: Whether what is downloaded from the hub stays in the hub's cache.
        lock_timeout: Seconds to wait at most for another process.
        progress: The call's progress.
        stopwatch: What measures its stages.
        shared: Asked for this process's share in a conversion that is about to begin, if others take part in it.
    """

    force: bool
    keep_source: bool
    lock_timeout: float | None
    progress: CallProgress
    stopwatch: Stopwatch
    shared: "Callable[[Request], Sharing | None]" = field(default=lambda request: None)


@dataclass(frozen=True)
class Sharing:
    """A conversion that several processes share, as the one sees it that publishes what they write.

    Attributes:
        count: How many they are; this one has the first share.
        begin: Told the data folder, once others may write into it, and what the source has been answered.
        gather: Waits for what all others have written.
    """

    count: int
    begin: Callable[[Folder, Mapping[str, Any]], None]
    gather: "Callable[[], list[Written]]"


def obtain(request: Request, use: Use[Used], manner: Manner) -> Obtained[Used]:
    """Uses the entry of a request, converted if need be.

    An entry that is there is used without a lock, so that others may remove it until its lease begins; what is lost
    then, or damaged, is looked for and converted under the lock.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`; the cache is left as it was.
    """
    planned = None
    if request.arguments.strict or not request.source.is_identified:
        # An entry does not tell whether tensors were left aside; and weights need not be read to tell which they are
        # where they cannot be converted.
        planned = _planned(request, manner.stopwatch)
    found = None
    if manner.force or request.may_be_cached:
        with manner.stopwatch.stage("open"):
            found = request.cache.find(request.key, request.forms, request.source.name)
        logger.debug("%s: key %s is %s", request.source.name, request.key.digest, found.folder if found else "new")
    if found and not manner.force:
        found = _brought_here(found, request, manner)
        try:
            with found.in_use():
                return Obtained(use.of(found), found, None)
        except CacheError as error:
            if not found.is_lost(error):
                raise
            logger.warning("converting again: %s", error)
    reasons = ("asked to convert again",) if manner.force else tuple(request.reasons())
    logger.debug("%s: to be converted: %s", request.source.name, "; ".join(reasons))
    planned = planned or _planned(request, manner.stopwatch)
    request = planned.request
    with contextlib.ExitStack() as lease:
        with contextlib.ExitStack() as locks:
            with manner.stopwatch.stage("wait"):
                keys = _locked(request, manner, locks)
                published = request.cache.find(keys[-1], request.forms, request.source.name)
            if published and not (manner.force and published == found):
                published = _brought_here(published, request, manner)
                lease.enter_context(published.in_use())
                entry, converted_for = published, None
            else:
                entry = _converted_as_read(planned, keys, use, manner, lease)
                converted_for = reasons
        return Obtained(use.of(entry), entry, converted_for)


def _brought_here(entry: Entry, request: Request, manner: Manner) -> Entry:
    """The entry; copied from a bucket first where a disk is in front of it."""
    if not request.cache.copies(entry):
        return entry
    total = sum(file["size"] for file in entry.manifest.files.values())
    with manner.stopwatch.stage("fetch"), manner.progress.stage("fetch", total) as advance:
        return request.cache.brought_here(entry, advance, manner.lock_timeout)


def _locked(request: Request, manner: Manner, locks: contextlib.ExitStack) -> list[Key]:
    """Takes the locks that a conversion needs, and says of which keys: the last one is what the entry is called now.

    Whoever converts the same files waits for the first one, whether they know yet what these contain or not.
    """
    keys = []

    def take(key: Key) -> None:
        locks.enter_context(request.cache.lock(key, manner.lock_timeout, request.source.name))
        keys.append(key)

    if request.source.status:
        take(request.working_key)
    if manner.force or request.may_be_cached or request.source.is_identified:
        take(request.key)
    return keys


@dataclass(frozen=True)
class _Planned:
    """What is to be converted.

    Attributes:
        request: For what is stored.
        conversion: Its conversion.
    """

    request: Request
    conversion: Conversion

    @property
    def nbytes(self) -> int:
        """How much that makes."""
        return sum(lazy.nbytes for lazy in self.conversion.tensors.values())

    def share(self, index: int, count: int) -> "Share":
        """What one of several processes converts."""
        # It takes a while to import, and neither plans nor the cache's commands need it.
        from lazyload.checkpoint.write import shares

        request = self.request
        return shares(
            self.conversion.tensors,
            request.storage,
            count,
            scalars=request.target.scalars,
            in_bucket=not isinstance(request.cache.root, Path),
            stored_bytes=request.stored_bytes if request.source.is_far else None,
        )[index]


def _planned(request: Request, stopwatch: Stopwatch) -> _Planned:
    with stopwatch.stage("plan"):
        settled = request.settled()
        return _Planned(settled, settled.conversion())


def _converted_as_read(
    planned: _Planned, keys: Sequence[Key], use: Use[Any], manner: Manner, lease: contextlib.ExitStack
) -> Entry:
    """Converts, and again where something else arrives than was planned; see `_converted`."""
    for _ in range(_TRIES - 1):
        try:
            return _converted(planned, keys, use, manner, lease)
        except NotAsReadError as error:
            logger.warning("converting again: %s", error)
            planned = _planned(planned.request, manner.stopwatch)
    return _converted(planned, keys, use, manner, lease)


def _converted(
    planned: _Planned, keys: Sequence[Key], use: Use[Any], manner: Manner, lease: contextlib.ExitStack
) -> Entry:
    """Converts into a staging folder and publishes it, with a lease that begins before others see it.

    Args:
        planned: What is converted.
        keys: Those whose locks are held; the last one is what the entry is called meanwhile.
        use: What the call does with its entry.
        manner: How the call goes about it.
        lease: Where the lease ends.
    """
    request, nbytes = planned.request, planned.nbytes
    started, status = time.perf_counter(), request.source.status
    with (
        in_progress(request.cache.root, *keys) as noted,
        manner.stopwatch.switching("plan") as switch,
        request.cache.staging(keys[-1], request.source.name, nbytes) as staging,
        contextlib.ExitStack() as held,
    ):
        arrays = _write(planned, staging.path, use, manner, noted, switch)
        request.source.check_unchanged(status)
        if keys[-1] != request.key:
            held.enter_context(request.cache.lock(request.key, manner.lock_timeout, request.source.name))
            if published := request.cache.find(request.key, request.forms, request.source.name):
                # Somebody has converted a copy of the same files; unless it is gone by now.
                with contextlib.suppress(EntryRemovedError):
                    lease.enter_context(published.in_use())
                    return published
            staging.move_to(request.key)
        entry = staging.publish(
            arrays=arrays,
            nbytes=nbytes,
            item=request.target.item,
            source=request.origin,
            config=request.source.config,
            seconds=time.perf_counter() - started,
        )
        lease.enter_context(entry.in_use_by_writer())
        return entry


def _write(
    planned: _Planned, folder: Folder, use: Use[Any], manner: Manner, noted: Noted, switch: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Writes what is converted into a folder while the source arrives; others write their shares, if there are any."""
    # It takes a while to import, and neither plans nor the cache's commands need it.
    from lazyload.checkpoint.sharing import Others
    from lazyload.checkpoint.write import write

    request, conversion = planned.request, planned.conversion
    share = others = None
    if sharing := manner.shared(request):
        share = planned.share(0, sharing.count)
        others = Others(functools.partial(sharing.begin, folder, request.source.answers()), sharing.gather)
    else:
        # Who converts a share only cannot deliver.
        use.begin(request, conversion)
    nbytes = share.nbytes if share else planned.nbytes
    with (
        _identified_meanwhile(request.source),
        _arriving(planned, share, manner, noted, switch),
        manner.progress.stage("convert", nbytes, noted=noted) as advance,
    ):
        return write(
            folder,
            conversion.tensors,
            request.storage,
            metadata=request.target.metadata,
            scalars=request.target.scalars,
            item=request.target.item,
            advance=advance,
            deliver=use.take,
            give_up=request.source.stop_arriving,
            share=share,
            others=others,
        )


@contextlib.contextmanager
def _arriving(
    planned: _Planned, share: "Share | None", manner: Manner, noted: Noted, switch: Callable[[str], None]
) -> Iterator[None]:
    """Brings the weights from far away while the body reads them; that is a stage until all of them are there.

    Of what several processes share, none has whole files, and nothing is kept.
    """
    request, source, keep = planned.request, planned.request.source, manner.keep_source and share is None
    rows = None if share is None else request.rows_of_source(share.rows)
    if rows is None:
        tensors = request.of_source({name for lazy in planned.conversion.tensors.values() for name in lazy.sources})
    else:
        tensors = list(rows)
    total = source.nbytes_to_fetch(tensors, keep=keep, rows=rows)
    switch("fetch" if total else "convert")
    with manner.progress.stage("fetch", total, noted=noted) as advance:
        left, lock = total, threading.Lock()

        def count(nbytes: int) -> None:
            nonlocal left
            with lock:
                left -= nbytes
            if left <= 0:
                switch("convert")
            advance(nbytes)

        with source.arriving(tensors, count, keep=keep, rows=rows):
            yield


def take_part(
    request: Request, manner: Manner, folder: Folder, index: int, count: int, answers: Mapping[str, Any]
) -> "Written":
    """Converts a share of what another process has begun to convert, and will publish.

    Args:
        request: The same as the other process's.
        manner: How this call goes about it.
        folder: The other process's data folder.
        index: Which share.
        count: How many shares there are.
        answers: What the other process's source has been answered.

    Raises:
        LazyLoadError: One of the errors in `lazyload.errors`.
    """
    # It takes a while to import, and neither plans nor the cache's commands need it.
    from lazyload.checkpoint.write import write_share

    request.source.take_over(answers)
    planned = _planned(request, manner.stopwatch)
    request, share = planned.request, planned.share(index, count)
    status = request.source.status
    with (
        manner.stopwatch.switching("plan") as switch,
        _arriving(planned, share, manner, lambda advance: advance, switch),
        manner.progress.stage("convert", share.nbytes) as advance,
    ):
        written = write_share(
            folder,
            planned.conversion.tensors,
            request.storage,
            share,
            item=request.target.item,
            advance=advance,
            give_up=request.source.stop_arriving,
        )
    request.source.require_status(status)
    return written


@contextlib.contextmanager
def _identified_meanwhile(source: Source | RememberedSource) -> Iterator[None]:
    """Finds out what a source contains while the body runs; where that fails, for no longer than a few bytes."""
    has_failed = threading.Event()

    def advance(nbytes: int) -> None:
        if has_failed.is_set():
            raise InterruptedError

    with ThreadPoolExecutor(1, thread_name_prefix="lazyload") as pool:
        identity = pool.submit(source.identify, advance)
        try:
            yield
        except BaseException:
            has_failed.set()
            raise
        identity.result()
