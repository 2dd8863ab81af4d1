"""Restoring: a call's entry becomes arrays on devices, read from the cache, or delivered while it is converted."""

import contextlib
import importlib
import os
import sys
import threading
from typing import NamedTuple

import jax
import numpy as np

from lazyload.cache.entry import Entry
from lazyload.checkpoint.delivery import Delivery
from lazyload.checkpoint.pathways import require_visible
from lazyload.checkpoint.read import read
from lazyload.layouts.conversion import Conversion
from lazyload.layouts.source import Box
from lazyload.options import DECODERS
from lazyload.placement import Placement
from lazyload.progress import CallProgress
from lazyload.report import Stopwatch
from lazyload.request import Request
from lazyload.storage import is_pathways
from lazyload.team.call import Call


class Restored(NamedTuple):
    """What has been restored.

    Attributes:
        request: The request for what is stored.
        arrays: By path.
    """

    request: Request
    arrays: dict[str, jax.Array]


class Restoring:
    """What `from_pretrained` does with its entry; see `lazyload.obtaining.Use`.

    Attributes:
        nbytes_read: Bytes of arrays that this process has read from the cache.
    """

    def __init__(
        self,
        request: Request,
        placement: Placement,
        verify: bool,
        progress: CallProgress,
        stopwatch: Stopwatch,
        call: Call,
    ):
        """Makes sure that the cache can be read.

        Args:
            request: The call's.
            placement: Where arrays go.
            verify: Whether what is restored is compared with its checksums.
            progress: The call's progress.
            stopwatch: What measures its stages.
            call: The processes that restore together.

        Raises:
            CacheError: Under Pathways, the workers cannot see the cache.
        """
        if is_pathways(os.environ):
            require_visible(request.cache.root)
        self.nbytes_read = 0
        self._request = request
        self._placement = placement
        self._verify = verify
        self._progress = progress
        self._stopwatch = stopwatch
        self._call = call
        self._lock = threading.Lock()
        self._delivery: Delivery | None = None

    def begin(self, request: Request, conversion: Conversion) -> None:
        """Prepares for chunks, unless what is restored is to be read again, or not by this process.

        What the model will be built with is imported meanwhile.
        """
        if request.arguments.layout in DECODERS:
            _import_meanwhile("lazyload.models.decoder")
        if not self._verify and not is_pathways(os.environ):
            self._delivery = Delivery(conversion.tensors, self._placement.of(request))

    def take(self, path: str, box: Box, values: np.ndarray) -> None:
        """Takes a box of an array."""
        if self._delivery:
            self._delivery.take(path, box, values)

    def of(self, entry: Entry) -> Restored:
        """The arrays of the entry.

        Raises:
            CacheError: It is damaged, or has been removed.
        """
        records = entry.manifest.arrays
        stored = self._request.as_stored(records)
        places = self._placement.of(stored)
        all_read = self._all_read()
        with self._stopwatch.stage("restore"), self._progress.stage("restore", entry.nbytes) as advance:
            if self._delivery:
                arrays = self._delivery.arrays()
                advance(entry.nbytes)
                return Restored(stored, arrays)
            if all_read:
                # Who is alone does without it.
                from lazyload.checkpoint.exchange import read_once

                arrays = read_once(
                    entry.path,
                    records,
                    places,
                    stored.storage,
                    advance=advance,
                    count=self._count,
                    together=self._call.do_together,
                )
                return Restored(stored, arrays)
            if self._verify:
                entry.require_undamaged_files()
            arrays = read(
                entry.path,
                records,
                places,
                stored.storage,
                verify=self._verify,
                advance=advance,
                count=self._count,
            )
            return Restored(stored, arrays)

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes_read += nbytes

    def _all_read(self) -> bool:
        """Whether several processes are about to read, so that they can share that."""
        if self._call.is_alone:
            return False
        reads = not (self._delivery or self._verify or is_pathways(os.environ))
        return self._call.all("read", reads)


def _import_meanwhile(name: str) -> None:
    """Imports a module in a thread: Flax alone takes longer than to read a small model.

    Beside a conversion, which waits for the source and computes outside Python. Beside mere reading it does not pay:
    who has read a few megabytes waits for the import to let Python go, and both take longer than one after the other.
    """

    def load() -> None:
        # What keeps it from being imported is told to who needs it.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    if name not in sys.modules:
        threading.Thread(target=load, name="lazyload-import").start()
