"""Filters of entries, as people type them: `size>1GB`, `accessed>30d`, `model=Qwen/*`.

The words are those of `hf cache ls`: `accessed` is how long ago an entry was last used, `modified` how long ago it was
made.
"""

import fnmatch
import operator
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lazyload.cache.entry import Listed
from lazyload.cache.quantities import parse_duration, parse_size
from lazyload.cache.superseded import find_superseded
from lazyload.errors import ArgumentError

E = TypeVar("E", bound=Listed)

_FORM = re.compile(r"\s*(?P<field>\w+)\s*(?P<operator>!=|>=|<=|==|=|>|<)\s*(?P<value>.*?)\s*")

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}

_AMOUNTS: Mapping[str, tuple[Callable[[str], float], Callable[[Listed], float]]] = {
    "size": (parse_size, lambda entry: entry.nbytes),
    "accessed": (parse_duration, lambda entry: time.time() - entry.last_used),
    "modified": (parse_duration, lambda entry: time.time() - entry.created.timestamp()),
}

_TEXTS: Mapping[str, Callable[[Listed], str]] = {
    "model": lambda entry: entry.model,
    "key": lambda entry: entry.key,
    "revision": lambda entry: entry.revision or "",
    "commit": lambda entry: entry.commit or "",
    "layout": lambda entry: str(entry.manifest.fields.get("layout", "")),
    "dtype": lambda entry: _words(entry.manifest.fields.get("dtype", "")),
    "layers": lambda entry: entry.layers,
}

FIELDS = (*_AMOUNTS, *_TEXTS, "superseded")


@dataclass(frozen=True)
class Filter:
    """One condition on entries.

    Example:
        >>> Filter.parse("size>1GB")
        Filter(field='size', operator='>', value='1GB')

    Attributes:
        field: What is compared, one of `FIELDS`.
        operator: How: `= != > < >= <=` for amounts, `=` and `!=` for texts.
        value: With what: a size, a duration, a glob, or yes and no.
    """

    field: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Filter":
        """The filter that a text is.

        Raises:
            ArgumentError: It is none.
        """
        match = _FORM.fullmatch(text)
        if not match or match["field"].lower() not in FIELDS:
            raise ArgumentError(
                f"filter {text!r:.200}: give a condition on {', '.join(FIELDS)}, such as 'size>1GB', 'accessed>30d', "
                "'model=Qwen/*' or 'superseded=yes'"
            )
        parsed = cls(match["field"].lower(), match["operator"], match["value"])
        parsed.require_sound()
        return parsed

    def require_sound(self) -> None:
        """Makes sure that the value and the operator are those of the field.

        Raises:
            ArgumentError: They are not.
        """
        if self.field in _AMOUNTS:
            _AMOUNTS[self.field][0](self.value)
        elif self.operator not in ("=", "==", "!="):
            raise ArgumentError(f"filter on {self.field}: give {self.field}= or {self.field}!=, not {self.operator}")
        elif self.field == "superseded" and self.value not in ("yes", "no"):
            raise ArgumentError(f"filter superseded={self.value}: give yes or no")

    def matches(self, entry: Listed, *, is_superseded: bool) -> bool:
        """Whether an entry fulfils the condition."""
        if self.field in _AMOUNTS:
            parse, amount = _AMOUNTS[self.field]
            return _COMPARISONS[self.operator](amount(entry), parse(self.value))
        if self.field == "superseded":
            found = is_superseded == (self.value == "yes")
        else:
            found = fnmatch.fnmatchcase(_TEXTS[self.field](entry), self.value)
        return found != (self.operator == "!=")


def filtered(entries: Iterable[E], filters: Iterable[str], among: Sequence[Listed]) -> list[E]:
    """The entries that fulfil all of some filters.

    Args:
        entries: Which ones to choose from.
        filters: The filters as texts.
        among: All entries of the cache, which say what is superseded.

    Raises:
        ArgumentError: A filter is none.
    """
    parsed = [Filter.parse(text) for text in filters]
    superseded = find_superseded(among) if any(each.field == "superseded" for each in parsed) else {}
    return [
        entry
        for entry in entries
        if all(each.matches(entry, is_superseded=entry.folder in superseded) for each in parsed)
    ]


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
