"""Threads that bring bytes while others wait for them: one error ends all of them, on either side."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

Found = TypeVar("Found")


class _StoppedError(BaseException):
    """What a thread brings is not wanted any more; nobody takes it for an error of his own."""


class Background:
    """Tasks in threads, and what is known of how far they are.

    Leaving the context waits for the tasks, and raises the first error of any; after an error of the body it stops them
    instead. What waits for a task that cannot come to its end hears of the error that keeps it from it.

    Attributes:
        changed: Held where something is looked at or changed; notified when it has been.
        is_left: Whether the body has come to its end, so that nobody waits any more.
    """

    def __init__(self, threads: int):
        """Starts nothing yet; `threads` is how many tasks can run at once."""
        self.changed = threading.Condition()
        self.is_left = False
        self._error: BaseException | None = None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="lazyload-arrival")
        self._tasks: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop(error)
        with self.changed:
            self.is_left = True
            self.changed.notify_all()
        try:
            for task in self._tasks:
                task.result()
        except BaseException as interruption:
            # A second Ctrl-C, while the last bytes are waited for.
            self.stop(interruption)
            raise
        finally:
            self._pool.shutdown(cancel_futures=True)
        if error is None and self._error is not None:
            raise self._error

    def start(self, task: Callable[..., None], *arguments: Any) -> None:
        """Runs a task in a thread; what it raises ends all."""

        def run() -> None:
            try:
                self.require_running()
                task(*arguments)
            except _StoppedError:
                pass
            except BaseException as error:
                self.stop(error)

        self._tasks.append(self._pool.submit(run))

    def stop(self, error: BaseException) -> None:
        """Ends all tasks, and whatever waits, with an error; the first one counts."""
        with self.changed:
            self._error = self._error or error
            self.changed.notify_all()

    def require_running(self) -> None:
        """Ends the task that calls it, where all are to end."""
        if self._error is not None:
            raise _StoppedError

    def require_no_error(self) -> None:
        """Raises the error that ends all, in whoever reads."""
        if self._error is not None:
            raise self._error

    def wait_for(self, look: Callable[[], Found | None], seconds: float | None = None) -> Found | None:
        """Waits, with `changed` held, until something is there; None where it is not after so many seconds.

        Raises:
            BaseException: What keeps it from coming.
        """
        while True:
            self.require_no_error()
            if (found := look()) is not None:
                return found
            if not self.changed.wait(seconds) and seconds is not None:
                return None
