"""What makes one key of every few tokens, and what selects among such keys (DeepSeek V4's compressed attention)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.block import CacheArray
from lazyload.architecture.checks import require_positive
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class Compressor:
    """Makes one key of each window of tokens, weighted by gates; a part of `CompressedAttention`.

    Windows follow each other. An overlapping key is made of two of them: each token has one vector for its own window's
    key, and one for the next one's.

    Attributes:
        rate: How many tokens make a window.
        dim: The key's width.
        overlapping: Whether a key is made of its own window and the one before.
        prefix: What the names of its axes, and of what it keeps, begin with.
    """

    rate: int
    dim: int
    overlapping: bool = False
    prefix: str = ""

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "rate", "dim")

    @property
    def span(self) -> int:
        """How many tokens a key is made of."""
        return self.rate * (2 if self.overlapping else 1)

    @property
    def axes(self) -> Mapping[str, int]:
        """A window, the widths of a key and of what it is made of, and the tokens that further keys are made of."""
        width = self.dim * (2 if self.overlapping else 1)
        return {
            "window": self.rate,
            "kv_gate": 2,
            "window_past": self.span,
            f"{self.prefix}key_dim": self.dim,
            f"{self.prefix}window_dim": width,
        }

    def parameters(self, role: str) -> Mapping[str, str]:
        """The table of its parameters; what enters weights and norm stays in float32.

        Args:
            role: What their roles begin with.
        """
        width = f"{self.prefix}window_dim"
        return {
            "kv_proj.kernel": f"{role}.kv : embed {width}",
            "gate_proj.kernel": f"{role}.gate : embed {width}",
            "position_bias": f"{role}.position_bias : window {width} ; as float32",
            "kv_norm.scale": f"{role}.norm : {self.prefix}key_dim ; as float32",
        }

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """The keys, one for each window, and what the next ones are made of."""
        return {
            f"{self.prefix}keys": CacheArray(("slot", f"{self.prefix}key_dim"), every=self.rate),
            f"{self.prefix}past": CacheArray(("window_past", "kv_gate", f"{self.prefix}window_dim")),
        }


@dataclass(frozen=True, kw_only=True)
class CompressedIndexer:
    """Selects the compressed keys that a token attends to, by smaller ones that it makes of the same windows.

    Attributes:
        num_heads: Its heads.
        compressor: What makes its keys.
        num_selected: How many keys a token attends to; it sees them all where there are no more.
    """

    name: ClassVar[str] = "indexer"

    num_heads: int
    compressor: Compressor
    num_selected: int

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "num_selected")

    @property
    def axes(self) -> Mapping[str, int]:
        """Its heads and their width, and its compressor's."""
        return {**self.compressor.axes, "index_head": self.num_heads, "index_dim": self.compressor.dim}

    @property
    def parameters(self) -> Mapping[str, str]:
        """Queries from the compressed query, the heads' weights from the token, and its compressor's."""
        return {
            **{f"compressor.{path}": entry for path, entry in self.compressor.parameters("indexer").items()},
            "q_b_proj.kernel": "indexer.q : q_rank index_head index_dim",
            "weights_proj.kernel": "indexer.weights : embed index_head ; as float32",
        }
