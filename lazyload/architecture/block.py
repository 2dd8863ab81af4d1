"""Blocks: what every mixer and every feed-forward says of itself.

The table of a block has one row for each of its parameters: the path below the block's module, and in the notation of
`lazyload.layouts` the role and the axes. For two of an attention's parameters:

    "q_proj.kernel"    "attn.q : embed head head_dim"
    "sinks"            "attn.sinks : head"
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol


class Block(Protocol):
    """A mixer or a feed-forward."""

    name: ClassVar[str]
    """The attribute of a layer's module that holds the block's, and so a part of its parameters' paths."""

    @property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that its table speaks of, but `embed`, which is the model's.

        An axis whose name ends in `head` or `mlp` is what tensor parallelism splits by default.
        """

    @property
    def parameters(self) -> Mapping[str, str]:
        """The table of its parameters: from path to role and axes."""


class CacheArray(NamedTuple):
    """One array of what a mixer keeps of the tokens seen so far.

    Attributes:
        axes: After the batch; `slot` has one place for each token that the cache can hold, `1` is a dimension of that
            size, the rest are the block's.
        dtype: The name of its dtype where it is not the one asked for.
        every: How many tokens share a place of `slot`.
    """

    axes: tuple[str, ...]
    dtype: str | None = None
    every: int = 1


class Mixer(Block, Protocol):
    """A block through which tokens see each other."""

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """What it keeps of the tokens seen so far, by name."""
