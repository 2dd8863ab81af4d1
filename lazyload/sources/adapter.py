"""The files of an adapter: a small JSON file, and one of safetensors, which is held in memory."""

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np

from lazyload.errors import ArgumentError, CorruptSourceError
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.files import parse_json
from lazyload.sources.reference import ModelReference
from lazyload.sources.safetensors import StoredTensor, parse_header, read_box, read_header

_HUB_PATH = re.compile(
    r"(?:hf://)?(?P<id>[\w.-]++(?:/[\w.-]++)?+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@]+))?(?:/(?P<subfolder>.+?))?/?"
)
"""A place on the hub, as `huggingface_hub.HfFileSystem` writes it."""

_WITH_REVISION = re.compile(r"\w[\w.-]*(?:/[\w.-]+)?@")
"""How one begins that says so by its revision alone."""


def adapter_reference(
    adapter: str | os.PathLike[str] | None, token: str | bool | None, local_files_only: bool
) -> ModelReference | None:
    """Which adapter a call names; None for none.

    Raises:
        ArgumentError: It is neither a text nor a path, or starts as a path of the hub and is none.

    Example:
        >>> adapter_reference("org/name@v1", None, False)
        ModelReference(model='org/name', revision='v1', local_files_only=False)
        >>> found = adapter_reference("hf://org/name@feature%2Fx/checkpoint-100", None, False)
        >>> found.revision, found.subfolder
        ('feature/x', 'checkpoint-100')
    """
    if adapter is None:
        return None
    if not isinstance(adapter, str | os.PathLike) or not os.fspath(adapter):
        raise ArgumentError(f"adapter={adapter!r:.200}: give the hub id, the folder or the URL of a PEFT adapter")
    plain = ModelReference(adapter, token=token, local_files_only=local_files_only)
    if not isinstance(adapter, str):
        return plain
    is_url = adapter.startswith("hf://")
    if not is_url and (_WITH_REVISION.match(adapter) is None or os.path.exists(plain.folder)):
        return plain
    if (match := _HUB_PATH.fullmatch(adapter)) is None:
        raise ArgumentError(f"adapter={adapter!r:.200}: a place on the hub is hf://NAME@REVISION/FOLDER")
    revision = unquote(match["revision"] or "main")
    return ModelReference(match["id"], revision, token, local_files_only, match["subfolder"] or "", on_hub=True)


class AdapterFiles:
    """An adapter's config and weights, read when they are asked for.

    Attributes:
        name: What messages call it.
        identity: What changes whenever the content does, for the key.
        origin: What an entry's manifest says of it.
    """

    def __init__(
        self,
        name: str,
        identity: Mapping[str, Any],
        origin: Mapping[str, Any],
        read: Callable[[], tuple[bytes, bytes]],
        config: str,
        weights: str,
    ):
        """Reads nothing.

        Args:
            name: What messages call it.
            identity: What changes whenever the content does.
            origin: What an entry's manifest says of it.
            read: Reads its config and its weights.
            config: The name of its config.
            weights: The name of its file of weights.
        """
        self.name = name
        self.identity = identity
        self.origin = origin
        self._read_files = read
        self._config_name = config
        self._weights_name = weights

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """Its parsed config.

        Raises:
            SourceNotFoundError: It lacks a file, or is out of reach.
            CorruptSourceError: It is malformed.
        """
        return parse_json(f"{self.name}: {self._config_name}", self._content[0])

    @functools.cached_property
    def _content(self) -> tuple[bytes, memoryview]:
        config, weights = self._read_files()
        return config, memoryview(weights)

    @functools.cached_property
    def _stored(self) -> Mapping[str, StoredTensor]:
        where, weights = f"{self.name}: {self._weights_name}", self._content[1]
        header = read_header(self._read_into, len(weights), where)
        return parse_header(header, len(weights), self._weights_name, where)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name.

        Raises:
            SourceNotFoundError: The adapter lacks a file, or is out of reach.
            CorruptSourceError: The file of weights is malformed.
            UnsupportedFormatError: A tensor has a dtype that is not read.
        """
        return {name: stored.info for name, stored in self._stored.items()}

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor.

        Raises:
            SourceNotFoundError: The adapter lacks a file, or is out of reach.
            CorruptSourceError: The file of weights is malformed.
            UnsupportedFormatError: A tensor has a dtype that is not read.
        """
        return read_box(self._read_into, self._stored[name], index)

    def whole(self, name: str) -> np.ndarray:
        """A tensor, as a view of what is held in memory; not to be written to.

        Raises:
            SourceNotFoundError: The adapter lacks a file, or is out of reach.
            CorruptSourceError: The file of weights is malformed.
            UnsupportedFormatError: A tensor has a dtype that is not read.
        """
        stored = self._stored[name]
        shape, dtype, _ = stored.info
        return np.frombuffer(self._content[1], dtype, math.prod(shape), stored.start).reshape(shape)

    def _read_into(self, start: int, out: memoryview) -> None:
        weights = self._content[1]
        if start + len(out) > len(weights):
            raise CorruptSourceError(f"{self.name}: its weights end at byte {len(weights)}; download it again")
        out[:] = weights[start : start + len(out)]


def content_identity(content: Mapping[str, bytes]) -> dict[str, Any]:
    """What changes whenever the content of an adapter's files does."""
    return {name: hashlib.sha256(bytes_).hexdigest() for name, bytes_ in sorted(content.items())}
