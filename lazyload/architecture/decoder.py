"""The configuration of the decoder: what a family's `config.json` means, in one vocabulary.

A family reads its `config.json` into a `DecoderConfig`; the decoder, its table of parameters and its axis sizes all
follow from that value. Nothing here imports JAX.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lazyload.layouts.axes import Group


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of one layer.

    The meaning of every scaling kind is that of `transformers.modeling_rope_utils`.

    Attributes:
        theta: The base.
        dim: How many of a head's dimensions are rotated, from its start; even.
        kind: The scaling.
        factor: linear, dynamic, llama3, yarn: the context's extension.
        original_max_position: dynamic, llama3, yarn, longrope: the context length before extension.
        low_freq_factor: llama3.
        high_freq_factor: llama3.
        beta_fast: yarn.
        beta_slow: yarn.
        truncate: yarn: whether the correction range is rounded to whole dimensions.
        attention_factor: yarn, longrope: what cosines and sines are multiplied with; resolved by the family.
        short_factor: longrope: `dim / 2` divisors of the frequencies up to the original context length.
        long_factor: longrope: the same beyond it.
        interleaved: Whether a rotated pair is two neighbours (DeepSeek) instead of the two halves.
    """

    theta: float
    dim: int
    kind: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"] = "default"
    factor: float = 1.0
    original_max_position: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    interleaved: bool = False


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is particular to one layer.

    Attributes:
        rope: Its rotary embedding; None for a layer without one.
        window: How many positions back (itself included) a token sees; None sees all.
        sparse: Whether its MLP is a mixture of experts.
    """

    rope: Rope | None
    window: int | None = None
    sparse: bool = False


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The mixture of experts of the sparse layers.

    Attributes:
        num_experts: Routed experts.
        num_selected: Experts a token is sent to.
        mlp_dim: Width of one expert.
        shared_mlp_dim: Width of the shared expert; 0 for none.
        shared_bias: Whether the shared expert has biases.
        scores: "softmax" over all experts, "sigmoid" of each, or "topk_softmax": over the selected ones only.
        normalize: Whether the selected weights are divided by their sum.
        scale: What the weights are multiplied with at the end.
        num_groups: Groups for group-limited selection; 1 for none.
        num_selected_groups: Groups a token may use.
        group_score: A group's score is its best expert's ("max") or the sum of its two best ("top2").
        selection_bias: Whether a correction bias is added to the scores for the selection only.
        router_bias: Whether the router has a bias.
        bias: Whether the experts have biases.
        clamped_swiglu: gpt-oss: `(alpha, limit)` of its clamped gate; None for the config's activation.
    """

    num_experts: int
    num_selected: int
    mlp_dim: int
    shared_mlp_dim: int = 0
    shared_bias: bool = False
    scores: Literal["softmax", "sigmoid", "topk_softmax"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    num_groups: int = 1
    num_selected_groups: int = 1
    group_score: Literal["max", "top2"] = "max"
    selection_bias: bool = False
    router_bias: bool = False
    bias: bool = False
    clamped_swiglu: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek V2, https://arxiv.org/abs/2405.04434, section 2.1).

    Attributes:
        q_rank: Width of the compressed query; None where queries are projected directly.
        kv_rank: Width of the compressed keys and values.
        nope_dim: Width of a head's part without rotary embedding.
        rope_dim: Width of a head's rotated part; shared by all heads for the keys.
        v_dim: Width of a head's values.
    """

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder-only transformer.

    Attributes:
        vocab_size: Rows of the embedding.
        embed_dim: Width of the residual stream.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides `num_heads`.
        head_dim: Width of a head.
        mlp_dim: Width of the dense MLP.
        layers: One value a layer.
        norm_eps: Added to the mean square in every RMS norm.
        tied: Whether the embedding is the output projection, too.
        activation: Of the MLP's gate: "gelu" is the exact one, "gelu_tanh" its approximation.
        norm_offset: Added to every norm's scale before use (Gemma: 1).
        pre_norms: Whether attention and MLP have a norm before them (OLMo 2: not).
        post_norms: Whether attention and MLP have a norm after them (Gemma 2 and 3, OLMo 2 and 3).
        qk_norm: Norm of queries and keys: over each head, over all heads together ("full"), or none.
        qkv_bias: Whether the q, k and v projections have biases.
        o_bias: Whether the attention's output projection has a bias.
        mlp_bias: Whether the dense MLP has biases.
        sinks: Whether each head has a learned logit that takes attention away from the tokens (gpt-oss).
        query_scale: What the attention logits are multiplied with.
        attn_softcap: Soft cap of the attention logits.
        final_softcap: Soft cap of the output logits.
        embed_scale: What embeddings are multiplied with, rounded to the activations' dtype first.
        residual_scale: What each branch is multiplied with before it is added to the residual stream.
        logits_scale: What the output logits are multiplied with.
        experts: The mixture of experts of the sparse layers.
        latent: Multi-head latent attention in place of the plain one.
    """

    vocab_size: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    layers: tuple[Layer, ...]
    norm_eps: float
    query_scale: float
    tied: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    norm_offset: float = 0.0
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: Literal["head", "full"] | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    sinks: bool = False
    attn_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    experts: Experts | None = None
    latent: LatentAttention | None = None

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return len(self.layers)

    @property
    def num_embed(self) -> int:
        """The rows of the embedding, by the name that Tunix reads."""
        return self.vocab_size

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """The layers with a dense MLP."""
        return tuple(number for number, layer in enumerate(self.layers) if not layer.sparse)

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers with a mixture of experts."""
        return tuple(number for number, layer in enumerate(self.layers) if layer.sparse)

    @property
    def axes(self) -> Mapping[str, int]:
        """The size of every named axis that layouts speak of."""
        sizes = {
            "vocab": self.vocab_size,
            "embed": self.embed_dim,
            "layer": self.num_layers,
            "head": self.num_heads,
            "kv_head": self.num_kv_heads,
            "head_dim": self.head_dim,
            "half": 2,
            "pair": self.head_dim // 2,
            "mlp": self.mlp_dim,
            "gate_up": 2,
        }
        if self.experts:
            sizes |= {
                "expert": self.experts.num_experts,
                "expert_mlp": self.experts.mlp_dim,
                "shared_mlp": self.experts.shared_mlp_dim,
            }
        if self.latent:
            latent = self.latent
            sizes |= {
                "q_rank": latent.q_rank or 0,
                "kv_rank": latent.kv_rank,
                "kv_rank_rope": latent.kv_rank + latent.rope_dim,
                "qk_dim": latent.nope_dim + latent.rope_dim,
                "nope_v_dim": latent.nope_dim + latent.v_dim,
                "v_dim": latent.v_dim,
            }
        return sizes

    def layers_of(self, role: str) -> tuple[int, ...]:
        """The layers that have the role: `mlp.*` the dense ones, experts and router the sparse ones, the rest all."""
        if role.startswith("mlp."):
            return self.dense_layers
        if role.startswith(("experts.", "router", "shared.")):
            return self.sparse_layers
        return tuple(range(self.num_layers))

    def groups(self, role: str) -> list[Group]:
        """The layers that have a role."""
        return [Group(self.layers_of(role), self.axes)]

    @property
    def splits(self) -> Mapping[str, tuple[str, ...]]:
        """Axes that a layout may also write by their parts: a head is its two rotary halves of pairs."""
        return {"head_dim": ("half", "pair")}
