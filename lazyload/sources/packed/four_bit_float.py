"""Matrices of 4-bit floats (E2M1), two a byte, with a scale for each group along a row, and often one for the whole.

NVFP4 has groups of 16 with scales in FP8 and a scale of the whole, by which ModelOpt multiplies and compressed-tensors
divides (https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/BlockScaling.html). MXFP4 has groups of
32 with powers of two. DeepSeek V4 stores its bytes as signed ones.
"""

from dataclasses import dataclass, replace

import numpy as np

from lazyload.layouts.source import Box, TensorInfo
from lazyload.sources.packed.bits import FP4_PAIRS, look_up
from lazyload.sources.packed.blocks import Blocks, Grid, extents, tiles, within
from lazyload.sources.packed.packed import Empty
from lazyload.sources.packed.stored import Read

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class FourBitFloat:
    """`code * (scale * whole)` or `code * (scale / whole)`, the scales first, in float32, as both programs do.

    Attributes:
        codes: The stored tensor, `[out, in / 2]`, the low code first.
        shape: Of the unpacked one.
        scales: The scales of its groups, an even number of values each.
        whole: The scale of the whole, if any.
        divides: Whether it divides.
    """

    codes: str
    shape: tuple[int, ...]
    scales: Grid
    whole: Grid | None = None
    divides: bool = False

    @property
    def info(self) -> TensorInfo:
        """The matrix in float32."""
        return TensorInfo(self.shape, _FLOAT32)

    @property
    def parts(self) -> tuple[str, ...]:
        """Codes and scales."""
        return (self.codes, self.scales.tensor, *([self.whole.tensor] if self.whole else []))

    def check(self, read: Read) -> None:
        """No value says where others stand."""

    def read(self, read: Read, box: Box, empty: Empty) -> np.ndarray:
        """Unpacks a box, with the bytes that it cuts through."""
        *outer, columns = box
        in_bytes = slice(columns.start // 2, -(-columns.stop // 2))
        wide = (*outer, slice(2 * in_bytes.start, 2 * in_bytes.stop))
        scales = self._scales(read, wide)
        codes = read(self.codes, (*outer, in_bytes)).view(np.uint8)
        values = empty(extents(wide), _FLOAT32)
        for tile in tiles(wide):
            place = within(tile, wide)
            part = values[place]
            look_up(FP4_PAIRS, codes[place[:-1]], part.view(np.uint64))
            part *= scales.of(tile)
        return values[within(box, wide)]

    def _scales(self, read: Read, box: Box) -> Blocks:
        """The scales of the groups that a box meets, the scale of the whole included."""
        scales = self.scales.read(read, box)
        if self.whole is None:
            return scales
        whole = self.whole.read(read, box).numbers
        return replace(scales, numbers=scales.numbers / whole if self.divides else scales.numbers * whole)
