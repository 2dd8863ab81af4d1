"""Softmax attention with grouped query heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lazyload.architecture.block import CacheArray
from lazyload.architecture.checks import require, require_one_of, require_positive
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.architecture.rope import Rope
from lazyload.display.values import differing_fields

AttentionKernel = Literal["dense", "cudnn", "splash"]
"""What computes softmax attention: products of all queries with all keys, cuDNN's kernel, or splash attention."""


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """Queries that grow with their position, `query * (1 + beta * log(1 + floor(position / length)))`.

    Attributes:
        beta: How fast.
        length: Up to which position they stay.
        counted_from: The position of a sequence's first token (Llama 4: 1).
    """

    beta: float
    length: int
    counted_from: int = 0

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "length")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Softmax attention; each key and value head serves `num_heads / num_kv_heads` neighbouring query heads.

    Example:
        >>> attention = Attention(num_heads=4, num_kv_heads=2, head_dim=8, sinks=True)
        >>> attention.parameters["q_proj.kernel"], attention.parameters["sinks"]
        ('attn.q : embed head head_dim', 'attn.sinks : head')

    Attributes:
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        rope: The rotary embedding of queries and keys; None for none.
        window: How many positions back (itself included) a token sees; None sees all.
        chunk: The length of the chunks that a sequence falls into, beyond whose start no token sees; None for none
            (Llama 4).
        query_scale: What the logits are multiplied with; None for `head_dim ** -0.5`.
        temperature: How queries grow with their position, after their rotation; None for not (Ministral 3, Llama 4).
        softcap: Soft cap of the logits; None for none.
        qk_norm: Norm of queries and keys: over each head, over all heads together ("full"), over each head after the
            rotation, without a scale ("bare", Llama 4), or none.
        norm: What that norm is.
        norm_after_rope: Whether queries and keys have it after their rotation instead of before (Hunyuan).
        qkv_clip: The largest magnitude of queries, keys and values, after the norm; None for any (OLMoE).
        qkv_bias: Whether the q, k and v projections have biases.
        o_bias: Whether the output projection has a bias.
        sinks: Whether each head has a learned logit that takes attention away from the tokens (gpt-oss).
        gated: Whether the query projection also makes a gate for each head's output (Qwen 3 Next).
        v_norm: Whether values have a norm over each head, one without a scale (Gemma 4).
        v_from_k: Whether values are what the key projection puts out, before the keys' norm and rotation (Gemma 4).
        kv_layer: The earlier layer whose keys and values these heads attend to; None for the layer's own (Gemma 4).
        keeps_kv: Whether there are projections for keys and values all the same, which nobody reads (Gemma 4's files,
            Tunix's class).
    """

    name: ClassVar[str] = "attn"

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: Rope | None = None
    window: int | None = None
    chunk: int | None = None
    query_scale: float | None = None
    temperature: Temperature | None = None
    softcap: float | None = None
    qk_norm: Literal["head", "full", "bare"] | None = None
    norm: Norm = RMS_NORM
    norm_after_rope: bool = False
    qkv_clip: float | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    sinks: bool = False
    gated: bool = False
    v_norm: bool = False
    v_from_k: bool = False
    kv_layer: int | None = None
    keeps_kv: bool = False

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "num_kv_heads", "head_dim")
        require(
            self.num_heads % self.num_kv_heads == 0,
            self,
            f"num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.num_kv_heads}",
        )
        require_one_of(self, "qk_norm", ("head", "full", "bare", None))
        if self.rope is not None:
            require(self.rope.dim <= self.head_dim, self, f"rope rotates {self.rope.dim} of {self.head_dim} dimensions")
            # Interleaved pairs come out of the rotation as halves, where the norm's scale would not find them.
            in_place = not (self.norm_after_rope and self.rope.interleaved)
            require(in_place, self, "norm_after_rope needs a rope that is not interleaved")
        if self.window is not None:
            require_positive(self, "window")
        if self.chunk is not None:
            require_positive(self, "chunk")
        if self.qkv_clip is not None:
            require(self.qkv_clip > 0, self, f"qkv_clip = {self.qkv_clip!r} must be positive, or None")
        if self.softcap is not None:
            require(self.softcap > 0, self, f"softcap = {self.softcap!r} must be positive, or None")

    @property
    def scale(self) -> float:
        """What the logits are multiplied with."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale

    @property
    def axes(self) -> Mapping[str, int]:
        """Heads and their width; the width is also two rotary halves of pairs."""
        return {
            "head": self.num_heads,
            "kv_head": self.num_kv_heads,
            "head_dim": self.head_dim,
            "half": 2,
            "pair": self.head_dim // 2,
            "query_gate": 2,
        }

    @property
    def parameters(self) -> Mapping[str, str]:
        """The projections, their biases, the norms of queries and keys, the sinks."""
        query = "head query_gate head_dim" if self.gated else "head head_dim"
        table = {
            "q_proj.kernel": f"attn.q : embed {query}",
            "k_proj.kernel": "attn.k : embed kv_head head_dim",
            "v_proj.kernel": "attn.v : embed kv_head head_dim",
            "o_proj.kernel": "attn.o : head head_dim embed",
        }
        if self.qkv_bias:
            table |= {
                "q_proj.bias": f"attn.q.bias : {query}",
                "k_proj.bias": "attn.k.bias : kv_head head_dim",
                "v_proj.bias": "attn.v.bias : kv_head head_dim",
            }
        if self.o_bias:
            table["o_proj.bias"] = "attn.o.bias : embed"
        if self.qk_norm == "head":
            table |= {"q_norm.scale": "attn.q_norm : head_dim", "k_norm.scale": "attn.k_norm : head_dim"}
        if self.qk_norm == "full":
            table |= {"q_norm.scale": "attn.q_norm : head head_dim", "k_norm.scale": "attn.k_norm : kv_head head_dim"}
        if self.sinks:
            table["sinks"] = "attn.sinks : head"
        shares = self.kv_layer is not None and not self.keeps_kv
        elsewhere = ("k_proj", "v_proj", "k_norm") if shares else ("v_proj",) * self.v_from_k
        return {path: entry for path, entry in table.items() if path.partition(".")[0] not in elsewhere}

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """Keys and values, unless they are another layer's."""
        if self.kv_layer is not None:
            return {}
        return {
            "k": CacheArray(("slot", "kv_head", "head_dim")),
            "v": CacheArray(("slot", "kv_head", "head_dim")),
        }
