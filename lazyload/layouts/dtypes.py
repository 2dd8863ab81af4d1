"""The dtypes that the arrays of a target are to have: one for all, or others for some roles and paths."""

import fnmatch
import itertools
from collections.abc import Collection
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lazyload.errors import LayoutError
from lazyload.layouts.pattern import Array

ALL = "*"
"""The pattern of all that no other one matches."""


@dataclass(frozen=True)
class DTypes:
    """Which dtype each array of floating-point numbers is to have.

    A pattern is a glob, as `fnmatch.fnmatchcase` reads it, and matches an array by the role of what it holds, one of
    them where it holds several, or by its path. The first one that matches counts. An array whose line in the target's
    table names a dtype of its own, `as float32`, keeps that one unless a pattern is its very role or path; one of
    whole numbers, `as int32`, keeps it always.

    Attributes:
        default: The dtype of arrays that no pattern matches.
        patterns: Patterns with their dtypes, in the order in which they count.
    """

    default: np.dtype
    patterns: tuple[tuple[str, np.dtype], ...] = ()

    def of(self, array: Array) -> np.dtype:
        """The dtype of an array."""
        own = array.patterns[0].operations.dtype
        if own is not None and own.kind == "i":
            return own
        number = self._match(array) if self.patterns else None
        return self.patterns[number][1] if number is not None else own or self.default

    def fitted(self, arrays: Collection[Array]) -> "DTypes":
        """The same for some arrays; without patterns where these change nothing.

        Raises:
            LayoutError: A pattern counts for none of the arrays.
        """
        if not self.patterns:
            return self
        matched = {self._match(array) for array in arrays}
        for number, (pattern, _) in enumerate(self.patterns):
            if number not in matched:
                raise LayoutError(f"dtype: pattern {pattern!r} {_why_unused(pattern, arrays)}")
        plain = DTypes(self.default)
        return plain if all(self.of(array) == plain.of(array) for array in arrays) else self

    def description(self) -> str | list[str]:
        """The dtype's name, or `PATTERN=DTYPE` in an order that counts; for the cache's key."""
        if not self.patterns:
            return self.default.name
        described: list[str] = []
        for dtype, rows in itertools.groupby(self.patterns, key=lambda row: row[1]):
            # Among neighbours of one dtype it does not matter which one matches.
            described += sorted(f"{pattern}={dtype.name}" for pattern, _ in rows)
        return [*described, f"{ALL}={self.default.name}"]

    def _match(self, array: Array) -> int | None:
        """The pattern that counts for an array, its number."""
        names = _names(array)
        has_own = array.patterns[0].operations.dtype is not None
        for number, (pattern, _) in enumerate(self.patterns):
            if pattern in names or (not has_own and _matches(pattern, names)):
                return number
        return None


def is_floating(dtype: np.dtype) -> bool:
    """Whether a dtype is of floating-point numbers, of NumPy's or of ml_dtypes."""
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return True


def _names(array: Array) -> tuple[str, ...]:
    return (array.path, *(pattern.role for pattern in array.patterns))


def _matches(pattern: str, names: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _why_unused(pattern: str, arrays: Collection[Array]) -> str:
    """What keeps a pattern from counting for any of the arrays, and what to do."""
    met = [array for array in arrays if _matches(pattern, _names(array))]
    if not met:
        roles = sorted({pattern.role for array in arrays for pattern in array.patterns})
        path = next((array.path for array in arrays), "")
        return f"matches nothing; there are the roles {', '.join(roles)}, and paths such as {path}"
    if all(array.patterns[0].operations.dtype for array in met):
        roles = sorted({pattern.role for array in met for pattern in array.patterns})
        return f"matches only what has a dtype of its own, which changes only where it is named: {', '.join(roles)}"
    return "matches only what patterns before it match, and the first one counts: put it before them"
