"""The MLP, gated or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from lazyload.architecture.checks import require, require_limit, require_one_of, require_positive
from lazyload.display.values import differing_fields

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
"""Of a gate, or without one: "gelu" is the exact one, "gelu_tanh" its approximation, "relu2" the square of "relu";
"xielu" has learned parameters (https://arxiv.org/abs/2411.13010)."""

ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
"""Those without parameters, which every block may have."""


@dataclass(frozen=True, kw_only=True)
class MLP:
    """An MLP: gated, `down(activation(gate(x)) * up(x))`, or plain, `down(activation(up(x)))`.

    Attributes:
        mlp_dim: Its inner width.
        activation: Of the gate; without one, of what `up` puts out, where it may be "xielu" (Apertus).
        gated: Whether it has a gate (Arcee, Apertus: not).
        bias: Whether its projections have biases.
        limit: What the gate, before its activation, and the size of what `up` puts out are cut off at; None for nothing
            (DeepSeek V4).
        sparsity: The share of a token's gates that are to be zero, taken for normally distributed: what they exceed the
            quantile by goes into the activation, and zero if they do not; 0 for the gates as they are (Gemma 3n).
    """

    name: ClassVar[str] = "mlp"

    mlp_dim: int
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    sparsity: float = 0.0

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "mlp_dim")
        require(0 <= self.sparsity < 1, self, f"sparsity = {self.sparsity!r} must be at least 0, and less than 1")
        require(self.gated or self.sparsity == 0, self, "there are no gates to be sparse")
        require_one_of(self, "activation", ACTIVATIONS if self.gated else (*ACTIVATIONS, "xielu"))
        require_limit(self, self.limit)
        require(self.gated or self.limit is None, self, "there is no gate to cut off at a limit")

    @property
    def axes(self) -> Mapping[str, int]:
        """The inner width; gate and up are one role with an axis of two."""
        return {"mlp": self.mlp_dim, "gate_up": 2}

    @property
    def parameters(self) -> Mapping[str, str]:
        """The projections, and what "xielu" learns."""
        into, role = ("{gate_up:gate,up}_proj", "mlp.in") if self.gated else ("up_proj", "mlp.up")
        table = {f"{into}.kernel": f"{role} : embed mlp", "down_proj.kernel": "mlp.out : mlp embed"}
        if self.bias:
            table |= {f"{into}.bias": f"{role}.bias : mlp", "down_proj.bias": "mlp.out.bias : embed"}
        if self.activation == "xielu":
            table |= {f"xielu.{name}": f"mlp.xielu.{name} : 1" for name in ("alpha_p", "alpha_n", "beta", "eps")}
        return table
