"""The gated delta net (https://arxiv.org/abs/2412.06464), a linear attention with a short convolution before it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.block import CacheArray
from lazyload.architecture.checks import require, require_one_of, require_positive
from lazyload.architecture.mlp import ACTIVATIONS, Activation
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet:
    """A linear attention whose heads each keep a matrix instead of keys and values.

    Everything of a head stands below its key head, which serves `num_value_heads / num_key_heads` neighbouring value
    heads (axis `group`), so that tensor parallelism over the key heads leaves no head apart from its state.

    Attributes:
        num_key_heads: Query and key heads.
        num_value_heads: Value heads.
        key_dim: Width of a query and of a key.
        value_dim: Width of a value.
        conv_width: How many tokens the convolution spans.
        activation: Of what the convolution puts out.
        fused: Whether one projection makes queries, keys, values and gates, and another one what decides correction and
            decay (Qwen 3 Next), instead of one for queries, keys and values, and one for each of the rest (Qwen 3.5).
        norm: The norm of each value head's output, before its gate.
    """

    name: ClassVar[str] = "linear_attn"

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_width: int
    activation: Activation = "silu"
    fused: bool = True
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_key_heads", "num_value_heads", "key_dim", "value_dim", "conv_width")
        require(
            self.num_value_heads % self.num_key_heads == 0,
            self,
            f"num_value_heads = {self.num_value_heads} is no multiple of num_key_heads = {self.num_key_heads}",
        )
        require_one_of(self, "activation", ACTIVATIONS)
        require(self.conv_width > 1, self, f"conv_width = {self.conv_width} must be at least 2")

    @property
    def group(self) -> int:
        """Value heads of one key head."""
        return self.num_value_heads // self.num_key_heads

    @property
    def axes(self) -> Mapping[str, int]:
        """Heads, and the widths of what is projected and convolved for one key head."""
        qkv = 2 * self.key_dim + self.group * self.value_dim
        return {
            "key_head": self.num_key_heads,
            "value_head": self.num_value_heads,
            "group": self.group,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "qkv": qkv,
            "qkvz": qkv + self.group * self.value_dim,
            "beta_alpha": 2 * self.group,
            "conv_width": self.conv_width,
            "conv_past": self.conv_width - 1,
        }

    @property
    def parameters(self) -> Mapping[str, str]:
        """The projections, the convolution, what decides the decay, the gated norm.

        The decay is an exponential of exponentials, so that its parameters stay in float32.
        """
        if self.fused:
            projections = {
                "in_proj_qkvz.kernel": "delta.qkvz : embed key_head qkvz",
                "in_proj_ba.kernel": "delta.ba : embed key_head beta_alpha",
            }
        else:
            projections = {
                "in_proj_qkv.kernel": "delta.q | delta.k | delta.v : "
                "embed key_head (key_dim | key_dim | group value_dim)",
                "in_proj_z.kernel": "delta.z : embed key_head group value_dim",
                "in_proj_b.kernel": "delta.b : embed key_head group",
                "in_proj_a.kernel": "delta.a : embed key_head group",
            }
        return {
            **projections,
            "conv1d.kernel": "delta.conv_q | delta.conv_k | delta.conv_v : "
            "conv_width key_head (key_dim | key_dim | group value_dim)",
            "A_log": "delta.a_log : key_head group ; as float32",
            "dt_bias": "delta.dt_bias : key_head group ; as float32",
            "norm.scale": "delta.norm : value_dim",
            "out_proj.kernel": "delta.o : key_head group value_dim embed",
        }

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """The convolution's last inputs, and the matrix of each value head."""
        return {
            "conv": CacheArray(("conv_past", "key_head", "qkv")),
            "state": CacheArray(("value_head", "key_dim", "value_dim"), "float32"),
        }
