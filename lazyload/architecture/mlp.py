"""The gated MLP."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from lazyload.architecture.checks import require_one_of, require_positive
from lazyload.display.values import differing_fields

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
"""Of a gate: "gelu" is the exact one, "gelu_tanh" its approximation."""

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True, kw_only=True)
class MLP:
    """A gated MLP, `down(activation(gate(x)) * up(x))`.

    Attributes:
        mlp_dim: Its inner width.
        activation: Of the gate.
        bias: Whether its projections have biases.
    """

    name: ClassVar[str] = "mlp"

    mlp_dim: int
    activation: Activation = "silu"
    bias: bool = False

    __repr__ = differing_fields

    def __post_init__(self) -> None:
        require_positive(self, "mlp_dim")
        require_one_of(self, "activation", ACTIVATIONS)

    @property
    def axes(self) -> Mapping[str, int]:
        """The inner width; gate and up are one role with an axis of two."""
        return {"mlp": self.mlp_dim, "gate_up": 2}

    @property
    def parameters(self) -> Mapping[str, str]:
        """The three projections."""
        table = {
            "{gate_up:gate,up}_proj.kernel": "mlp.in : embed mlp",
            "down_proj.kernel": "mlp.out : mlp embed",
        }
        if self.bias:
            table |= {"{gate_up:gate,up}_proj.bias": "mlp.in.bias : mlp", "down_proj.bias": "mlp.out.bias : embed"}
        return table
