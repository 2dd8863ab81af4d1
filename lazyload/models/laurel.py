"""Laurel, the learned augmented residual layer (https://arxiv.org/abs/2411.07501)."""

import jax
from flax import nnx

from lazyload import architecture
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection


class Laurel(nnx.Module):
    """`x + norm(right(left(x)))`."""

    linear_left: Projection
    linear_right: Projection
    norm: RMSNorm

    def __init__(self, block: architecture.Laurel, parameters: Parameters):
        self.linear_left = Projection(parameters["linear_left"])
        self.linear_right = Projection(parameters["linear_right"])
        self.norm = RMSNorm(parameters["norm"], block.norm)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, length, embed]` to the same."""
        return x + self.norm(self.linear_right(self.linear_left(x)))
