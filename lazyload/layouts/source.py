"""What layouts need to know of a checkpoint's tensors: their shapes, their dtypes, and how to read a box of one.

In the worked example of this folder, `model.layers.1.self_attn.q_proj.weight` is `TensorInfo((32, 16), float32)`, and
head 2 of it the box `(slice(16, 24), slice(0, 16))`.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

Box = tuple[slice, ...]
"""One slice a dimension, step 1, with `0 <= start <= stop <= size`."""


class TensorInfo(NamedTuple):
    """A tensor as a source shows it.

    Attributes:
        shape: Its shape.
        dtype: Its dtype.
        order: Its dimensions, outermost first, as they are stored; empty where that is their order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    order: tuple[int, ...] = ()

    @property
    def outermost(self) -> int:
        """The dimension that is stored outermost; 0 of a scalar."""
        return self.order[0] if self.order else 0

    @property
    def rows(self) -> int:
        """The size of that one; 1 of a scalar."""
        return self.shape[self.outermost] if self.shape else 1


class TensorSource(Protocol):
    """A checkpoint whose tensors can be read box by box."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by its name."""

    def read(self, name: str, index: Box) -> np.ndarray:
        """Reads one box of a tensor, an array of any strides, valid until the thread's next read."""

    def position(self, name: str) -> int:
        """Where a tensor stands in the order in which its source can be read without waiting."""
