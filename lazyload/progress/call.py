"""The progress of one call, through all of its stages."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping

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


class CallProgress:
    """How far a call is; one object for all stages of one call, and for no other.

    Attributes:
        now: What it is at; None before the first stage.
        sentence: What the call did, once it is done.
    """

    def __init__(self, option: ProgressOption, model: str):
        """`model` is what the call loads."""
        self.now: Now | None = None
        self.sentence = ""
        self._model = model
        self._function = option if callable(option) else None
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
        doing = doing or _DOING[stage]
        started = time.perf_counter()
        done = 0
        raised: list[BaseException] = []

        def count(nbytes: int) -> None:
            nonlocal done
            with self._lock:
                done += nbytes
                progress = Progress(stage, self._model, done, total)
                self.now = Now(doing, started, progress)
                if self._function is None:
                    return
                try:
                    self._function(progress)
                except BaseException as error:
                    raised.append(error)
                    raise _StoppedError from error

        advance = noted(count)
        try:
            if total:
                advance(0)
            yield advance
        except BaseException:
            if not raised:
                raise
        if raised:
            raise raised[0]
        if total:
            logger.info("%s %s: %.2f GB in %.1f s", doing, self._model, total / 1e9, time.perf_counter() - started)


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
