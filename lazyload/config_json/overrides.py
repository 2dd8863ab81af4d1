"""Fields of `config.json` that a call overrides, where the file's own cannot be edited."""

import json
from collections.abc import Mapping
from typing import Any

from lazyload.errors import ConfigError

_OF_THE_FILES = "quantization_config"


def overridden(config: Mapping[str, Any], overrides: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """A `config.json` with some fields changed; an object in an object is changed field by field.

    Example:
        >>> overridden({"a": 1, "rope_scaling": {"factor": 2.0, "note": "x"}}, {"a": 3, "rope_scaling": {"note": None}})
        {'a': 3, 'rope_scaling': {'factor': 2.0, 'note': None}}

    Args:
        config: The file's content.
        overrides: Values by field; None as a value is JSON's null. None for no changes.

    Raises:
        ConfigError: They are no JSON object, or say how the files of weights are packed, which they cannot change.
    """
    if overrides is None:
        return config
    if not isinstance(overrides, Mapping) or not all(isinstance(name, str) for name in overrides):
        raise ConfigError(
            f"config: give fields of config.json and their values, such as {{'field': None}}; not {overrides!r:.200}"
        )
    try:
        json.dumps(overrides, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"config: its values must be those of JSON: {error}") from None
    if _OF_THE_FILES in overrides:
        raise ConfigError(f"config: {_OF_THE_FILES} says how the weights are stored, which a call cannot change")
    return _merged(config, overrides)


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    changed = {
        name: _merged(config[name], value)
        if isinstance(value, Mapping) and isinstance(config.get(name), Mapping)
        else value
        for name, value in overrides.items()
    }
    return {**config, **changed}
