"""The gated MLP."""

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax.typing import DTypeLike

from lazyload.models.projection import Projection

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class MLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))`; `width` names the axis between."""

    def __init__(
        self,
        width: str,
        sizes: Mapping[str, int],
        *,
        activation: str,
        bias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs | None,
    ):
        self.activation = activation
        self.gate = Projection(("embed",), (width,), sizes, bias=bias, dtype=dtype, rngs=rngs)
        self.up = Projection(("embed",), (width,), sizes, bias=bias, dtype=dtype, rngs=rngs)
        self.down = Projection((width,), ("embed",), sizes, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, length, embed]` to the same."""
        return self.down(ACTIVATIONS[self.activation](self.gate(x)) * self.up(x))
