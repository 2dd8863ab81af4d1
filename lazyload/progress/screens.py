"""Where a line of progress is drawn: a terminal, a notebook, and what is neither.

All of them show tqdm's meter. In a notebook it is an output that is updated in place, and not one of tqdm's widgets: it
needs no ipywidgets and no extension of the frontend, and what a saved notebook keeps of it is its last state.
"""

import html
import io
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from tqdm.std import tqdm

from lazyload.progress.value import ScreenName

_IN_A_CELL = (
    "{desc}: <progress value='{n}' max='{total}'></progress> {percentage:.0f}%, {n_fmt}B of {total_fmt}B, {rate_fmt}, "
    "{remaining} left"
)


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's bar of bytes, redrawn by whoever updates it."""

    monitor_interval = 0

    def __init__(self, title: str, done: int, total: int, seconds: float, **options: Any):
        """`done` are the bytes that are done, of `total`, when it is first shown, and `seconds` what that has taken."""
        self._seconds = seconds
        super().__init__(
            desc=title,
            initial=done,
            total=total,
            unit="B",
            unit_scale=True,
            smoothing=0.1,
            mininterval=0,
            miniters=0,
            leave=False,
            **options,
        )

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the meter speaks of: of what was done before it was first shown, too."""
        values = dict(super().format_dict)
        return values | {"initial": 0, "elapsed": values["elapsed"] + self._seconds}

    def close(self) -> None:
        """Takes it away; not while something is written above it, which moves it."""
        with self.get_lock():
            super().close()


# tqdm's own would be shared by processes, for which it starts one more.
Bar.set_lock(threading.RLock())


class _DrawnBar(Bar):
    """A bar that something else than a terminal shows."""

    def __init__(self, draw: "Callable[[_DrawnBar], None]", title: str, done: int, total: int, seconds: float):
        self._draw = draw
        super().__init__(title, done, total, seconds, file=io.StringIO(), ascii=False)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Draws it; with a text tqdm asks for its end."""
        if msg is None:
            self._draw(self)


class Screen(Protocol):
    """Where one line is drawn.

    Attributes:
        seconds_between: How long to wait before it is drawn again.
    """

    seconds_between: float

    def bar(self, title: str, done: int, total: int, seconds: float) -> Bar:
        """Begins to draw a bar; see `Bar`."""

    def end(self, text: str) -> None:
        """Makes the line a text; empty where nothing of it is to stay."""


class Terminal:
    """A line of stderr, below those of other calls that are going on."""

    seconds_between = 0.1

    def __init__(self) -> None:
        # Where bars have been drawn, the cursor stands anywhere in its line.
        self._start = ""

    def bar(self, title: str, done: int, total: int, seconds: float) -> Bar:
        """Begins to draw a bar."""
        self._start = "\r"
        return Bar(title, done, total, seconds, file=sys.stderr, dynamic_ncols=True)

    def end(self, text: str) -> None:
        """Writes a line that stays, above what is still being drawn."""
        if text:
            Bar.write(self._start + text, file=sys.stderr)


class Notebook:
    """An output of a cell."""

    seconds_between = 0.1

    def __init__(self) -> None:
        self._output: Any = None

    def bar(self, title: str, done: int, total: int, seconds: float) -> Bar:
        """Begins to draw a bar."""
        return _DrawnBar(self._draw, title, done, total, seconds)

    def end(self, text: str) -> None:
        """Makes the output a text."""
        self._show({"text/plain": text})

    def _draw(self, bar: _DrawnBar) -> None:
        values = bar.format_dict
        in_a_cell = {**values, "prefix": html.escape(values["prefix"]), "bar_format": _IN_A_CELL}
        self._show({"text/plain": str(bar), "text/html": bar.format_meter(**in_a_cell)})

    def _show(self, content: dict[str, str]) -> None:
        from IPython.display import display

        if self._output is None:
            self._output = display(content, raw=True, display_id=True)
        else:
            self._output.update(content, raw=True)


class Lines:
    """Lines of stderr where that is a file or a pipe: few of them, because they stay."""

    seconds_between = 10.0

    def bar(self, title: str, done: int, total: int, seconds: float) -> Bar:
        """Begins to write lines."""
        return _DrawnBar(lambda bar: self.end(str(bar)), title, done, total, seconds)

    def end(self, text: str) -> None:
        """Writes a line."""
        if text:
            print(text, file=sys.stderr, flush=True)


def open_screen(name: ScreenName) -> Screen:
    """The screen of a name."""
    match name:
        case "notebook":
            return Notebook()
        case "terminal":
            return Terminal()
        case "lines":
            return Lines()
