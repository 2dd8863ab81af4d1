"""SIGTERM ends a process as Ctrl-C does: what it was writing, and its marks, are removed first."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


class _Terminated(BaseException):
    """Unwinds the main thread."""


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Lets SIGTERM unwind the body before it ends the process.

    Nothing changes where the program handles the signal itself, or in another thread than the main one.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def unwind(*_: object) -> None:
        # A second one ends the process at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise _Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except _Terminated:
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
