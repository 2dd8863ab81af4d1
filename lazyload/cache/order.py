"""The order of entries, as people type it: `accessed`, `modified`, `name` or `size`, with `:asc` or `:desc`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from lazyload.cache.entry import Listed
from lazyload.errors import ArgumentError

E = TypeVar("E", bound=Listed)

_KEYS: Mapping[str, Callable[[Listed], Any]] = {
    "accessed": lambda entry: entry.last_used,
    "modified": lambda entry: entry.created,
    "name": lambda entry: entry.model.lower(),
    "size": lambda entry: entry.nbytes,
}

ORDERS = tuple(f"{name}{direction}" for name in _KEYS for direction in ("", ":asc", ":desc"))


def ordered(entries: Iterable[E], order: str) -> list[E]:
    """Entries in an order; without a direction, the newest and the largest first, and names from A to Z.

    Raises:
        ArgumentError: There is no such order.
    """
    if order not in ORDERS:
        raise ArgumentError(f"order {order!r:.200}: give one of {', '.join(_KEYS)}, with :asc or :desc")
    name, _, direction = order.partition(":")
    return sorted(entries, key=_KEYS[name], reverse=(direction or ("asc" if name == "name" else "desc")) == "desc")
