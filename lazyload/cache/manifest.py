"""The manifest: the file whose presence makes an entry, and which says all that is known of it."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from lazyload.bucket.path import BucketPath, Folder
from lazyload.display import text
from lazyload.display.values import named
from lazyload.errors import CacheError

FORMAT = 2
"""Raised whenever older programs would misread a manifest. The first one had no checksum and listed no files.

Every format from the second on has the checksum, in one of the same two ways: so a newer one is told from a damaged
one.
"""

FILE_NAME = "manifest.json"


class UnreadableManifestError(ValueError):
    """There is no manifest that can be used; each of the errors below is a reason of its own."""


class AbsentError(UnreadableManifestError):
    """There is no manifest."""


class InaccessibleError(UnreadableManifestError):
    """It is there, but cannot be looked at now: no permission, a stale file handle, a failing disk."""


class DamagedError(UnreadableManifestError):
    """It is not what was written, or its data is not: proven."""


class OlderFormatError(UnreadableManifestError):
    """It was made by an older version, in a format that this one does not read.

    Attributes:
        version: The version of lazyload that made it.
        nbytes: Bytes of all arrays.
    """

    version: str
    nbytes: int

    def __init__(self, path: Folder, content: Mapping[str, Any]):
        versions, nbytes = content.get("versions"), content.get("nbytes")
        named = versions.get("lazyload") if isinstance(versions, Mapping) else None
        self.version = named if isinstance(named, str) else "0.1"
        self.nbytes = nbytes if isinstance(nbytes, int) else 0
        super().__init__(
            f"{path}: made by lazyload {self.version:.50}, whose entries this version does not read; it is converted "
            "again when it is asked for"
        )


class NewerFormatError(UnreadableManifestError):
    """It is sound, and of a format that this version does not know."""


class Status(NamedTuple):
    """What of a file's status changes whenever its content does, or another file takes its name.

    Attributes:
        device: The file system.
        inode: The file in it.
        size: In bytes.
        mtime_ns: When its content was changed, as programs may say.
        ctime_ns: When anything about it was changed, which they may not.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Status":
        """The same of what the system says."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


Version = Status | str
"""What tells a manifest from an earlier one: the status of its file, or the version of its object."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What lists say of an entry: of its manifest what is short, however many arrays and files there are.

    Attributes:
        key: The digest of the key, which is the entry's folder, too.
        fields: The key's fields.
        model: The model's name.
        data: The name of the data folder beside the manifest.
        item: The folder in it that is the checkpoint; empty where it is that itself.
        nbytes: Bytes of all arrays.
        source: Where the weights came from.
        created: When, in ISO 8601, UTC.
        seconds: How long the conversion took.
    """

    key: str
    fields: Mapping[str, Any]
    model: str
    data: str
    item: str
    nbytes: int
    source: Mapping[str, Any]
    created: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Manifest(Summary):
    """What the cache knows of an entry.

    On disk it is JSON, in one line so that it is read quickly:

        {
          "format": 2,
          "key": "0f3c...",
          "fields": {"source": {"kind": "hub", "id": "Qwen/Qwen3-8B", "commit": "b968..."}, "dtype": "bfloat16", ...},
          "model": "Qwen/Qwen3-8B",
          "data": "data-6f0d...",
          "item": "",
          "nbytes": 16381470720,
          "arrays": {"embed.embedding": {"shape": [151936, 4096], "dtype": "bfloat16", ...}, ...},
          "files": {"d/0f6a...": {"size": 2147481034}, "_METADATA": {"size": 81034, "sha256": "91b4..."}, ...},
          "source": {"id": "Qwen/Qwen3-8B", "revision": null, "commit": "b968..."},
          "config": {"model_type": "qwen3", ...},
          "created": "2026-11-23T20:26:42.118+00:00",
          "seconds": 21.4,
          "versions": {"lazyload": "0.1.0", ...},
          "writer": {"host": "...", "pid": 4711},
          "checksum": "text-sha256:5e88..."
        }

    The checksum is that of the text before it, up to the comma. Where one is called `sha256:`, it is that of everything
    else as canonical JSON: sorted keys, no spaces, ASCII.

    Attributes:
        key: The digest of the key, which is the entry's folder, too.
        fields: The key's fields.
        model: The model's name.
        data: The name of the data folder beside the manifest.
        item: The folder in it that is the checkpoint; empty where it is that itself.
        nbytes: Bytes of all arrays.
        source: Where the weights came from.
        created: When, in ISO 8601, UTC.
        seconds: How long the conversion took.
        arrays: By path, what the checkpoint's writer recorded: shape, dtype, chunks, checksum, and where chunks lie.
        files: Every file of the data folder by its path in it, with `/`: its size, and its SHA-256 where it is small.
        config: The model's `config.json`.
        versions: Of the programs that took part.
        writer: Host and process.
        format: See `FORMAT`.
    """

    arrays: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    writer: Mapping[str, Any]
    format: int = FORMAT

    def __repr__(self) -> str:
        return named(
            self,
            repr(self.model),
            f"{len(self.arrays)} arrays",
            text.size(self.nbytes),
            key=self.key,
            created=self.created,
        )

    def to_json(self) -> str:
        """The text on disk."""
        text = json.dumps({name: getattr(self, name) for name in _CHECKS}).removesuffix("}")
        return f'{text}, "checksum": "{_checksum_of_text(text.encode())}"}}'


def read_manifest(path: Folder) -> Manifest:
    """Reads a manifest.

    Raises:
        UnreadableManifestError: It cannot be used; the subclass says why.
    """
    return read_with_status(path)[0]


def read_with_status(path: Folder) -> tuple[Manifest, Version | None]:
    """Reads a manifest, and says which one it was; None where it was replaced meanwhile.

    Raises:
        UnreadableManifestError: It cannot be used; the subclass says why.
    """
    if isinstance(path, BucketPath):
        text, version = _read_object(path)
        return _parsed(path, text), version
    before, text = _read_file(path)
    # Where it was replaced meanwhile, nothing is known of which one was read.
    return _parsed(path, text), before if before == status_of(path) else None


def _read_file(path: Path) -> tuple[Status | None, bytes]:
    try:
        return status_of(path), path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AbsentError(f"{path}: {error.strerror}") from None
    except IsADirectoryError:
        raise DamagedError(f"{path}: is a folder") from None
    except OSError as error:
        raise InaccessibleError(f"{path}: cannot be read now: {error.strerror}") from None


def _read_object(path: BucketPath) -> tuple[bytes, str]:
    try:
        version = _version_of_object(path)
        if version is None:
            raise AbsentError(f"{path}: there is no such object")
        return path.bucket.read_version(path.key, version), version
    except FileNotFoundError:
        raise AbsentError(f"{path}: there is no such object") from None
    except CacheError as error:
        raise InaccessibleError(str(error)) from None


def _parsed(path: Folder, text: bytes) -> Manifest:
    try:
        content = json.loads(text, parse_float=_finite, parse_constant=_finite)
        checksum = content.pop("checksum", None) if isinstance(content, dict) else None
        is_sound = _is_sound(checksum, text, content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path}: not a JSON object")
    if checksum is None and content.get("format") == 1:
        raise OlderFormatError(path, content)
    if not is_sound:
        raise DamagedError(f"{path}: its checksum is not that of its content")
    if isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise NewerFormatError(f"{path}: format {content['format']!r:.50}, this version reads {FORMAT}")
    malformed = [name for name, is_right in _CHECKS.items() if not is_right(content.get(name))]
    if malformed:
        shown = ", ".join(f"{name} ({content.get(name)!r:.50})" for name in malformed)
        raise DamagedError(f"{path}: missing or malformed: {shown}")
    return Manifest(**{name: content[name] for name in _CHECKS})


def version_of(path: Folder) -> Version | None:
    """Which manifest is there now; None where none can be opened."""
    if isinstance(path, Path):
        return status_of(path)
    return _version_of_object(path)


def _version_of_object(path: BucketPath) -> str | None:
    found = path.bucket.children(f"{path.parent.key}/")[0].get(path.name)
    return found.version if found else None


def status_of(path: Path) -> Status | None:
    """The status of the file that is there now; None where none can be opened."""
    try:
        # Not of a path: where other hosts change files, only who opens one is told what it is now.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return Status.of(os.fstat(descriptor))
    finally:
        os.close(descriptor)


def checksum_of(content: Any) -> str:
    """The checksum of a manifest's content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _checksum_of_text(text: bytes) -> str:
    return f"text-sha256:{hashlib.sha256(text).hexdigest()}"


def _is_sound(checksum: Any, text: bytes, content: Any) -> bool:
    """Whether a checksum is that of the rest of a manifest, as `Manifest` says."""
    if isinstance(checksum, str) and checksum.startswith("text-"):
        return checksum == _checksum_of_text(text.rpartition(b', "checksum": "')[0])
    return bool(checksum == checksum_of(content))


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
    """Whether it names a folder inside another one, in a length that file systems have, or with no name that one."""
    return isinstance(value, str) and Path(value).name == value != ".." and len(value) < 256


def _is_data_name(value: Any) -> bool:
    return _is_folder_name(value) and value.startswith("data-")


def _is_files(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_inside(path) and _is_file(file) for path, file in value.items())


def _is_inside(path: str) -> bool:
    """Whether it names something below a folder."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return bool(parts) and path[0] != "/" and ".." not in parts and "\0" not in path


def _is_file(value: Any) -> bool:
    match value:
        case {"size": size, **rest}:
            return _is_whole_amount(size) and (not rest or (rest.keys() == {"sha256"} and _is_text(rest["sha256"])))
    return False


def _is_amount(value: Any) -> bool:
    """Whether it is a number of bytes or seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_whole_amount(value: Any) -> bool:
    return isinstance(value, int) and _is_amount(value)


def _is_format(value: Any) -> bool:
    return _is_whole_amount(value) and value == FORMAT


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
    "files": _is_files,
    "source": _is_object,
    "config": _is_object,
    "created": _is_time,
    "seconds": _is_amount,
    "versions": _is_object,
    "writer": _is_object,
    "format": _is_format,
}
"""What every field must be."""
