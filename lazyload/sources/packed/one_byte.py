"""Tensors of one byte a value, FP8 or INT8, with a scale for the whole, a row, a group, or a square."""

from dataclasses import dataclass

import numpy as np

from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.packed.bits import byte_values, look_up
from lazyload.sources.packed.blocks import Grid, extents, tiles, within
from lazyload.sources.packed.packed import Empty
from lazyload.sources.packed.stored import Read

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class OneByte:
    """`(code - zero) * scale`, where a code is a number of 8 bits.

    Attributes:
        weight: The stored tensor.
        shape: Its shape.
        dtype: The dtype that it is stored in.
        scales: The scales of its blocks.
        zeros: Their zero points, if any.
    """

    weight: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scales: Grid
    zeros: Grid | None = None

    @property
    def info(self) -> TensorInfo:
        """The tensor in float32."""
        return TensorInfo(self.shape, _FLOAT32)

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes, scales and zero points."""
        return (self.weight, self.scales.tensor, *([self.zeros.tensor] if self.zeros else []))

    def check(self, read: Read) -> None:
        """No value says where others stand."""

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks a box."""
        scales = self.scales.read(read, box)
        zeros = self.zeros.read(read, box) if self.zeros else None
        codes = read(self.weight, box).view(np.uint8)
        table = byte_values(self.dtype)
        values = empty(extents(box), _FLOAT32)
        for tile in tiles(box):
            place = within(tile, box)
            part = values[place]
            look_up(table, codes[place], part)
            if zeros:
                part -= zeros.of(tile)
            part *= scales.of(tile)
        return values
