"""What a packed tensor is, and what a scheme finds.

A packed tensor is stored as several: codes of few bits, scales, zero points. A *packing* says how one of them is
unpacked, box by box; a *scheme* is what a checkpoint's config says, and finds the packings of its tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.packed.stored import Read, Stored

Empty = Callable[[Sequence[int], np.dtype], np.ndarray]
"""Makes an array; only one is in use at a time."""


class Packed(Protocol):
    """A tensor that is stored as several."""

    @property
    def info(self) -> TensorInfo:
        """Shape and dtype of the unpacked tensor."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The stored tensors that it consists of."""

    def check(self, read: Read) -> None:
        """Looks at the values that say where others stand, before anything is unpacked.

        Raises:
            CorruptSourceError: One is out of range.
        """

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks one box, in float32, with the scales that it needs and no others.

        Args:
            read: Reads stored tensors.
            box: The box of the unpacked tensor.
            empty: Makes the array that is returned, of any strides.
        """


class Scheme(Protocol):
    """How a checkpoint's weights are packed, as its config says."""

    def find(self, stored: Stored) -> Mapping[str, Packed]:
        """The packed tensors, by the names of the unpacked ones.

        Raises:
            CorruptSourceError: A part is missing, or its shape or dtype does not fit the others or the config.
            ConfigError: The config leaves alone what is stored packed.
        """
