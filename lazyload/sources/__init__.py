"""Where Hugging Face checkpoints come from: the hub, folders, and whatever fsspec reaches."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.errors import SourceNotFoundError, UnsupportedFormatError
from lazyload.progress import CallProgress
from lazyload.sources.adapter import AdapterFiles, adapter_reference, content_identity
from lazyload.sources.content import Contents
from lazyload.sources.files import CONFIG, Files, no_config, parse_json
from lazyload.sources.local import LocalFiles
from lazyload.sources.reference import ModelReference
from lazyload.sources.source import Source

__all__ = [
    "AdapterFiles",
    "ModelReference",
    "Source",
    "adapter_at",
    "adapter_reference",
    "open_adapter",
    "open_source",
]

_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/(?P<id>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+))?"
)

_INFINITY = {"__float__": "Infinity"}
"""What transformers 5 writes for an infinite number, for which earlier releases wrote `Infinity` in `config.json`."""


def open_source(
    reference: ModelReference,
    contents: Contents | None = None,
    progress: CallProgress | None = None,
    *,
    answers: Mapping[str, Any] | None = None,
) -> Source:
    """Opens a checkpoint; of its weights, nothing is read.

    A text is taken for a URL, else for a folder that is there, else for a hub id.

    Args:
        reference: Which checkpoint.
        contents: What is remembered of folders.
        progress: The call's, where weights must be read to tell which they are; None for nobody's.
        answers: What the source of another process has been answered of the same model of the hub.

    Raises:
        SourceNotFoundError: There is no such model, or it lacks a file.
        AccessDeniedError: It may not be read.
        CorruptSourceError: `config.json` or the index is malformed.
        UnsupportedFormatError: The weights are in a form that is not read.
    """
    files = _files(reference, contents, progress, answers=answers)
    try:
        content = files.find(CONFIG)
        if content is None:
            raise no_config(files.name, files.names())
        return Source(files, parse_json(f"{files.name}: {CONFIG}", content, infinity=_INFINITY))
    except BaseException:
        files.close()
        raise


def open_adapter(reference: ModelReference, config: str, weights: str) -> AdapterFiles:
    """Opens an adapter; of one on the hub, nothing is read but which commit is meant.

    Args:
        reference: Which one: one of the hub, a folder or a URL.
        config: The name of its config.
        weights: The name of its file of weights.

    Raises:
        SourceNotFoundError: There is no such adapter, or it lacks a file.
        AccessDeniedError: It may not be read.
    """
    with contextlib.closing(_files(reference, None, None, config)) as files:
        if reference.is_hub_id:
            return adapter_at(reference, files.identity(), files.origin, config, weights)
        content = {name: _of_adapter(files, name) for name in (config, weights)}
    identity, origin = content_identity(content), {"id": reference.name}
    return AdapterFiles(files.name, identity, origin, lambda: (content[config], content[weights]), config, weights)


def adapter_at(
    reference: ModelReference, identity: Mapping[str, Any], origin: Mapping[str, Any], config: str, weights: str
) -> AdapterFiles:
    """An adapter of the hub whose commit is known; it is read only when it is needed.

    Args:
        reference: Which one.
        identity: What the key says of it, its commit among that.
        origin: What an entry's manifest says of it.
        config: The name of its config.
        weights: The name of its file of weights.
    """
    at_commit = replace(reference, revision=identity["commit"])

    def read() -> tuple[bytes, bytes]:
        with contextlib.closing(_files(at_commit, None, None, config)) as files:
            return _of_adapter(files, config), _of_adapter(files, weights)

    return AdapterFiles(reference.name, identity, origin, read, config, weights)


def _of_adapter(files: Files, name: str) -> bytes:
    """The content of one of an adapter's files.

    Raises:
        SourceNotFoundError: There is none.
    """
    content = files.find(name)
    if content is None:
        what = "only safetensors are read" if name.endswith(".safetensors") else "give where a PEFT adapter lies"
        raise SourceNotFoundError(f"{files.name} has no {name}; {what}")
    return content


def _files(
    reference: ModelReference,
    contents: Contents | None,
    progress: CallProgress | None,
    config: str = CONFIG,
    answers: Mapping[str, Any] | None = None,
) -> Files:
    # The hub's and other file systems' libraries take a while to import, and a folder needs neither.
    if reference.is_hub_id:
        from lazyload.sources.hub import HubFiles

        return HubFiles(reference, config, answers)
    if page := _HUB_PAGE.match(reference.address):
        at = f" with revision={page['revision']!r}" if page["revision"] else ""
        raise SourceNotFoundError(
            f"{reference.name} is the address of a page of the hub; give the model's name, {page['id']!r}{at}"
        )
    if reference.revision is not None:
        raise SourceNotFoundError(f"{reference.name} is no model of the hub and has no revision {reference.revision!r}")
    if "://" in reference.name and not reference.name.startswith(("file://", "local://")):
        from lazyload.sources.remote import RemoteFiles

        return RemoteFiles(reference.address, reference.subfolder, reference.variant, progress)
    folder = reference.folder / reference.subfolder
    if folder.suffix in (".gguf", ".safetensors") and os.path.isfile(folder):
        raise UnsupportedFormatError(
            f"{folder} is one file; give the folder of a Hugging Face checkpoint, with {CONFIG}"
        )
    if not os.path.isdir(folder):
        raise SourceNotFoundError(f"{folder} is not a folder")
    return LocalFiles(folder, variant=reference.variant, contents=contents, progress=progress)
