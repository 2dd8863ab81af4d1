"""Reading `config.json` field by field, such that nothing in it is overlooked.

Every field that is asked for is remembered. At the end, the fields that nobody asked for must be known not to matter,
or be switched off; a field that this library has never heard of may change the model's output.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from lazyload.config_json.known import SHARED, is_irrelevant
from lazyload.errors import ConfigError

T = TypeVar("T")


_MOST_OF_ANY = (1 << 31) - 1
_MOST = {
    "num_hidden_layers": 1 << 12,
    "num_experts": 1 << 14,
    "num_local_experts": 1 << 14,
    "n_routed_experts": 1 << 14,
}
"""More than any model has: what there are several values of is held against this before it is made."""


class Fields:
    """The fields of one `config.json`, or of a part of it.

    Example:
        >>> fields = Fields({"hidden_size": 64, "rope_scaling": None})
        >>> fields.need("hidden_size", int), fields.get("mlp_bias", False)
        (64, False)
        >>> fields.finish()
    """

    def __init__(self, values: Mapping[str, Any], *, where: str = "config.json", **defaults: Any):
        """The fields of an object.

        Args:
            values: The object.
            where: What messages call it.
            defaults: What fields are that it does not have. A field that is there and null is not replaced.
        """
        self._values = {**defaults, **values}
        self._read: set[str] = set()
        self.where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def need(self, name: str, kind: type[T]) -> T:
        """A field's value.

        Raises:
            ConfigError: The field is missing, null, or of another type.
        """
        value = self._values.get(name)
        if value is None:
            raise ConfigError(f"{self.where} lacks the field {name!r}, which the model's shape or output depends on")
        return self._checked(name, value, kind)

    def get(self, name: str, default: T) -> T:
        """A field's value, or the default where it is missing or null.

        Raises:
            ConfigError: The value is not of the default's type.
        """
        value = self._values.get(name)
        self._read.add(name)
        return default if value is None else self._checked(name, value, type(default))

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number, or the default where it is missing or null.

        Raises:
            ConfigError: It is missing and there is no default, or it is not positive.
        """
        value = self.need(name, int) if default is None else self.get(name, default)
        most = _MOST.get(name, _MOST_OF_ANY)
        if not 0 < value <= most:
            raise ConfigError(f"{self.where}: {name} = {value} must be positive, and not larger than {most}")
        return value

    def positive(self, name: str, default: float) -> float:
        """A number above zero, or the default where it is missing or null.

        Raises:
            ConfigError: It is not above zero.
        """
        value = self.get(name, default)
        if value <= 0:
            raise ConfigError(f"{self.where}: {name} = {value!r} must be positive")
        return value

    def optional(self, name: str, kind: type[T], default: T | None = None) -> T | None:
        """A field's value, which may be null; the default where it is missing.

        Raises:
            ConfigError: The value is of another type.
        """
        value = self._values.get(name, default)
        self._read.add(name)
        return None if value is None else self._checked(name, value, kind)

    def part(self, name: str) -> "Fields":
        """A field that holds fields itself.

        Raises:
            ConfigError: The field is missing or no object.
        """
        return Fields(self.need(name, dict), where=f"{self.where}: {name}")

    def refuse(self, name: str, *allowed: Any) -> None:
        """Refuses every value of the field but null and the allowed ones; if none is allowed, but those that are false.

        Raises:
            ConfigError: The field has another value.
        """
        value = self._values.get(name)
        self._read.add(name)
        if value is None or value in allowed or not (value or allowed):
            return
        expected = f"; only {' or '.join(map(repr, allowed))} is" if allowed else ""
        raise ConfigError(f"{self.where}: {name} = {value!r} is not implemented{expected}")

    def ignore(self, *names: str) -> None:
        """Fields of this family that the output does not depend on."""
        self._read.update(names)

    def finish(self) -> None:
        """Refuses what has not been read, is not known to be irrelevant, and is not switched off.

        Raises:
            ConfigError: There are such fields; all of them are listed with their values.
        """
        for name in SHARED.keys() & self._values.keys() - self._read:
            if self._values[name] is not None and self._values[name] not in SHARED[name]:
                raise ConfigError(
                    f"{self.where}: {name} = {self._values[name]!r} is not implemented for this kind of model"
                )
        left = {
            name: value
            for name, value in self._values.items()
            if value and name not in self._read and name not in SHARED and not is_irrelevant(name)
        }
        if left:
            listed = ", ".join(f"{name} = {value!r:.200}" for name, value in sorted(left.items()))
            raise ConfigError(
                f"{self.where} has fields that are not known for this kind of model, and that might change its "
                f"output: {listed}. Where one does not matter, say so: config={self._way_out(min(left))}"
            )

    def _way_out(self, name: str) -> str:
        """What `config=` has to be for a field to be overlooked."""
        override: Any = None
        for part in (name, *reversed(self.where.split(": ")[1:])):
            override = {part: override}
        return repr(override)

    def _checked(self, name: str, value: Any, kind: type[T]) -> T:
        self._read.add(name)
        # Programs disagree on whether a whole number is written 4096 or 4096.0.
        if is_number(value) and (kind is float or (kind is int and value == int(value))):
            return kind(value)  # type: ignore[call-arg]
        if kind in (int, float) or not isinstance(value, kind):
            raise ConfigError(f"{self.where}: {name} = {value!r} is not of type {kind.__name__}")
        return value


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number that a float can hold; true and false are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
