"""Entries that look like those of models, made in no time: for what looks at manifests and folders alone."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry
from lazyload.cache.key import Key

COMMITS = tuple(digit * 40 for digit in "123456789")
FIELDS = {
    "config": None,
    "mapping": "m1",
    "own_head": None,
    "layout": "nnx",
    "container": {"metadata": {}, "scalars": {}, "item": ""},
    "dtype": "bfloat16",
    "adapter": None,
    "storage": {"ocdbt": True, "zarr3": True, "compression": "none", "chunk_bytes": 16777216},
    "format": 3,
}


def publish(
    root: Path | str,
    model: str = "org/model",
    *,
    commit: str = COMMITS[0],
    revision: str | None = None,
    nbytes: int = 1000,
    used: float | None = None,
    place: dict[str, str] | None = None,
    arrays: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Entry:
    """Publishes an entry of a hub model.

    Args:
        root: The cache's.
        model: The model's name.
        commit: Its commit.
        revision: What was asked for; None for `main`.
        nbytes: The size of its arrays, and of its one file.
        used: How many seconds ago it was used; None for never.
        place: The subfolder and variant.
        arrays: What its manifest says of its arrays; None for nothing.
        fields: Fields of the key that are to have other values.
    """
    identity = {"kind": "hub", "id": model, "commit": commit} | (place or {})
    origin = {"id": model, "revision": revision, "commit": commit} | (place or {})
    return _publish(root, model, identity, origin, nbytes, used, fields, arrays)


def publish_folder(root: Path | str, path: str, content: str, **fields: Any) -> Entry:
    """Publishes an entry of a folder with one file of some content."""
    identity = {"kind": "folder", "files": {"model.safetensors": {"sha256": content}}}
    return _publish(root, path, identity, {"path": path, "sizes": {"model.safetensors": 1}}, 1000, None, fields)


def _publish(
    root: Path | str,
    model: str,
    identity: dict[str, Any],
    origin: dict[str, Any],
    nbytes: int,
    used: float | None,
    fields: dict[str, Any],
    arrays: Mapping[str, Any] | None = None,
) -> Entry:
    key = Key({"source": identity} | FIELDS | fields)
    with Cache(root).staging(key, model, nbytes) as staging:
        (staging.path / "chunk").write_bytes(b"x" * nbytes)
        entry = staging.publish(arrays=arrays or {}, nbytes=nbytes, source=origin, config={}, seconds=1)
    if used is not None:
        (entry.folder / "last-used").touch()
        os.utime(entry.folder / "last-used", (time.time() - used,) * 2)
    return entry
