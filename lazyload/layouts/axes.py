"""What layouts need to know of a model: the roles that it has, and the sizes of their axes.

A role is what an array is, whatever the format: `attn.q`, the query projection. Its axes have names: `layer head
head_dim embed`. An axis may have parts, named too: the worked example of this folder has heads of 8 that are two rotary
halves of 4, so that `head_dim` may be written `half pair`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


class Group(NamedTuple):
    """Layers that have a role in the same sizes.

    Example:
        >>> sizes = {"layer": 2, "head": 4, "head_dim": 8, "half": 2, "pair": 4, "embed": 16}
        >>> Group(range(2), sizes).sizes["head_dim"]
        8

    Attributes:
        layers: Their indices of the axis `layer`; none for a role that no layer has, such as the embedding.
        sizes: The size of every axis, in these layers; `layer` counts all layers of the model.
    """

    layers: Sequence[int]
    sizes: Mapping[str, int]


class Axes(Protocol):
    """The roles that a model has, and the sizes of their axes."""

    @property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        """Axes that may also be written by their parts, outermost first: `{"head_dim": ("half", "pair")}`."""

    def groups(self, role: str) -> Sequence[Group]:
        """The layers that have the role, those of the same sizes together; empty where the model has no such role."""
