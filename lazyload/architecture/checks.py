"""Checks of the values that an architecture is made of."""

from typing import Any

from lazyload.errors import ConfigError


def require(condition: bool, value: object, problem: str) -> None:
    """Refuses a value.

    Args:
        condition: What must hold.
        value: The value, whose class the message names.
        problem: What is wrong where it does not.

    Raises:
        ConfigError: It does not hold.
    """
    if not condition:
        raise ConfigError(f"{type(value).__name__}: {problem}")


def require_positive(value: object, *names: str) -> None:
    """Refuses attributes that are not whole numbers above zero."""
    for name in names:
        number = getattr(value, name)
        is_whole = isinstance(number, int) and not isinstance(number, bool)
        require(is_whole and number > 0, value, f"{name} = {number!r} must be a positive whole number")


def require_one_of(value: object, name: str, allowed: tuple[Any, ...]) -> None:
    """Refuses an attribute that is none of the allowed values."""
    given = getattr(value, name)
    require(
        given in allowed,
        value,
        f"{name} = {given!r} is not known; there are {', '.join(str(known) for known in allowed)}",
    )


def require_limit(value: object, limit: float | None) -> None:
    """Refuses a limit that is not positive; None is none."""
    require(limit is None or limit > 0, value, f"limit = {limit!r} must be positive, or None for none")
