"""`$LAZYLOAD_LOG`: what is logged, shown on stderr without a line of code."""

import logging
import os

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_logger = logging.getLogger("lazyload")


def show_log() -> None:
    """Makes the logger `lazyload` as talkative as the variable says; without it, all stays as it is."""
    name = os.environ.get("LAZYLOAD_LOG", "").strip().lower()
    if not name:
        return
    if name not in _LEVELS:
        _logger.warning("LAZYLOAD_LOG=%r is ignored: give debug, info, warning or error", os.environ["LAZYLOAD_LOG"])
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(_nobody_else_shows)
    _logger.addHandler(handler)
    _logger.setLevel(_LEVELS[name])


def _nobody_else_shows(record: logging.LogRecord) -> bool:
    """Whether the program's own handlers leave a record out; else it would be shown twice."""
    return all(record.levelno < handler.level for handler in logging.getLogger().handlers)
