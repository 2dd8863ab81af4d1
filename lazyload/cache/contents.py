"""What the files of source folders contain, remembered for as long as the system says that they are unchanged.

<root>/.contents/<digest of the folder's path>.json

    {
      "folder": "/models/Qwen3-8B",
      "files": {"model.safetensors": {"size": 15033, "mtime_ns": ..., "ctime_ns": ..., "inode": ..., "sha256": "..."}},
      "checksum": "sha256:5e88..."
    }
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lazyload.cache.disk import make_folder, paths_in, share
from lazyload.cache.manifest import checksum_of
from lazyload.cache.removal import Removal

_FOLDER = ".contents"

Files = Mapping[str, Mapping[str, Any]]
"""By a file's name: its status, and the SHA-256 that its content had then."""


@dataclass(frozen=True)
class Contents:
    """The memory of a cache; what is damaged, or cannot be written, costs reading the files again.

    Attributes:
        root: The cache's root, which is written to.
        shared: Others, which are only looked in.
        writable: Whether anything may be remembered.
    """

    root: Path
    shared: Sequence[Path] = ()
    writable: bool = True

    def read_only(self) -> "Contents":
        """The same, which remembers nothing new."""
        return replace(self, writable=False)

    def recall(self, folder: Path) -> Files:
        """What is remembered of a folder's files."""
        found: dict[str, Mapping[str, Any]] = {}
        for root in (*self.shared, self.root):
            found |= _read(_path(root, folder)).get("files", {})
        return found

    def remember(self, folder: Path, files: Files) -> None:
        """Remembers what some files of a folder contain; what is known of others, such as another variant's, stays."""
        if not self.writable:
            return
        path = _path(self.root, folder)
        content = {"folder": str(folder), "files": {**_read(path).get("files", {}), **files}}
        temporary = path.with_name(f"{path.name}.{os.urandom(16).hex()}")
        with contextlib.suppress(OSError):
            make_folder(path.parent, self.root)
            try:
                temporary.write_text(json.dumps(content | {"checksum": checksum_of(content)}, indent=1))
                share(temporary, self.root)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def obsolete(self) -> list[Removal]:
        """What is remembered of folders that are no longer there, and what cannot be used."""
        found = []
        for path in sorted(paths_in(self.root / _FOLDER, "*.json*")):
            # Somebody else may have removed it by now.
            with contextlib.suppress(FileNotFoundError):
                if not os.path.isdir(_read(path).get("folder", "")):
                    found.append(Removal(path, path.stat().st_size, "its folder is gone"))
        return found


def _path(root: Path, folder: Path) -> Path:
    return root / _FOLDER / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _read(path: Path) -> dict[str, Any]:
    """What a file of the memory says; nothing where it is not there, or not what was written."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.pop("checksum", None) == checksum_of(content):
            return content
    return {}
