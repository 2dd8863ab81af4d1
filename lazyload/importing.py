"""Imports of many modules at once."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Has Python collect no garbage while the body imports; after it, it does again if it did before.

    What is imported stays: the collector would go through more and more objects and find nothing, for a fifth of the
    time that Flax takes. What other threads leave behind waits as long.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
