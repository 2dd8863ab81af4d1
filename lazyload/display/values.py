"""Short reprs of frozen values."""

import dataclasses
from typing import Any

from lazyload.display.text import ranges

_LONG = 8
"""The number of elements of a tuple up to which they are all shown."""


def differing_fields(value: Any) -> str:
    """A dataclass with those of its fields that differ from their defaults; a `__repr__`.

    Example:
        >>> @dataclasses.dataclass
        ... class Norm:
        ...     eps: float = 1e-6
        ...     offset: float = 0.0
        ...     __repr__ = differing_fields
        >>> Norm(), Norm(offset=1.0)
        (Norm(), Norm(offset=1.0))
    """
    shown = {
        field.name: getattr(value, field.name)
        for field in dataclasses.fields(value)
        if field.repr and getattr(value, field.name) != field.default
    }
    return named(value, **{name: _Said(_in_short(inner)) for name, inner in shown.items()})


def named(value: object, *said: str, **fields: Any) -> str:
    """A value by its class, with what is said of it in words and some fields: `Plan('gpt2', 148 arrays, hit=True)`."""
    parts = (*said, *(f"{name}={inner!r}" for name, inner in fields.items()))
    return f"{type(value).__name__}({', '.join(parts)})"


def by_kind(values: tuple[Any, ...], most: int = 6) -> str:
    """Equal values once, with their number: `(36 x Layer(...))`; where there are several kinds, which ones they are.

    Args:
        values: The values, hashable.
        most: How many kinds are shown.

    Example:
        >>> by_kind(("a", "b", "a", "b")), by_kind(("a",) * 36)
        ("(0, 2: 2 x 'a'; 1, 3: 2 x 'b')", "(36 x 'a')")
    """
    kinds: dict[Any, list[int]] = {}
    for number, value in enumerate(values):
        kinds.setdefault(value, []).append(number)
    if len(kinds) == 1:
        return f"({len(values)} x {values[0]!r})"
    said = [f"{ranges(numbers)}: {len(numbers)} x {value!r}" for value, numbers in kinds.items()]
    further = [f"{len(said) - most} other kinds"] if len(said) > most else []
    return f"({'; '.join([*said[:most], *further])})"


class _Said(str):
    """A text whose repr is itself."""

    def __repr__(self) -> str:
        return str(self)


def _in_short(value: Any) -> str:
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return by_kind(value)
    if isinstance(value, tuple) and len(value) > _LONG:
        return f"({value[0]!r}, {value[1]!r}, ..., {value[-1]!r})"
    return repr(value)
