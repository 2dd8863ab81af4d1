"""The stored tensors of a checkpoint, and what must hold of those that belong together."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NoReturn

import ml_dtypes
import numpy as np

from lazyload.errors import ConfigError, CorruptSourceError
from lazyload.layouts.source import Box, TensorInfo

Read = Callable[[str, Box], np.ndarray]

FLOAT8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
FLOATS = tuple(map(np.dtype, (np.float32, ml_dtypes.bfloat16, np.float16)))
INDICES = (np.dtype(np.int32), np.dtype(np.int64))
WORDS = (np.dtype(np.int32),)
"""Of 32 bits, into which codes are packed."""

EXPONENTS = (np.dtype(np.uint8), np.dtype(ml_dtypes.float8_e8m0fnu))
"""Powers of two with bias 127: bytes, or a dtype of their own."""


@dataclass(frozen=True)
class Stored:
    """What a checkpoint stores.

    Attributes:
        tensors: Shapes and dtypes, by name.
        where: What messages call the checkpoint.
        read: Reads a box of a tensor, into the memory of the one before.
    """

    tensors: Mapping[str, TensorInfo]
    where: str
    read: Read

    def need(self, name: str, dtypes: Collection[np.dtype], of: str, field: str) -> tuple[int, ...]:
        """The shape of a tensor that must be there.

        Args:
            name: The tensor.
            dtypes: What it can be stored in.
            of: The tensor that it is a part of.
            field: What the config says of that, for the message.

        Raises:
            CorruptSourceError: It is missing, or of another dtype.
        """
        if name not in self.tensors:
            raise CorruptSourceError(
                f"{self.where}: {self.shown(of)} is packed ({field}), but {name} is missing; download the checkpoint "
                "again"
            )
        shape, dtype, _ = self.tensors[name]
        if dtype not in dtypes:
            raise CorruptSourceError(
                f"{self.where}: {name} is of {dtype}, but in this packing ({field}) it is of "
                f"{' or '.join(str(each) for each in dtypes)}"
            )
        return shape

    def require_shape(self, name: str, shape: tuple[int, ...], of: str, field: str) -> None:
        """Makes sure that a tensor which is there has the shape that the config and the others mean.

        Raises:
            CorruptSourceError: It has another one.
        """
        if self.tensors[name].shape != shape:
            self.misfit(name, [shape], of, field)

    def misfit(self, name: str, shapes: Collection[tuple[int, ...]], of: str, field: str) -> NoReturn:
        """Says which shapes a tensor could have."""
        expected = " or ".join(str(list(shape)) for shape in shapes)
        raise CorruptSourceError(
            f"{self.where}: {self.shown(of)} is packed ({field}), so {name} must be {expected}, not "
            f"{list(self.tensors[name].shape)}"
        )

    def require_divides(self, size: int, length: int, of: str, field: str) -> None:
        """Makes sure that groups of a size fill a tensor's inputs.

        Raises:
            CorruptSourceError: The last one would be shorter.
        """
        if length % size:
            raise CorruptSourceError(
                f"{self.where}: {of} has {length} inputs, which groups of {size} do not divide ({field})"
            )

    def require_no(self, name: str, field: str, why: str) -> None:
        """Makes sure that a tensor is not there which the config has no place for.

        Raises:
            ConfigError: It is there.
        """
        if name in self.tensors:
            raise ConfigError(f"{self.where}: {name} is stored, but {field} {why}; one of them is wrong")

    def shown(self, name: str) -> str:
        """A tensor with its shape and dtype, for messages."""
        if name not in self.tensors:
            return name
        shape, dtype, _ = self.tensors[name]
        return f"{name}, {list(shape)} of {dtype},"
