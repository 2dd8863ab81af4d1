"""Multi-head latent attention (DeepSeek V2, https://arxiv.org/abs/2405.04434, section 2.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.block import CacheArray
from lazyload.architecture.checks import require, require_positive
from lazyload.architecture.indexer import Indexer
from lazyload.architecture.rope import Rope
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Softmax attention whose keys and values come from one latent vector a token.

    Attributes:
        num_heads: Heads.
        q_rank: Width of the compressed query; None where queries are projected directly.
        kv_rank: Width of the compressed keys and values.
        nope_dim: Width of a head's part without rotary embedding.
        rope_dim: Width of a head's rotated part; shared by all heads for the keys.
        v_dim: Width of a head's values.
        rope: The rotary embedding; None for none.
        query_scale: What the logits are multiplied with; None for `(nope_dim + rope_dim) ** -0.5`.
        a_bias: Whether the projections to the latents have biases.
        o_bias: Whether the output projection has a bias.
        indexer: What selects the keys that a token attends to; None for all (DeepSeek V3.2, GLM 5).
        shares_selection: Whether a token attends to what the last indexer of an earlier layer has selected (GLM 5).
    """

    name: ClassVar[str] = "attn"

    num_heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    rope: Rope | None = None
    query_scale: float | None = None
    a_bias: bool = False
    o_bias: bool = False
    indexer: Indexer | None = None
    shares_selection: bool = False

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "kv_rank", "nope_dim", "rope_dim", "v_dim")
        if self.q_rank is not None:
            require_positive(self, "q_rank")
        if self.rope is not None:
            require(self.rope.dim == self.rope_dim, self, f"rope rotates {self.rope.dim} of {self.rope_dim} dimensions")
        require(
            self.indexer is None or self.q_rank is not None,
            self,
            "an indexer works on the compressed query: q_rank must not be None",
        )
        require(
            self.indexer is None or not self.shares_selection, self, "an indexer of its own, and another's selection"
        )

    @property
    def num_kv_heads(self) -> int:
        """As many as query heads."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a query and of an expanded key."""
        return self.nope_dim + self.rope_dim

    @property
    def scale(self) -> float:
        """What the logits are multiplied with."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    @property
    def axes(self) -> Mapping[str, int]:
        """Heads, latents, and the widths of what comes of them."""
        axes = {
            "head": self.num_heads,
            "q_rank": self.q_rank or 0,
            "kv_rank": self.kv_rank,
            "kv_rank_rope": self.kv_rank + self.rope_dim,
            "qk_dim": self.nope_dim + self.rope_dim,
            "nope_v_dim": self.nope_dim + self.v_dim,
            "v_dim": self.v_dim,
            "rope_dim": self.rope_dim,
        }
        return axes if self.indexer is None else axes | dict(self.indexer.axes)

    @property
    def parameters(self) -> Mapping[str, str]:
        """The projections to and from the latents, the latents' norms, and what the indexer has."""
        table = {
            "kv_a_proj_with_mqa.kernel": "attn.kv_a : embed kv_rank_rope",
            "kv_a_layernorm.scale": "attn.kv_a_norm : kv_rank",
            "kv_b_proj.kernel": "attn.kv_b : kv_rank head nope_v_dim",
            "o_proj.kernel": "attn.o : head v_dim embed",
        }
        if self.q_rank is None:
            table["q_proj.kernel"] = "attn.q : embed head qk_dim"
        else:
            table |= {
                "q_a_proj.kernel": "attn.q_a : embed q_rank",
                "q_a_layernorm.scale": "attn.q_a_norm : q_rank",
                "q_b_proj.kernel": "attn.q_b : q_rank head qk_dim",
            }
        if self.a_bias:
            table["kv_a_proj_with_mqa.bias"] = "attn.kv_a.bias : kv_rank_rope"
            if self.q_rank is not None:
                table["q_a_proj.bias"] = "attn.q_a.bias : q_rank"
        if self.o_bias:
            table["o_proj.bias"] = "attn.o.bias : embed"
        if self.indexer is not None:
            table |= {f"{self.indexer.name}.{path}": entry for path, entry in self.indexer.parameters.items()}
        return table

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """The latents, and the rotated key that all heads share: DeepSeek V3 needs 576 numbers a token, not 40,960.

        And the indexer's keys, where there is one.
        """
        arrays = {
            "k": CacheArray(("slot", "1", "kv_rank")),
            "v": CacheArray(("slot", "1", "rope_dim")),
        }
        return arrays if self.indexer is None else arrays | {"index_k": CacheArray(("slot", "1", "index_dim"))}
