"""Mamba 2 (https://arxiv.org/abs/2405.21060), a state space model with a short convolution before it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from lazyload.architecture.block import CacheArray
from lazyload.architecture.checks import require, require_one_of, require_positive
from lazyload.architecture.mlp import ACTIVATIONS, Activation
from lazyload.architecture.norm import RMS_NORM, Norm
from lazyload.display.values import differing_fields


@dataclass(frozen=True, kw_only=True)
class Mamba2:
    """A state space model whose heads each keep a matrix instead of keys and values.

    What writes into the matrices (`b`) and what reads them (`c`) is the same for the neighbouring heads of a group.
    Projections and convolutions of heads and of groups are parameters of their own, so that tensor parallelism over the
    heads leaves none apart from its state.

    Attributes:
        num_heads: Heads.
        head_dim: Width of a head.
        num_groups: Groups of heads.
        state_dim: Width of what a head remembers for each of its dimensions.
        conv_width: How many tokens the convolution spans.
        activation: Of what the convolution puts out.
        conv_bias: Whether the convolution has a bias.
        proj_bias: Whether the projections have biases.
        least_step: The shortest time step.
        longest_step: The longest.
        norm: The norm of each group's output, after its gate.
    """

    name: ClassVar[str] = "mamba"

    num_heads: int
    head_dim: int
    num_groups: int
    state_dim: int
    conv_width: int
    activation: Activation = "silu"
    conv_bias: bool = True
    proj_bias: bool = False
    least_step: float = 0.0
    longest_step: float = math.inf
    norm: Norm = RMS_NORM

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "num_heads", "head_dim", "num_groups", "state_dim", "conv_width")
        require(
            self.num_heads % self.num_groups == 0,
            self,
            f"num_heads = {self.num_heads} is no multiple of num_groups = {self.num_groups}",
        )
        require_one_of(self, "activation", ACTIVATIONS)
        require(self.conv_width > 1, self, f"conv_width = {self.conv_width} must be at least 2")
        require(
            0 <= self.least_step <= self.longest_step,
            self,
            f"least_step = {self.least_step!r} and longest_step = {self.longest_step!r} leave no time step",
        )

    @property
    def axes(self) -> Mapping[str, int]:
        """Heads and groups, and their widths."""
        return {
            "ssm_head": self.num_heads,
            "ssm_dim": self.head_dim,
            "ssm_group": self.num_groups,
            "ssm_state": self.state_dim,
            "conv_width": self.conv_width,
            "conv_past": self.conv_width - 1,
        }

    @property
    def parameters(self) -> Mapping[str, str]:
        """The projections, the convolutions, what decides the time steps and the decay, the gated norm.

        The decay is an exponential of exponentials, so that its parameters stay in float32.
        """
        heads, groups = "ssm_head ssm_dim", "ssm_group ssm_state"
        projected = {"z": heads, "x": heads, "b": groups, "c": groups, "dt": "ssm_head"}
        convolved = {"x": heads, "b": groups, "c": groups}
        table = {f"in_proj_{part}.kernel": f"mamba.{part} : embed {axes}" for part, axes in projected.items()}
        table |= {f"conv_{part}.kernel": f"mamba.conv_{part} : conv_width {axes}" for part, axes in convolved.items()}
        table |= {
            "A_log": "mamba.a_log : ssm_head ; as float32",
            "dt_bias": "mamba.dt_bias : ssm_head ; as float32",
            "D": "mamba.d : ssm_head ; as float32",
            "norm.scale": f"mamba.norm : {heads}",
            "out_proj.kernel": f"mamba.o : {heads} embed",
        }
        if self.conv_bias:
            table |= {f"conv_{part}.bias": f"mamba.conv_{part}.bias : {axes}" for part, axes in convolved.items()}
        if self.proj_bias:
            table |= {f"in_proj_{part}.bias": f"mamba.{part}.bias : {axes}" for part, axes in projected.items()}
            table["out_proj.bias"] = "mamba.o.bias : embed"
        return table

    @property
    def cache(self) -> Mapping[str, CacheArray]:
        """The convolutions' last inputs, and the matrix of each head."""
        return {
            "conv_x": CacheArray(("conv_past", "ssm_head", "ssm_dim")),
            "conv_b": CacheArray(("conv_past", "ssm_group", "ssm_state")),
            "conv_c": CacheArray(("conv_past", "ssm_group", "ssm_state")),
            "state": CacheArray(("ssm_head", "ssm_dim", "ssm_state"), "float32"),
        }
