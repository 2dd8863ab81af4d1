"""Linear maps between named axes."""

import math
from string import ascii_lowercase

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lazyload.models.activations import as_outputs, value_of
from lazyload.models.parameters import Parameters, computed


class Projection(nnx.Module):
    """Maps the trailing dimensions of `[batch, length, ...]` that are its inputs to those that are its outputs.

    Attributes:
        kernel: The inputs' dimensions, then the outputs'.
        bias: The outputs' dimensions; None for a map without one.
        compute_dtype: What both are converted to where they are multiplied with and added; None for nothing.
    """

    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None
    axes: tuple[str, ...]
    compute_dtype: DTypeLike | None

    def __init__(self, parameters: Parameters, *, inputs: int = 1):
        """`inputs` is the number of the kernel's leading dimensions that are summed over."""
        axes = tuple(range(len(parameters.shape("kernel"))))
        normal = nnx.initializers.lecun_normal(in_axis=axes[:inputs], out_axis=axes[inputs:])
        zeros = nnx.initializers.zeros_init()
        self.inputs = inputs
        self.compute_dtype = parameters.compute_dtype("kernel")
        self.axes = parameters.axes("kernel")
        self.kernel = parameters.declare("kernel", normal)
        self.bias = parameters.declare("bias", zeros) if "bias" in parameters else None

    @property
    def in_features(self) -> int:
        """How many numbers of a token go in, by the name that `nnx.Linear` has for it."""
        return math.prod(self.kernel.shape[: self.inputs])

    @property
    def out_features(self) -> int:
        """How many numbers of a token come out."""
        return math.prod(self.kernel.shape[self.inputs :])

    def weights(self) -> jax.Array:
        """The kernel in the dtype that it is computed with."""
        return computed(self.kernel, self.compute_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The map's value: `[batch, length, *inputs]` to `[batch, length, *outputs]`.

        It is computed in the wider of the dtypes of `x` and the weights, and returned in that of `x`.
        """
        kernel = self.weights()
        free = [letter for letter in ascii_lowercase if letter not in "bt"][: kernel.ndim]
        summed, kept = "".join(free[: self.inputs]), "".join(free[self.inputs :])
        y = jnp.einsum(f"bt{summed},{summed}{kept}->bt{kept}", x, kernel)
        y = as_outputs(y, self.kernel, self.axes, range(self.inputs, kernel.ndim))
        if self.bias is not None:
            bias = value_of(self.bias)
            y = y + (bias if self.compute_dtype is None else bias.astype(self.compute_dtype))
        return y.astype(x.dtype)


class TiedProjection(nnx.Module):
    """Stands where the output projection would, in a model that uses its embedding backwards instead.

    Attributes:
        in_features: The width of the residual stream.
        out_features: The size of the vocabulary.
    """

    def __init__(self, in_features: int, out_features: int):
        self.in_features = in_features
        self.out_features = out_features


class Embedding(nnx.Module):
    """A table of token vectors, `[vocab, embed]`, used forwards and, where tied, backwards."""

    embedding: nnx.Param[jax.Array]
    axes: tuple[str, ...]
    compute_dtype: DTypeLike | None

    def __init__(self, parameters: Parameters):
        self.axes = parameters.axes("embedding")
        self.embedding = parameters.declare("embedding", nnx.initializers.normal(0.02))
        self.compute_dtype = parameters.compute_dtype("embedding")

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The rows of the tokens: `[batch, length]` to `[batch, length, embed]`."""
        rows = jnp.take(self.embedding[...], tokens, axis=0)
        rows = rows if self.compute_dtype is None else rows.astype(self.compute_dtype)
        return as_outputs(rows, self.embedding, self.axes, (1,))

    def attend(self, x: jax.Array) -> jax.Array:
        """Each row's inner product with `x`: `[batch, length, embed]` to `[batch, length, vocab]`."""
        logits = jnp.einsum("btd,vd->btv", x, computed(self.embedding, self.compute_dtype))
        return as_outputs(logits, self.embedding, self.axes, (0,))
