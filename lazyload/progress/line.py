"""The line that a person sees: it becomes one stage after the other, and ends as one sentence.

A thread of its own draws it, ten times a second at most, and not in the first half second: who loads does not wait for
a screen, and what takes no time shows no bar.
"""

import contextlib
import contextvars
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from lazyload.progress.value import Now, ProgressOption, ScreenName

if TYPE_CHECKING:
    from lazyload.progress.screens import Bar, Screen

logger = logging.getLogger("lazyload")

_SECONDS_BEFORE = 0.5
_MOST_CHARACTERS = 40
"""Of a model's name, which may be a path; the line has other things to say."""


def screen_of(option: ProgressOption) -> ScreenName | None:
    """Where progress is to be shown; None for nowhere."""
    if option is False or callable(option):
        return None
    if _is_notebook():
        return "notebook"
    if not getattr(sys.stderr, "closed", True) and sys.stderr.isatty():
        return "terminal"
    return "lines" if option else None


def _is_notebook() -> bool:
    """Whether this is the kernel of a notebook: Jupyter's, VS Code's, Colab's, ...; a terminal's IPython has none."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return getattr(get_ipython(), "kernel", None) is not None


class Line:
    """Shows what a call is at while the body runs.

    Attributes:
        sentence: What the line ends as.
    """

    def __init__(self, screen: ScreenName, look: Callable[[], Now | None]):
        """Shows nothing yet.

        Args:
            screen: Where.
            look: What the call is at.
        """
        self.sentence = ""
        self._name: ScreenName = screen
        self._look = look
        self._screen: Screen | None = None
        self._bar: Bar | None = None
        self._title = ""
        self._end = threading.Event()
        # A kernel finds the cell that output belongs to in the context.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._draw_until_the_end,), name="lazyload-line", daemon=True
        )

    def __enter__(self) -> Self:
        logger.addFilter(self._make_room)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        logger.removeFilter(self._make_room)
        with _harmless():
            last = self.sentence
            if self._bar is not None:
                if error is not None:
                    last = f"{self._title}: stopped at {self._bar.n / self._bar.total:.0%}"
                self._bar.close()
            if last or self._bar is not None:
                self._opened().end(last)

    def _draw_until_the_end(self) -> None:
        seconds = _SECONDS_BEFORE
        with _harmless():
            while not self._end.wait(seconds):
                seconds = self._opened().seconds_between
                self._draw()

    def _draw(self) -> None:
        now = self._look()
        if now is None:
            return
        title, progress = f"{now.doing} {_shortened(now.progress.model)}", now.progress
        if self._bar is None or (title, progress.total) != (self._title, self._bar.total):
            if self._bar is not None:
                self._bar.close()
            self._title = title
            self._bar = self._opened().bar(title, progress.done, progress.total, time.perf_counter() - now.since)
        elif progress.done > self._bar.n:
            self._bar.update(progress.done - self._bar.n)
        else:
            self._bar.refresh()

    def _opened(self) -> "Screen":
        if self._screen is None:
            # tqdm takes a while to import, and most calls have nobody looking.
            from lazyload.progress.screens import open_screen

            self._screen = open_screen(self._name)
        return self._screen

    def _make_room(self, record: logging.LogRecord) -> bool:
        """Takes the bar away where something is logged; it comes back below."""
        with contextlib.suppress(Exception):
            if self._bar is not None:
                self._bar.clear()
        return True


@contextlib.contextmanager
def _harmless() -> Iterator[None]:
    """Leaves it at a line in the log if a screen cannot be written to: that is no reason to lose what is loaded."""
    try:
        yield
    except Exception:
        logger.debug("progress cannot be shown", exc_info=True)


def _shortened(model: str) -> str:
    return model if len(model) <= _MOST_CHARACTERS else f"...{model[3 - _MOST_CHARACTERS :]}"
