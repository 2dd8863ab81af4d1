"""`$LAZYLOAD_LOG`: what is logged, shown on stderr without a line of code.

What logs is imported when there is something to log: it takes as long as the command takes to read a list of the cache.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

_LEVELS = ("debug", "info", "warning", "error")


def logger() -> "logging.Logger":
    """The logger `lazyload`."""
    import logging

    return logging.getLogger("lazyload")


def show_log() -> None:
    """Makes the logger `lazyload` as talkative as the variable says; without it, all stays as it is."""
    name = os.environ.get("LAZYLOAD_LOG", "").strip().lower()
    if not name:
        return
    if name not in _LEVELS:
        logger().warning("LAZYLOAD_LOG=%r is ignored: give debug, info, warning or error", os.environ["LAZYLOAD_LOG"])
        return
    import logging

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_nobody_else_shows)
    logger().addHandler(handler)
    logger().setLevel(name.upper())


def _nobody_else_shows(record: "logging.LogRecord") -> bool:
    """Whether the program's own handlers leave a record out; else it would be shown twice."""
    import logging

    return all(record.levelno < handler.level for handler in logging.getLogger().handlers)
