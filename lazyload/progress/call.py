"""The progress of one call, through all of its stages."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from lazyload.progress.line import Line, screen_of
from lazyload.progress.value import Now, Progress, ProgressOption, Stage, require_progress

logger = logging.getLogger("lazyload")

Advance = Callable[[int], None]
"""To be called, from any thread, with the number of bytes that were just finished."""

Noted = Callable[[Advance], Advance]
"""Puts something around every such call."""

_DOING: Mapping[Stage, str] = {"fetch": "downloading", "convert": "converting", "restore": "restoring"}


class _StoppedError(BaseException):
    """A progress function has raised: an exception that nobody takes for one of his own."""


@dataclass(eq=False)
class _Running:
    """A stage that goes on.

    Attributes:
        stage: Which one.
        doing: A word for it.
        total: Bytes in all.
        started: When it began, by `time.perf_counter`.
        done: Bytes that are done.
        ended: When all were.
        raised: What the progress function has raised when it was told.
    """

    stage: Stage
    doing: str
    total: int
    started: float
    done: int = 0
    ended: float | None = None
    raised: BaseException | None = None


class CallProgress:
    """How far a call is; one object for all stages of one call, and for no other.

    Stages may go on at once, a download and the conversion of what has arrived: then the one that began first is told
    of until all of it is done, because that is what is waited for, and the other from then on.

    Attributes:
        now: What it is at; None before the first stage.
        sentence: What the call did, once it is done.
        check: Called with every report, from any thread; what it raises comes out of the stage.
    """

    def __init__(self, option: ProgressOption, model: str):
        """`model` is what the call loads."""
        self.now: Now | None = None
        self.sentence = ""
        self.check: Callable[[], None] = _nothing
        self._model = model
        self._function = option if callable(option) else None
        self._running: list[_Running] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def stage(
        self, stage: Stage, total: int, doing: str | None = None, noted: Noted = lambda advance: advance
    ) -> Iterator[Advance]:
        """One stage; its end is logged.

        Args:
            stage: Which one.
            total: Bytes in all; a stage of none is not spoken of.
            doing: A word for what is being done; None for the stage's.
            noted: Put around what reports.

        Yields:
            What reports. What a progress function raises comes out of the stage as it is, whoever handles errors of
            what is done there.
        """
        running = _Running(stage, doing or _DOING[stage], total, time.perf_counter())

        def count(nbytes: int) -> None:
            with self._lock:
                running.done += nbytes
                try:
                    self.check()
                    self._tell(running)
                except BaseException as error:
                    running.raised = running.raised or error
                    raise _StoppedError from error

        advance = noted(count)
        try:
            if total:
                with self._lock:
                    self._running.append(running)
                advance(0)
            yield advance
        except BaseException:
            if running.raised is None:
                raise
        finally:
            with self._lock:
                self._end(running)
        if running.raised is not None:
            raise running.raised
        if total:
            seconds = (running.ended or time.perf_counter()) - running.started
            logger.info("%s %s: %.2f GB in %.1f s", running.doing, self._model, total / 1e9, seconds)

    def _tell(self, running: "_Running") -> None:
        """Tells of a stage, unless another one that began before it goes on; and then of the one that it held back."""
        if running not in self._running[:1]:
            return
        self._show(running, running.done)
        if running.done >= running.total:
            running.ended = time.perf_counter()
            self._end(running)
            for following in self._running[:1]:
                self._show(following, 0)
                self._tell(following)

    def _show(self, running: "_Running", done: int) -> None:
        progress = Progress(running.stage, self._model, done, running.total)
        self.now = Now(running.doing, running.started, progress)
        if self._function is not None:
            self._function(progress)

    def _end(self, running: "_Running") -> None:
        if running in self._running:
            self._running.remove(running)


def _nothing() -> None:
    """Finds nothing amiss."""


@contextlib.contextmanager
def show_progress(option: ProgressOption, model: str) -> Iterator[CallProgress]:
    """Shows the progress of a call, and in the end its sentence, while the body runs.

    Args:
        option: How.
        model: What the call loads.

    Raises:
        ArgumentError: It is no way to show progress.
    """
    require_progress(option)
    progress = CallProgress(option, model)
    screen = screen_of(option)
    if screen is None:
        yield progress
        return
    with Line(screen, lambda: progress.now) as line:
        yield progress
        line.sentence = progress.sentence
