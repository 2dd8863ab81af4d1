"""Hyper-connections: how blocks read several residual streams and are added to them (https://arxiv.org/abs/2512.24880).

The streams are `[batch, length, stream, embed]`. Weights, and sums over streams, are in float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lazyload import architecture
from lazyload.models.norm import normalized
from lazyload.models.parameters import Parameters


class Weight(nnx.Module):
    """A linear map from all streams of a token, scaled by a number, with a bias."""

    kernel: nnx.Param[jax.Array]
    scale: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array]

    def __init__(self, parameters: Parameters):
        axes = tuple(range(len(parameters.shape("kernel"))))
        normal = nnx.initializers.lecun_normal(in_axis=axes[:2], out_axis=axes[2:])
        self.kernel = parameters.declare("kernel", normal)
        self.scale = parameters.declare("scale", nnx.initializers.ones_init())
        self.bias = parameters.declare("bias", nnx.initializers.zeros_init())

    def __call__(self, streams: jax.Array) -> jax.Array:
        """`[batch, length, stream, embed]`, in float32, to `[batch, length, ...]`."""
        kernel, scale, bias = (array[...].astype(jnp.float32) for array in (self.kernel, self.scale, self.bias))
        return jnp.tensordot(streams, kernel, 2) * scale.reshape(()) + bias


class HyperConnection(nnx.Module):
    """One block's connection with the streams."""

    pre: Weight
    post: Weight
    comb: Weight

    def __init__(self, block: architecture.HyperConnection, parameters: Parameters):
        self.block = block
        self.pre, self.post, self.comb = (Weight(parameters[name]) for name in ("pre", "post", "comb"))

    def __call__(self, streams: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """What a block reads of the streams, `[batch, length, embed]`, and what adds its output to them."""
        wide = streams.astype(jnp.float32)
        normed = normalized(wide, self.block.norm.eps, trailing=2)
        pre = jax.nn.sigmoid(self.pre(normed)) + self.block.eps
        post = 2 * jax.nn.sigmoid(self.post(normed))
        comb = self._mixing(jax.nn.softmax(self.comb(normed), axis=-1) + self.block.eps)

        def added(branch: jax.Array) -> jax.Array:
            mixed = jnp.einsum("btij,btie->btje", comb, wide)
            return (mixed + post[..., None] * branch.astype(jnp.float32)[:, :, None]).astype(streams.dtype)

        return jnp.einsum("bts,btse->bte", pre, wide).astype(streams.dtype), added

    def _mixing(self, matrix: jax.Array) -> jax.Array:
        """A positive matrix, `[..., from, to]`, made almost doubly stochastic: sums of columns and rows in turn are 1.

        It is the Sinkhorn-Knopp algorithm, which begins and ends with the columns.
        """

        def divided(matrix: jax.Array, axis: int) -> jax.Array:
            return matrix / (jnp.sum(matrix, axis=axis, keepdims=True) + self.block.eps)

        def step(_: int, matrix: jax.Array) -> jax.Array:
            return divided(divided(matrix, -1), -2)

        balanced: jax.Array = jax.lax.fori_loop(1, self.block.num_iterations, step, divided(matrix, -2))
        return balanced


class HyperStreams(nnx.Module):
    """The streams before the first layer, and after the last."""

    pre: Weight

    def __init__(self, block: architecture.HyperStreams, parameters: Parameters):
        self.block = block
        self.pre = Weight(parameters["pre"])

    def spread(self, x: jax.Array) -> jax.Array:
        """`[batch, length, embed]` to the streams, all the same."""
        return jnp.broadcast_to(x[:, :, None], (*x.shape[:2], self.block.num_streams, x.shape[2]))

    def gathered(self, streams: jax.Array) -> jax.Array:
        """The streams to `[batch, length, embed]`."""
        wide = streams.astype(jnp.float32)
        pre = jax.nn.sigmoid(self.pre(normalized(wide, self.block.norm.eps, trailing=2))) + self.block.eps
        return jnp.einsum("bts,btse->bte", pre, wide).astype(streams.dtype)
