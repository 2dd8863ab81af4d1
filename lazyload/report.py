"""What a load did: the record that `last_report` gives, and the stopwatch that fills it."""

import collections
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from lazyload.bucket.path import Folder
from lazyload.display import text
from lazyload.display.values import named
from lazyload.errors import NoReportError

if TYPE_CHECKING:
    from lazyload.display.html import Html
    from lazyload.display.picture import Picture

Entered = TypeVar("Entered")

_LAST = threading.local()
_OF_ANY_THREAD: "dict[str, LoadReport]" = {}


@dataclass(frozen=True)
class LoadReport:
    """What a thread's last load did.

    Attributes:
        model: The model's name.
        hit: Whether a converted checkpoint was there.
        key: Its key.
        path: The Orbax checkpoint that was restored.
        reasons: For a miss, why: sentences.
        seconds: Wall-clock seconds of each stage that took place, in order: `open`, `fetch`, `convert`, `restore`...
        bytes_read: Bytes of source weights that were read.
        bytes_written: Bytes of arrays that were written to the cache.
        bytes_restored: Bytes of arrays that were restored, each array once.
        bytes_from_cache: Bytes of arrays that this process read from the cache for that; not known under Pathways.
        bytes_kept: Bytes of them that this process's devices hold, each shard once.
        peak_bytes: The most memory that this process has had until then, devices that have their own not counted.
    """

    model: str
    hit: bool
    key: str
    path: Folder
    reasons: tuple[str, ...]
    seconds: Mapping[str, float]
    bytes_read: int
    bytes_written: int
    bytes_restored: int
    bytes_from_cache: int = 0
    bytes_kept: int = 0
    peak_bytes: int = field(default=0, compare=False)
    _arrays: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False, compare=False, kw_only=True)

    @property
    def total_seconds(self) -> float:
        """Wall-clock seconds of all stages."""
        return sum(self.seconds.values())

    def __repr__(self) -> str:
        outcome = f"{'hit' if self.hit else 'miss'} in {text.duration(self.total_seconds)}"
        return named(self, repr(self.model), outcome, key=self.key, path=str(self.path))

    def show(self) -> "Picture":
        """What took time, what was moved, and where the bytes go: by block, by layer, and by kind of array."""
        # What draws takes a while to import, and most reports are not shown.
        from lazyload.display import weights
        from lazyload.display.picture import Picture

        arrays = weights.of_records(self._arrays)
        return Picture(f"{self}\n\n{weights.as_text(arrays)}", self._page(weights.as_html(arrays)))

    def _repr_html_(self) -> str:
        return self._page().text

    def _page(self, *further: "Html") -> "Html":
        from lazyload.display import stages

        moved = {
            "read": (self.bytes_read, "convert"),
            "written": (self.bytes_written, "convert"),
            "restored": (self.bytes_restored, "restore"),
        }
        said = "restored from the cache" if self.hit else "converted"
        return stages.as_html(self.model, said, self.seconds, moved, self.reasons, *further)

    def __str__(self) -> str:
        taken = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        moved = [
            f"{amount / 1e6:,.1f} MB {what}"
            for amount, what in (
                (self.bytes_read, "of source weights read"),
                (self.bytes_written, "written to the cache"),
                (self.bytes_restored, "restored"),
            )
            if amount
        ]
        return f"{self.model}: {'hit' if self.hit else 'miss'} ({taken}); {', '.join(moved) or 'nothing moved'}"


def in_one_sentence(report: LoadReport, arrays: Mapping[str, Mapping[str, Any]], where: str = "") -> str:
    """What a load did, for the person who waited for it.

    Args:
        report: Its record.
        arrays: Shape, dtype and size of the arrays, as the manifest has them.
        where: The devices that they were restored onto; empty for none.
    """
    count = sum(math.prod(array["shape"]) for array in arrays.values())
    sizes: collections.Counter[str] = collections.Counter()
    for array in arrays.values():
        sizes[array["dtype"]] += array["nbytes"]
    what = f"{text.count(count)} parameters, {text.size(sum(sizes.values()))} of {_listed(sizes)}"
    done = {
        (False, False): "converted into the cache in",
        (False, True): "in the cache already, looked up in",
        (True, False): f"converted, and restored onto {where} in",
        (True, True): f"restored from the cache onto {where} in",
    }[bool(where), report.hit]
    return f"{report.model}: {what}, {done} {text.duration(report.total_seconds)}"


def _listed(sizes: Mapping[str, int]) -> str:
    """Names, the one of most bytes first."""
    return " and ".join(sorted(sizes, key=lambda name: -sizes[name]))


class Stopwatch:
    """Measures the stages of one load."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time that the body takes to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @contextlib.contextmanager
    def switching(self, first: str) -> Iterator[Callable[[str], None]]:
        """Adds the time of the body to a stage until what it yields is told, by any thread, which one goes on."""
        stage, since, lock = first, time.perf_counter(), threading.Lock()

        def switch(following: str) -> None:
            nonlocal stage, since
            with lock:
                now = time.perf_counter()
                self.seconds[stage] = self.seconds.get(stage, 0.0) + now - since
                stage, since = following, now

        try:
            yield switch
        finally:
            switch(stage)

    @contextlib.contextmanager
    def entering(self, name: str, context: AbstractContextManager[Entered]) -> Iterator[Entered]:
        """Adds the time that it takes to enter a context to a stage, and none of the body's."""
        with contextlib.ExitStack() as stack:
            with self.stage(name):
                entered = stack.enter_context(context)
            yield entered


def last_report() -> LoadReport:
    """The record of this thread's last successful `from_pretrained` or `convert`; of any thread's, if it has none.

    Raises:
        NoReportError: Nothing has been loaded yet.
    """
    report: LoadReport | None = getattr(_LAST, "report", None) or _OF_ANY_THREAD.get("last")
    if report is None:
        raise NoReportError("no model has been loaded yet; call lazyload.from_pretrained first")
    return report


def set_last_report(report: LoadReport) -> None:
    """Makes the record this thread's last one, and the process's."""
    _LAST.report = _OF_ANY_THREAD["last"] = report
