"""Where Hugging Face checkpoints come from: the hub, folders, and whatever fsspec reaches."""

import os
from pathlib import Path

from lazyload.errors import SourceNotFoundError
from lazyload.sources.files import CONFIG, Files, parse_json
from lazyload.sources.local import LocalFiles
from lazyload.sources.source import Source

__all__ = ["Source", "is_hub_id", "open_source"]


def open_source(
    model: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Source:
    """Opens a checkpoint; of its weights, nothing is read.

    Args:
        model: A local folder, an fsspec URL, or a hub id, in this order.
        revision: A branch, tag or commit of a hub model.
        token: A hub token; None for the one that is logged in, False for none.
        local_files_only: Whether the hub must not be asked.

    Raises:
        SourceNotFoundError: There is no such model, or it lacks a file.
        AccessDeniedError: It may not be read.
        CorruptSourceError: `config.json` or the index is malformed.
        UnsupportedFormatError: The weights are in a form that is not read.
    """
    files = _files(model, revision, token, local_files_only)
    try:
        content = files.find(CONFIG)
        if content is None:
            raise SourceNotFoundError(f"{files.name} has no {CONFIG}; give the folder of a Hugging Face checkpoint")
        return Source(files, parse_json(f"{files.name}: {CONFIG}", content))
    except BaseException:
        files.close()
        raise


def is_hub_id(model: str | os.PathLike[str]) -> bool:
    """Whether the model is one of the hub, as opposed to a folder or a URL."""
    return isinstance(model, str) and "://" not in model and not _folder(model).exists() and not _is_path(model)


def _files(model: str | os.PathLike[str], revision: str | None, token: str | bool | None, offline: bool) -> Files:
    # The hub's and other file systems' libraries take a while to import, and a folder needs neither.
    if is_hub_id(model):
        from lazyload.sources.hub import HubFiles

        return HubFiles(os.fspath(model), revision, token, offline)
    if revision is not None:
        raise SourceNotFoundError(f"{os.fspath(model)} is no model of the hub and has no revision {revision!r}")
    text = os.fspath(model)
    if "://" in text and not text.startswith(("file://", "local://")):
        from lazyload.sources.remote import RemoteFiles

        return RemoteFiles(text)
    folder = _folder(text.split("://", 1)[-1])
    if not folder.is_dir():
        raise SourceNotFoundError(f"{folder} is not a folder")
    return LocalFiles(folder)


def _folder(text: str | os.PathLike[str]) -> Path:
    return Path(os.path.abspath(Path(text).expanduser()))


def _is_path(text: str) -> bool:
    """Whether a text can only be a path: absolute, relative to here or home, or too deep for a hub id."""
    return text.startswith(("/", "./", "../", "~", ".\\")) or text in (".", "..") or text.count("/") > 1
