"""Progress of long work: a bar where a person is looking, a line in the log where not."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lazyload.errors import ArgumentError

logger = logging.getLogger("lazyload")

ProgressOption = bool | Callable[[str, int, int], Any] | None
"""None: a bar on a terminal; True, False: a bar, nothing; a function: called with task, bytes done, bytes in all."""


def require_progress(option: object) -> None:
    """Refuses what is no way to show progress.

    Raises:
        ArgumentError: It is none of those that `ProgressOption` lists.
    """
    if option is not None and not isinstance(option, bool) and not callable(option):
        raise ArgumentError(
            f"progress={option!r:.100}: give True, False, None, or a function (task, bytes done, bytes in all)"
        )


@contextlib.contextmanager
def show_progress(option: ProgressOption, task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows the progress of one task.

    Args:
        option: How.
        task: What is being done, such as "converting Qwen/Qwen3-8B".
        total: Bytes in all.

    Yields:
        A function to be called, from any thread, with the number of bytes that were just finished.
    """
    started = time.perf_counter()
    if callable(option):
        yield _counting(option, task, total)
    elif option or (option is None and sys.stderr.isatty()):
        with _bar(task, total) as advance:
            yield advance
    else:
        yield lambda nbytes: None
    seconds = time.perf_counter() - started
    logger.info("%s: %.2f GB in %.1f s", task, total / 1e9, seconds)


def _counting(report: Callable[[str, int, int], Any], task: str, total: int) -> Callable[[int], None]:
    lock = threading.Lock()
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        with lock:
            done += nbytes
            report(task, done, total)

    return advance


@contextlib.contextmanager
def _bar(task: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        number = bar.add_task(task, total=total)
        yield lambda nbytes: bar.advance(number, nbytes)
