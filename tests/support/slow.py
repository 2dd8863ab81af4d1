"""Imported in a process of its own, makes disks slow: what takes milliseconds otherwise takes a second a stage."""

import time
from collections.abc import Callable
from typing import Any

import lazyload.checkpoint.read
import lazyload.checkpoint.write

SECONDS = 0.1


def _slow(function: Callable[..., Any]) -> Callable[..., Any]:
    def slowly(*arguments: Any) -> Any:
        time.sleep(SECONDS)
        return function(*arguments)

    return slowly


lazyload.checkpoint.read._load = _slow(lazyload.checkpoint.read._load)
lazyload.checkpoint.write.chunk_checksum = _slow(lazyload.checkpoint.write.chunk_checksum)
