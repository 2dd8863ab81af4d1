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
from contextlib import AbstractContextManager
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
            if not isinstance(error, EntryRemovedError) and not found.lost_files():
                raise
            logger.warning("converting again: %s", error)
    reasons = ("asked to convert again",) if manner.force else tuple(request.reasons())
    logger.debug("%s: to be converted: %s", request.source.name, "; ".join(reasons))
    request, conversion = planned or _planned(request, manner.stopwatch)
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
                try:
                    entry = _converted(request, conversion, keys, use, manner, lease)
                except NotAsReadError as error:
                    logger.warning("converting again: %s", error)
                    request, conversion = _planned(request, manner.stopwatch)
                    entry = _converted(request, conversion, keys, use, manner, lease)
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


def _planned(request: Request, stopwatch: Stopwatch) -> tuple[Request, Conversion]:
    """The request for what is stored, and its conversion."""
    with stopwatch.stage("plan"):
        settled = request.settled()
        return settled, settled.conversion()


def _converted(
    request: Request,
    conversion: Conversion,
    keys: Sequence[Key],
    use: Use[Any],
    manner: Manner,
    lease: contextlib.ExitStack,
) -> Entry:
    """Converts under the last of keys whose locks are held, while the source arrives."""
    sharing = manner.shared(request)
    share = None
    if sharing is None:
        # Who converts a share only cannot deliver.
        use.begin(request, conversion)
    else:
        share = _share(request, conversion, 0, sharing.count)
    with (
        in_progress(request.cache.root, *keys) as noted,
        manner.stopwatch.switching("fetch", "convert") as arrived,
    ):
        arriving = _arriving(request, conversion, manner, noted, arrived, share)
        return _convert(request, conversion, keys[-1], use, manner, noted, arriving, lease, sharing, share)


def _share(request: Request, conversion: Conversion, index: int, count: int) -> "Share":
    """What one of several processes converts."""
    # It takes a while to import, and neither plans nor the cache's commands need it.
    from lazyload.checkpoint.write import shares

    return shares(
        conversion.tensors,
        request.storage,
        count,
        scalars=request.target.scalars,
        in_bucket=not isinstance(request.cache.root, Path),
        is_far=request.source.is_far,
    )[index]


def _read_for(request: Request, conversion: Conversion, share: "Share | None") -> list[str]:
    """The source's tensors that are read for a conversion, or for a share of it; what is read twice, twice."""
    if share is not None:
        return request.of_source(share.sources(conversion.tensors))
    return request.of_source({name for lazy in conversion.tensors.values() for name in lazy.sources})


@contextlib.contextmanager
def _arriving(
    request: Request,
    conversion: Conversion,
    manner: Manner,
    noted: Noted,
    arrived: Callable[[], None],
    share: "Share | None",
) -> Iterator[None]:
    """Brings the weights from far away while the body reads them; `arrived` is called when all of them are there.

    Of what several processes share, none has whole files, and nothing is kept.
    """
    source = request.source
    tensors, keep = _read_for(request, conversion, share), manner.keep_source and share is None
    total = source.nbytes_to_fetch(tensors, keep=keep)
    if not total:
        arrived()
    with manner.progress.stage("fetch", total, noted=noted) as advance:
        left, lock = total, threading.Lock()

        def count(nbytes: int) -> None:
            nonlocal left
            with lock:
                left -= nbytes
            if left <= 0:
                arrived()
            advance(nbytes)

        with source.arriving(tensors, count, keep=keep):
            yield


def _convert(
    request: Request,
    conversion: Conversion,
    key: Key,
    use: Use[Any],
    manner: Manner,
    noted: Noted,
    arriving: AbstractContextManager[None],
    lease: contextlib.ExitStack,
    sharing: Sharing | None,
    share: "Share | None",
) -> Entry:
    """Streams the conversion into a staging folder and publishes it, with a lease that begins before others see it."""
    # It takes a while to import, and neither plans nor the cache's commands need it.
    from lazyload.checkpoint.sharing import Others
    from lazyload.checkpoint.write import write

    nbytes = sum(lazy.nbytes for lazy in conversion.tensors.values())
    started, status = time.perf_counter(), request.source.status
    with request.cache.staging(key, request.source.name, nbytes) as staging, contextlib.ExitStack() as held:
        others = None
        if sharing is not None:
            others = Others(functools.partial(sharing.begin, staging.path, request.source.answers()), sharing.gather)
        with (
            _identified_meanwhile(request.source),
            arriving,
            manner.progress.stage("convert", share.nbytes if share else nbytes, noted=noted) as advance,
        ):
            arrays = write(
                staging.path,
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
        request.source.check_unchanged(status)
        if key != request.key:
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
    request, conversion = _planned(request, manner.stopwatch)
    share = _share(request, conversion, index, count)
    status = request.source.status
    with (
        manner.stopwatch.switching("fetch", "convert") as arrived,
        _arriving(request, conversion, manner, lambda advance: advance, arrived, share),
        manner.progress.stage("convert", share.nbytes) as advance,
    ):
        written = write_share(
            folder,
            conversion.tensors,
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
