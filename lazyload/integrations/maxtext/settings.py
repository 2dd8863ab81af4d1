"""The settings of a MaxText run, whatever kind of config holds them: read, replaced, and told from defaults.

MaxText 0.2.5 has `HyperParameters` around one of its pydantic configs; a mapping of the fields will do, too.
"""

from collections.abc import Mapping
from typing import Any

from lazyload.storage import Storage


def get(config: Any, name: str, default: Any = None) -> Any:
    """A setting by its name."""
    return config.get(name, default) if isinstance(config, Mapping) else getattr(config, name, default)


def replaced(config: Any, **fields: Any) -> Any:
    """The config with other values, of the same type."""
    if isinstance(config, Mapping):
        return {**config, **fields}
    inner = _pydantic_of(config)
    changed = inner.model_copy(update=fields)
    return changed if inner is config else type(config)(changed)


def _pydantic_of(config: Any) -> Any:
    """The pydantic model that holds a config's fields.

    MaxText 0.2.5 keeps it in a private attribute of `HyperParameters`, which can be made of one; its other configs are
    pydantic models themselves.
    """
    return getattr(config, "_pydantic_config", config)


def scan_layers(config: Any) -> bool:
    """Whether the run's layers are stacked."""
    return bool(get(config, "scan_layers", True))


def storage_of(config: Any) -> Storage:
    """How the run wants its checkpoint stored."""
    return Storage(
        ocdbt=get(config, "checkpoint_storage_use_ocdbt", None),
        zarr3=get(config, "checkpoint_storage_use_zarr3", None),
    )


def is_set(config: Any, name: str) -> bool:
    """Whether somebody chose the value; MaxText's configs remember what came from its own files instead."""
    if isinstance(config, Mapping):
        return name in config
    return name in getattr(_pydantic_of(config), "model_fields_set", (name,))
