"""JSON from files that nobody vouches for: bounded in size, no name twice, nothing that is no number of JSON."""

import json
import math
from typing import Any


def loads(content: bytes, most_bytes: int, *, infinity: Any = None) -> Any:
    """Parses JSON.

    Args:
        content: The text, in UTF-8, 16 or 32.
        most_bytes: How long it may be. What is parsed takes about ten times as much memory.
        infinity: What to read for `Infinity`, which is no number of JSON; None to refuse it.

    Raises:
        ValueError: It is longer, is no JSON, nests too deeply, has a name twice in one object, or has a number that is
            not finite (Python's reader takes `NaN`, `Infinity` and `1e400`, too).
    """
    if len(content) > most_bytes:
        raise ValueError(f"{len(content)} bytes are more than the {most_bytes} that it can have")

    def constant(name: str) -> Any:
        return _finite(name) if infinity is None or name != "Infinity" else infinity

    try:
        return json.loads(content, object_pairs_hook=_unique, parse_float=_finite, parse_constant=constant)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the name {twice[:100]!r} stands in it twice")
    return values


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:50]} is no number")
    return value
