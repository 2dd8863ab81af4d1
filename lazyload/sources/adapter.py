"""The files of an adapter: a small JSON file, and one of safetensors, which is held in memory."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lazyload.errors import CorruptSourceError
from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.safetensors import StoredTensor, parse_header, read_box, read_header


class AdapterFiles:
    """An adapter's config and weights.

    Attributes:
        name: What messages call it.
        config: Its parsed config.
    """

    def __init__(self, name: str, config: Mapping[str, Any], content: Mapping[str, bytes], weights: str):
        """Looks at the header of the weights.

        Args:
            name: What messages call it.
            config: Its parsed config.
            content: The content of its files, by name.
            weights: Which of them holds the weights.

        Raises:
            CorruptSourceError: The file of weights is malformed.
            UnsupportedFormatError: A tensor has a dtype that is not read.
        """
        self.name = name
        self.config = config
        self._content = content
        self._weights = memoryview(content[weights])
        where = f"{name}: {weights}"
        header = read_header(self._read_into, len(self._weights), where)
        self._stored: Mapping[str, StoredTensor] = parse_header(header, len(self._weights), weights, where)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What changes whenever the content does, for the key."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self._content.items())}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name."""
        return {name: stored.info for name, stored in self._stored.items()}

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor."""
        return read_box(self._read_into, self._stored[name], index)

    def _read_into(self, start: int, out: memoryview) -> None:
        if start + len(out) > len(self._weights):
            raise CorruptSourceError(f"{self.name}: its weights end at byte {len(self._weights)}; download it again")
        out[:] = self._weights[start : start + len(out)]
