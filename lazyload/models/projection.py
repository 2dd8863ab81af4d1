"""Linear maps between named axes."""

from collections.abc import Mapping
from string import ascii_lowercase

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lazyload.models.parameters import parameter


class Projection(nnx.Module):
    """Maps the trailing `inputs` dimensions of `[batch, length, ...]` to `outputs`.

    Attributes:
        kernel: Of shape `inputs + outputs`.
        bias: Of shape `outputs`; None for a map without one.
    """

    def __init__(
        self,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        sizes: Mapping[str, int],
        *,
        bias: bool = False,
        dtype: DTypeLike,
        rngs: nnx.Rngs | None,
    ):
        free = iter(letter for letter in ascii_lowercase if letter not in "bt")
        contracted = "".join(next(free) for _ in inputs)
        kept = "".join(next(free) for _ in outputs)
        self.equation = f"bt{contracted},{contracted}{kept}->bt{kept}"
        initializer = nnx.initializers.lecun_normal(
            in_axis=tuple(range(len(inputs))), out_axis=tuple(range(len(inputs), len(inputs) + len(outputs)))
        )
        self.kernel = parameter(initializer, inputs + outputs, sizes, dtype=dtype, rngs=rngs)
        self.bias = parameter(nnx.initializers.zeros_init(), outputs, sizes, dtype=dtype, rngs=rngs) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """The map's value: `[batch, length, *inputs]` to `[batch, length, *outputs]`."""
        y = jnp.einsum(self.equation, x, self.kernel[...])
        return y if self.bias is None else y + self.bias[...]


class Embedding(nnx.Module):
    """The table of token vectors, `[vocab, embed]`, used forwards and, where tied, backwards."""

    def __init__(self, sizes: Mapping[str, int], *, dtype: DTypeLike, rngs: nnx.Rngs | None):
        self.embedding = parameter(nnx.initializers.normal(0.02), ("vocab", "embed"), sizes, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The rows of the tokens: `[batch, length]` to `[batch, length, embed]`."""
        return jnp.take(self.embedding[...], tokens, axis=0)

    def attend(self, x: jax.Array) -> jax.Array:
        """Each row's inner product with `x`: `[batch, length, embed]` to `[batch, length, vocab]`."""
        return jnp.einsum("btd,vd->btv", x, self.embedding[...])
