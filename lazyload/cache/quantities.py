"""Sizes and durations as people type them: `1.5GB`, `512MiB`, `30d`, `2 weeks`."""

import re
from collections.abc import Mapping

from lazyload.errors import ArgumentError

_NUMBER_WITH_UNIT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")

_PREFIXES = "KMGTP"
_BYTES: Mapping[str, int] = {
    "": 1,
    "b": 1,
    **{f"{prefix}{ending}".lower(): 1000**n for n, prefix in enumerate(_PREFIXES, 1) for ending in ("", "B")},
    **{f"{prefix}i{ending}".lower(): 1024**n for n, prefix in enumerate(_PREFIXES, 1) for ending in ("", "B")},
}

_NAMES: Mapping[int, tuple[str, ...]] = {
    1: ("", "s", "sec", "second"),
    60: ("m", "min", "minute"),
    3600: ("h", "hour"),
    86400: ("d", "day"),
    7 * 86400: ("w", "week"),
    30 * 86400: ("mo", "month"),
    365 * 86400: ("y", "year"),
}
_SECONDS: Mapping[str, int] = {
    spelling: seconds
    for seconds, names in _NAMES.items()
    for name in names
    for spelling in ((name, f"{name}s") if len(name) > 2 else (name,))
}


def parse_size(text: str) -> int:
    """Bytes.

    Example:
        >>> parse_size("1.5GB"), parse_size("1GiB"), parse_size("10k"), parse_size("4096")
        (1500000000, 1073741824, 10000, 4096)

    Raises:
        ArgumentError: It is no size.
    """
    return int(_parsed(text, _BYTES, "a size, such as 500MB, 100GB or 1GiB"))


def parse_duration(text: str) -> float:
    """Seconds.

    Example:
        >>> parse_duration("90"), parse_duration("12h"), parse_duration("2w"), parse_duration("2 weeks")
        (90.0, 43200.0, 1209600.0, 1209600.0)

    Raises:
        ArgumentError: It is no duration.
    """
    return _parsed(text, _SECONDS, "a duration, such as 90s, 30m, 12h, 30d or 2w")


def _parsed(text: str, units: Mapping[str, int], wanted: str) -> float:
    match = _NUMBER_WITH_UNIT.fullmatch(text)
    if not match or match[2].lower() not in units:
        raise ArgumentError(f"{text!r:.200}: give {wanted}")
    return float(match[1]) * units[match[2].lower()]
