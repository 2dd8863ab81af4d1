"""The indexer of sparse attention (DeepSeek V3.2, https://arxiv.org/abs/2512.02556, section 2.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.checks import require, require_positive
from lazyload.architecture.rope import Rope
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class Indexer:
    """A small attention of its own, whose scores say which keys a token attends to; a part of `LatentAttention`.

    Attributes:
        num_heads: Its heads.
        head_dim: Width of a head's queries, and of the keys that all heads share.
        num_selected: How many keys a token attends to; it sees them all where there are no more.
        rope: The rotary embedding of its queries and keys; None for none.
    """

    name: ClassVar[str] = "indexer"

    num_heads: int
    head_dim: int
    num_selected: int
    rope: Rope | None = None

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "head_dim", "num_selected")
        if self.rope is not None:
            require(self.rope.dim <= self.head_dim, self, f"rope rotates {self.rope.dim} of {self.head_dim} dimensions")

    @property
    def axes(self) -> Mapping[str, int]:
        """Its heads and their width."""
        return {"index_head": self.num_heads, "index_dim": self.head_dim}

    @property
    def parameters(self) -> Mapping[str, str]:
        """Queries from the compressed query, keys and the heads' weights from the token, the keys' norm.

        The weights and the norm stay in float32, in which the selection is decided.
        """
        return {
            "wq_b.kernel": "indexer.q : q_rank index_head index_dim",
            "wk.kernel": "indexer.k : embed index_dim",
            "k_norm.scale": "indexer.k_norm : index_dim ; as float32",
            "k_norm.bias": "indexer.k_norm.bias : index_dim ; as float32",
            "weights_proj.kernel": "indexer.weights : embed index_head ; as float32",
        }
