"""Imports of many modules at once."""

import contextlib
import gc
import sys
from collections.abc import Iterator

_IMMORTAL_OBJECTS = 10_000
"""Python counts objects that it never frees among the frozen, some hundreds; who freezes a program has far more."""


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Has Python collect no garbage while the body imports; after it, it does again if it did before.

    What is imported stays: the collector would go through more and more objects and find nothing, for a fifth of the
    time that Flax takes, and once more when it is let again. What other threads leave behind waits as long.
    """
    collects, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if len(sys.modules) > known:
                _age()
            gc.enable()


def _age() -> None:
    """Makes all objects old ones, as if they had been looked at, which the next look at young ones is spared."""
    if gc.get_freeze_count() < _IMMORTAL_OBJECTS:
        gc.freeze()
        gc.unfreeze()
