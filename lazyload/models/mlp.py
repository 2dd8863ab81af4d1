"""The gated MLP."""

from collections.abc import Callable, Mapping

import jax
from flax import nnx

from lazyload import architecture
from lazyload.architecture import Activation
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection

ACTIVATIONS: Mapping[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))`."""

    gate_proj: Projection
    up_proj: Projection
    down_proj: Projection

    def __init__(self, block: architecture.MLP, parameters: Parameters):
        self.activation = block.activation
        self.gate_proj = Projection(parameters["gate_proj"])
        self.up_proj = Projection(parameters["up_proj"])
        self.down_proj = Projection(parameters["down_proj"])

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, length, embed]` to the same."""
        return self.down_proj(ACTIVATIONS[self.activation](self.gate_proj(x)) * self.up_proj(x))
