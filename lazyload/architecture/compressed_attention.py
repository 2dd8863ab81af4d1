"""DeepSeek V4's attention: one key, which is the value, too; its own tokens nearby, and compressed ones further back.

There is compressed sparse attention (CSA: overlapping windows and an indexer) and heavily compressed attention (HCA:
longer windows); transformers' `modeling_deepseek_v4.py` (5.24) names the sections of the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.block import CacheArray
from lazyload.architecture.checks import require, require_positive
from lazyload.architecture.compressor import CompressedIndexer, Compressor
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.architecture.rope import Rope
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class CompressedAttention:
    """Softmax attention with sinks to one head of keys that are the values, too.

    Keys are rotated, and so what is attended to; it is rotated back at the query's position.

    Attributes:
        num_heads: Query heads.
        head_dim: A head's width.
        q_rank: Width of the compressed query.
        num_groups: Groups of heads; each is projected to `o_rank`, and all together to the model's width.
        o_rank: What a group of heads is projected to.
        window: How many tokens back, itself included, a token sees one by one.
        rope: The rotary embedding of a head's last dimensions, in pairs of neighbours; None for none.
        norm: The norms of queries and keys, that of each head without weights.
        compressor: What makes keys of what lies further back; None for none.
        indexer: What selects among those; None for all of them.
    """

    name: ClassVar[str] = "attn"

    num_heads: int
    head_dim: int
    q_rank: int
    num_groups: int
    o_rank: int
    window: int
    rope: Rope | None = None
    norm: Norm = RMS_NORM
    compressor: Compressor | None = None
    indexer: CompressedIndexer | None = None

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "head_dim", "q_rank", "num_groups", "o_rank", "window")
        require(
            self.num_heads % self.num_groups == 0,
            self,
            f"num_heads = {self.num_heads} is no multiple of num_groups = {self.num_groups}",
        )
        widths = [self.head_dim, *([self.indexer.compressor.dim] if self.indexer else [])]
        if self.rope is not None:
            require(self.rope.dim <= min(widths), self, f"rope rotates {self.rope.dim} of {min(widths)} dimensions")
            require(
                self.rope.kind not in ("dynamic", "longrope"),
                self,
                f"a rotary embedding that depends on the sequence's length, {self.rope.kind!r}, is not implemented for "
                "keys of windows",
            )
        require(
            self.compressor is None or self.compressor.dim == self.head_dim,
            self,
            "compressed keys are as wide as others",
        )
        require(
            self.indexer is None
            or (self.compressor is not None and self.compressor.span == self.indexer.compressor.span),
            self,
            "an indexer selects among the keys of a compressor of the same windows",
        )

    @property
    def num_kv_heads(self) -> int:
        """One, for all query heads."""
        return 1

    @property
    def scale(self) -> float:
        """What the logits are multiplied with."""
        scale: float = self.head_dim**-0.5
        return scale

    @property
    def axes(self) -> Mapping[str, int]:
        """Heads and groups of them, the ranks, and the axes of compressor and indexer."""
        axes = {
            "head": self.num_heads,
            "head_dim": self.head_dim,
            "q_rank": self.q_rank,
            "group_head": self.num_groups,
            "member": self.num_heads // self.num_groups,
            "o_rank": self.o_rank,
        }
        for part in (self.compressor, self.indexer):
            axes |= {} if part is None else part.axes
        return axes

    @property
    def parameters(self) -> Mapping[str, str]:
        """The projections, norms and sinks, and what compressor and indexer have; norms and sinks stay in float32."""
        table = {
            "q_a_proj.kernel": "attn.q_a : embed q_rank",
            "q_a_norm.scale": "attn.q_a_norm : q_rank ; as float32",
            "q_b_proj.kernel": "attn.q_b : q_rank head head_dim",
            "kv_proj.kernel": "attn.kv : embed head_dim",
            "kv_norm.scale": "attn.kv_norm : head_dim ; as float32",
            "o_a_proj.kernel": "attn.o_a : group_head member head_dim o_rank",
            "o_b_proj.kernel": "attn.o_b : group_head o_rank embed",
            "sinks": "attn.sinks : head ; as float32",
        }
        if self.compressor is not None:
            rows = self.compressor.parameters("compressor")
            table |= {f"compressor.{path}": entry for path, entry in rows.items()}
        if self.indexer is not None:
            table |= {f"{self.indexer.name}.{path}": entry for path, entry in self.indexer.parameters.items()}
        return table

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """The keys, how many tokens there were without padding, and what compressor and indexer keep."""
        arrays = {"k": CacheArray(("slot", "1", "head_dim"))}
        if self.compressor is not None:
            arrays |= {"seen": CacheArray((), "int32"), **self.compressor.cache}
        return arrays if self.indexer is None else arrays | dict(self.indexer.compressor.cache)
