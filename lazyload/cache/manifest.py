"""The manifest: the file whose presence makes an entry, and which says all that is known of it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
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
        UnreadableManifestError: It is not there, damaged, of another format, or not named as its key demands.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableManifestError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise UnreadableManifestError(f"{path}: not a JSON object")
    if content.get("format") != FORMAT:
        raise UnreadableManifestError(f"{path}: format {content.get('format')!r}, this version reads {FORMAT}")
    kinds = {field.name: _kinds(field.type) for field in fields(Manifest)}
    wrong = [name for name, kind in kinds.items() if not isinstance(content.get(name), kind)]
    if wrong or not math.isfinite(content["seconds"]):
        raise UnreadableManifestError(f"{path}: missing or malformed: {', '.join(wrong or ['seconds'])}")
    manifest = Manifest(**{name: content[name] for name in kinds})
    if Path(manifest.data).name != manifest.data or not manifest.data.startswith("data-"):
        raise UnreadableManifestError(f"{path}: {manifest.data!r} is not the name of a data folder")
    if Path(manifest.item).name != manifest.item or manifest.item == "..":
        raise UnreadableManifestError(f"{path}: {manifest.item!r} is not the name of a folder")
    if not all(isinstance(record, dict) for record in manifest.arrays.values()):
        raise UnreadableManifestError(f"{path}: malformed arrays")
    return manifest


def _kinds(annotation: Any) -> tuple[type, ...]:
    if annotation is float:
        return (int, float)
    return (annotation,) if annotation in (str, int) else (dict,)
