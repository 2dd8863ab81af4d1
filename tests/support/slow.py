"""Imported in a process of its own, makes disks slow: what takes milliseconds otherwise takes a second a stage."""

import time
from collections.abc import Callable
from typing import Any

import lazyload.checkpoint.write
from lazyload.checkpoint.assembly import Assembly

SECONDS = 0.1


def _slow(function: Callable[..., Any]) -> Callable[..., Any]:
    def slowly(*arguments: Any) -> Any:
        time.sleep(SECONDS)
        return function(*arguments)

    return slowly


Assembly.array = _slow(Assembly.array)  # type: ignore[method-assign]
lazyload.checkpoint.write.chunk_checksum = _slow(lazyload.checkpoint.write.chunk_checksum)
