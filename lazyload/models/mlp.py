"""The MLP, gated or not."""

from collections.abc import Callable, Mapping
from statistics import NormalDist

import jax
import jax.numpy as jnp
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
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


class XIELU(nnx.Module):
    """An activation with learned parameters (https://arxiv.org/abs/2411.13010), each an array of one number.

    Attributes:
        alpha_p: Its softplus is the curvature above zero.
        alpha_n: The same below, where `beta` is added.
        beta: The slope at zero; stored and not learned.
        eps: The largest argument of the exponential; stored and not learned.
    """

    alpha_p: nnx.Param[jax.Array]
    alpha_n: nnx.Param[jax.Array]
    beta: nnx.Param[jax.Array]
    eps: nnx.Param[jax.Array]

    def __init__(self, parameters: Parameters):
        # As transformers starts them: both curvatures are 0.8.
        self.alpha_p = parameters.declare("alpha_p", nnx.initializers.constant(0.2034))
        self.alpha_n = parameters.declare("alpha_n", nnx.initializers.constant(-1.0502))
        self.beta = parameters.declare("beta", nnx.initializers.constant(0.5))
        self.eps = parameters.declare("eps", nnx.initializers.constant(-1e-6))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Any shape to the same; in float32, where the difference of two numbers that are almost alike counts."""
        wide = x.astype(jnp.float32)
        alpha_p, alpha_n = (jax.nn.softplus(alpha[...].astype(jnp.float32)) for alpha in (self.alpha_p, self.alpha_n))
        beta, eps = (jax.lax.stop_gradient(fixed[...].astype(jnp.float32)) for fixed in (self.beta, self.eps))
        below = (jnp.expm1(jnp.minimum(wide, eps)) - wide) * (beta + alpha_n)
        return (jnp.where(wide > 0, alpha_p * jnp.square(wide), below) + beta * wide).astype(x.dtype)


class MLP(nnx.Module):
    """`down(activation(gate(x)) * up(x))`, or without a gate `down(activation(up(x)))`."""

    sparsity: float
    limit: float | None
    gate_proj: Projection | None
    up_proj: Projection
    down_proj: Projection
    xielu: XIELU

    def __init__(self, block: architecture.MLP, parameters: Parameters):
        self.activation = block.activation
        self.limit = block.limit
        self.sparsity = block.sparsity
        self.gate_proj = Projection(parameters["gate_proj"]) if block.gated else None
        self.up_proj = Projection(parameters["up_proj"])
        self.down_proj = Projection(parameters["down_proj"])
        if block.activation == "xielu":
            self.xielu = XIELU(parameters["xielu"])

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, length, embed]` to the same."""
        activation = self.xielu if self.activation == "xielu" else ACTIVATIONS[self.activation]
        up = self.up_proj(x)
        if self.gate_proj is None:
            return self.down_proj(activation(up))
        gate, up = cut_off(self.gate_proj(x), up, self.limit)
        return self.down_proj(activation(_sparse(gate, self.sparsity) if self.sparsity else gate) * up)


def cut_off(gate: jax.Array, up: jax.Array, limit: float | None) -> tuple[jax.Array, jax.Array]:
    """A gate, before its activation, and what it is for, within a limit; None for none."""
    return (gate, up) if limit is None else (jnp.minimum(gate, limit), jnp.clip(up, -limit, limit))


def _sparse(gate: jax.Array, sparsity: float) -> jax.Array:
    """By how much each gate exceeds the quantile of a token's gates, `[batch, length, mlp]`; in float32."""
    wide = gate.astype(jnp.float32)
    deviation = jnp.std(wide, axis=-1, keepdims=True)
    quantile = jnp.mean(wide, axis=-1, keepdims=True) + deviation * NormalDist().inv_cdf(sparsity)
    return jax.nn.relu(wide - quantile).astype(gate.dtype)
