"""The manifest: the file whose presence makes an entry, and which says all that is known of it."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

FORMAT = 1
"""Raised whenever older programs would misread a manifest."""

FILE_NAME = "manifest.json"


class UnreadableManifestError(ValueError):
    """A manifest that is damaged, or of another format; to the cache, its entry does not exist."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the cache knows of an entry.

    On disk it is JSON:

        {
          "format": 1,
          "key": "0f3c...",
          "fields": {"source": {"kind": "hub", "id": "Qwen/Qwen3-8B", "commit": "b968..."}, "dtype": "bfloat16", ...},
          "model": "Qwen/Qwen3-8B",
          "data": "data-6f0d...",
          "item": "",
          "nbytes": 16381470720,
          "arrays": {"embed.embedding": {"shape": [151936, 4096], "dtype": "bfloat16", ...}, ...},
          "source": {"id": "Qwen/Qwen3-8B", "revision": null, "commit": "b968..."},
          "config": {"model_type": "qwen3", ...},
          "created": "2026-11-23T20:26:42+00:00",
          "seconds": 21.4,
          "versions": {"lazyload": "0.1.0", ...},
          "writer": {"host": "...", "pid": 4711}
        }

    Attributes:
        key: The digest of the key, which is the entry's folder, too.
        fields: The key's fields.
        model: The model's name.
        data: The name of the data folder beside the manifest.
        item: The folder in it that is the checkpoint; empty where it is that itself.
        nbytes: Bytes of all arrays.
        arrays: By path, what the checkpoint's writer recorded: shape, dtype, chunks, checksum.
        source: Where the weights came from.
        config: The model's `config.json`.
        created: When, in ISO 8601, UTC.
        seconds: How long the conversion took.
        versions: Of the programs that took part.
        writer: Host and process.
        format: See `FORMAT`.
    """

    key: str
    fields: Mapping[str, Any]
    model: str
    data: str
    item: str
    nbytes: int
    arrays: Mapping[str, Mapping[str, Any]]
    source: Mapping[str, Any]
    config: Mapping[str, Any]
    created: str
    seconds: float
    versions: Mapping[str, str]
    writer: Mapping[str, Any]
    format: int = FORMAT

    def to_json(self) -> str:
        """The text on disk."""
        return json.dumps(asdict(self), indent=1)


def read_manifest(path: Path) -> Manifest:
    """Reads a manifest.

    Raises:
        UnreadableManifestError: It is not there, damaged, or of another format.
    """
    try:
        content = json.loads(path.read_bytes(), parse_float=_finite, parse_constant=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableManifestError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UnreadableManifestError(f"{path}: not a JSON object")
    if content.get("format") != FORMAT:
        raise UnreadableManifestError(f"{path}: format {content.get('format')!r:.50}, this version reads {FORMAT}")
    malformed = [name for name, is_right in _CHECKS.items() if not is_right(content.get(name))]
    if malformed:
        shown = ", ".join(f"{name} ({content.get(name)!r:.50})" for name in malformed)
        raise UnreadableManifestError(f"{path}: missing or malformed: {shown}")
    return Manifest(**{name: content[name] for name in _CHECKS})


def _finite(number: str) -> float:
    """A number of JSON that is no whole one; Python's reader takes `NaN`, `Infinity` and `1e400`, too."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no number")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_object_of_objects(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())


def _is_folder_name(value: Any) -> bool:
    """Whether it names a folder inside another one, or with no name at all that one."""
    return isinstance(value, str) and Path(value).name == value != ".."


def _is_data_name(value: Any) -> bool:
    return _is_folder_name(value) and value.startswith("data-")


def _is_amount(value: Any) -> bool:
    """Whether it is a number of bytes or seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_whole_amount(value: Any) -> bool:
    return isinstance(value, int) and _is_amount(value)


def _is_time(value: Any) -> bool:
    """Whether it is a point in time that Unix can tell, in ISO 8601 with its distance from UTC."""
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return moment.tzinfo is not None and 1970 < moment.year < 9999


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "key": _is_text,
    "fields": _is_object,
    "model": _is_text,
    "data": _is_data_name,
    "item": _is_folder_name,
    "nbytes": _is_whole_amount,
    "arrays": _is_object_of_objects,
    "source": _is_object,
    "config": _is_object,
    "created": _is_time,
    "seconds": _is_amount,
    "versions": _is_object,
    "writer": _is_object,
}
"""What every field must be."""
