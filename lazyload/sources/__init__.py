"""Where Hugging Face checkpoints come from: the hub, folders, and whatever fsspec reaches."""

import os
import re
from collections.abc import Mapping
from typing import Any

from lazyload.errors import SourceNotFoundError, UnsupportedFormatError
from lazyload.progress import CallProgress
from lazyload.sources.adapter import AdapterFiles
from lazyload.sources.content import Contents
from lazyload.sources.files import CONFIG, Files, no_config, parse_json
from lazyload.sources.local import LocalFiles
from lazyload.sources.reference import ModelReference
from lazyload.sources.source import Source

__all__ = ["AdapterFiles", "ModelReference", "Source", "open_adapter", "open_source"]

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
    """Opens an adapter, and reads it: it is small beside its base model.

    Args:
        reference: Which one: an id of the hub, a folder or a URL.
        config: The name of its config.
        weights: The name of its file of weights.

    Raises:
        SourceNotFoundError: There is no such adapter, or it lacks a file.
        AccessDeniedError: It may not be read.
        CorruptSourceError: A file is malformed.
        UnsupportedFormatError: A tensor has a dtype that is not read.
    """
    files = _files(reference, None, None, config)
    try:
        found = files.find(config)
        if found is None:
            raise SourceNotFoundError(f"{files.name} has no {config}; give the folder or repository of a PEFT adapter")
        content = files.find(weights)
        if content is None:
            raise SourceNotFoundError(f"{files.name} has no {weights}; only safetensors are read")
        parsed = parse_json(f"{files.name}: {config}", found)
        return AdapterFiles(files.name, parsed, {config: found, weights: content}, weights)
    finally:
        files.close()


def _files(
    reference: ModelReference,
    contents: Contents | None,
    progress: CallProgress | None,
    config: str = CONFIG,
    answers: Mapping[str, Any] | None = None,
) -> Files:
    # The hub's and other file systems' libraries take a while to import, and a folder needs neither.
    if reference.is_hub_id:
        from lazyload.sources.answers import Answers
        from lazyload.sources.hub import HubFiles

        return HubFiles(reference, config, Answers.from_json(answers) if answers else None)
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
