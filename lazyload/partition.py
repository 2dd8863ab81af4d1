"""Where arrays lie on a mesh, as values without JAX: over what each dimension is split, and why others are not."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Dimension:
    """One dimension of an array on a mesh.

    Attributes:
        axis: Its logical axis; empty where it is not known.
        size: Its size.
        over: The mesh axes that it is split over, the first one outermost.
        reason: Why every device of a row has all of it, in a few words; empty where it is split.
        refused: The mesh axes that it was to be split over, which do not divide it.
    """

    axis: str
    size: int
    over: tuple[str, ...] = ()
    reason: str = ""
    refused: tuple[str, ...] = ()

    def parts(self, mesh: Mapping[str, int]) -> int:
        """Into how many parts it is split, on a mesh given by its axes' sizes."""
        return math.prod(mesh[name] for name in self.over)


Partition = tuple[Dimension, ...]
"""Where an array lies, dimension by dimension."""


@dataclass(frozen=True)
class Grid:
    """The devices of a mesh.

    Attributes:
        axes: The mesh's axes with their sizes.
        devices: What the devices are called, in the mesh's order, the last axis fastest.
        kind: What they are, `TPU v5e`; empty where no devices are known.
    """

    axes: Mapping[str, int]
    devices: tuple[int, ...]
    kind: str = ""

    def holders(self, partition: Partition) -> dict[tuple[int, ...], tuple[int, ...]]:
        """The devices that hold each piece of an array, by the piece's number along each dimension."""
        found: dict[tuple[int, ...], list[int]] = {}
        places = itertools.product(*map(range, self.axes.values()))
        for device, place in zip(self.devices, places, strict=True):
            at = dict(zip(self.axes, place, strict=True))
            piece = tuple(self._part(dimension, at) for dimension in partition)
            found.setdefault(piece, []).append(device)
        return {piece: tuple(devices) for piece, devices in sorted(found.items())}

    def limits(self, partition: Partition) -> list[tuple[tuple[int, int], ...]]:
        """Start and stop of what each device holds of an array, along each dimension; by the devices' order."""
        found = []
        for place in itertools.product(*map(range, self.axes.values())):
            at = dict(zip(self.axes, place, strict=True))
            extents = [(self._part(one, at), one.size // one.parts(self.axes)) for one in partition]
            found.append(tuple((part * extent, (part + 1) * extent) for part, extent in extents))
        return found

    def _part(self, dimension: Dimension, at: Mapping[str, int]) -> int:
        """The part of a dimension that the device at a place of the mesh holds."""
        part = 0
        for name in dimension.over:
            part = part * self.axes[name] + at[name]
        return part


def pieces(partition: Partition, mesh: Mapping[str, int]) -> int:
    """Into how many pieces an array is cut."""
    return math.prod(dimension.parts(mesh) for dimension in partition)
