"""The files of a data folder: listed when it is published, and compared with that list ever after."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SMALL_BYTES = 1 << 20
"""Files no larger than this are listed with their SHA-256; larger ones hold chunks, which have checksums."""

Files = Mapping[str, Mapping[str, Any]]
"""What a manifest says of the files of a data folder, by path in it: `size`, and `sha256` of small ones."""


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Every regular file below a folder.

    Raises:
        OSError: One cannot be read.
    """
    listed: dict[str, dict[str, Any]] = {}
    for path in sorted(_paths(folder)):
        file = Path(folder, path)
        size = file.stat().st_size
        listed[path] = {"size": size} | ({"sha256": _sha256(file)} if size <= SMALL_BYTES else {})
    return listed


def changed_files(folder: Path, files: Files) -> list[str]:
    """Files that are gone, or have another size than they are listed with: sentences.

    Raises:
        OSError: One cannot be looked at now.
    """
    found = ((path, file["size"], _size(f"{folder}/{path}")) for path, file in files.items())
    return [
        f"{path}: is gone" if size is None else f"{path}: has {size} bytes, was written with {written}"
        for path, written, size in found
        if size != written
    ]


def damaged_files(folder: Path, files: Files) -> list[str]:
    """The same, and small files whose content is another one.

    Raises:
        OSError: One cannot be read now.
    """
    changed = changed_files(folder, files)
    gone = {problem.partition(": ")[0] for problem in changed}
    return changed + [
        f"{path}: its content is not what was written"
        for path, file in files.items()
        if path not in gone and "sha256" in file and _sha256(folder / path) != file["sha256"]
    ]


def _paths(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        for name in names:
            yield Path(parent, name).relative_to(folder).as_posix()


def _size(path: str) -> int | None:
    """The size of a regular file; None where there is none."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
