"""Mamba 2 (https://arxiv.org/abs/2405.21060): a state space model with a short convolution before it.

What a head remembers is a matrix, `state`, `[head_dim, state_dim]`, whatever the length. With a time step `dt` of each
token and a rate `a` of each head, and what writes into the matrix and reads it, `b` and `c`:

    state = exp(dt * a) * state + dt * outer(x, b)
    output = state @ c

The tokens of one chunk see each other through a matrix of scores (section 6 of the paper), so that all is matrix
products, and only the state goes from chunk to chunk. Nothing is summed over heads: sharded heads need no exchange.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lazyload import architecture
from lazyload.models.activations import value_of
from lazyload.models.chunks import forgetting, joined, split, sums_between
from lazyload.models.context import Context
from lazyload.models.gated_delta_net import DepthwiseConv
from lazyload.models.kv_cache import LayerCache
from lazyload.models.mlp import ACTIVATIONS
from lazyload.models.norm import normalized
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection

_CHUNK = 64

# In the einsums: n chunk, b batch, t and s token, g group, h head of its group, p head_dim, k state_dim.


class _Tokens(NamedTuple):
    """What the model reads, in float32, with the heads grouped.

    Attributes:
        x: `[batch, length, group, head, head_dim]`, times the time step.
        log_decay: `[batch, length, group, head]`, at most 0.
        b: `[batch, length, group, state_dim]`.
        c: `[batch, length, group, state_dim]`.
    """

    x: jax.Array
    log_decay: jax.Array
    b: jax.Array
    c: jax.Array


class _Chunk(NamedTuple):
    """A chunk's tokens, worked out as far as that goes without the state before them.

    Attributes:
        c: `[batch, token, group, state_dim]`.
        decay: `[batch, group, head, token]`, from the chunk's start to the token, itself included.
        outputs: `[batch, token, group, head, head_dim]`, were the state zero before.
        state: `[batch, group, head, head_dim, state_dim]`, what the chunk leaves, were the state zero before.
    """

    c: jax.Array
    decay: jax.Array
    outputs: jax.Array
    state: jax.Array


class Mamba2(nnx.Module):
    """The mixer: projections, convolutions, the state space model, and a norm of its gated outputs."""

    in_proj_z: Projection
    in_proj_x: Projection
    in_proj_b: Projection
    in_proj_c: Projection
    in_proj_dt: Projection
    conv_x: DepthwiseConv
    conv_b: DepthwiseConv
    conv_c: DepthwiseConv
    A_log: nnx.Param[jax.Array]
    dt_bias: nnx.Param[jax.Array]
    D: nnx.Param[jax.Array]
    norm: "GroupedNorm"
    out_proj: Projection

    def __init__(self, block: architecture.Mamba2, parameters: Parameters):
        self.block = block
        self.in_proj_z = Projection(parameters["in_proj_z"])
        self.in_proj_x = Projection(parameters["in_proj_x"])
        self.in_proj_b = Projection(parameters["in_proj_b"])
        self.in_proj_c = Projection(parameters["in_proj_c"])
        self.in_proj_dt = Projection(parameters["in_proj_dt"])
        self.conv_x = DepthwiseConv(parameters["conv_x"])
        self.conv_b = DepthwiseConv(parameters["conv_b"])
        self.conv_c = DepthwiseConv(parameters["conv_c"])
        self.A_log = parameters.declare("A_log", nnx.initializers.zeros_init())
        self.dt_bias = parameters.declare("dt_bias", nnx.initializers.ones_init())
        self.D = parameters.declare("D", nnx.initializers.ones_init())
        self.norm = GroupedNorm(parameters["norm"], block)
        self.out_proj = Projection(parameters["out_proj"], inputs=2)

    def __call__(self, x: jax.Array, context: Context, cache: LayerCache | None) -> tuple[jax.Array, LayerCache | None]:
        """Mixes the tokens of `x`, `[batch, length, embed]`; arguments and results are those of `Attention`.

        Of the attention mask only padding counts: a token that may not attend to itself leaves all states alone.
        """
        block, real, segments = self.block, context.real(), context.carried_segments()
        convolved, kept = {}, {}
        for name, projected, conv in (
            ("conv_x", self.in_proj_x(x), self.conv_x),
            ("conv_b", self.in_proj_b(x), self.conv_b),
            ("conv_c", self.in_proj_c(x), self.conv_c),
        ):
            y, kept[name] = conv(projected, None if cache is None else cache[name], real, segments)
            convolved[name] = ACTIVATIONS[block.activation](y)
        step = jax.nn.softplus(self.in_proj_dt(x).astype(jnp.float32) + value_of(self.dt_bias).astype(jnp.float32))
        mixed, kept["state"] = state_space(
            convolved["conv_x"],
            jnp.clip(step, block.least_step, block.longest_step),
            -jnp.exp(value_of(self.A_log).astype(jnp.float32)),
            convolved["conv_b"],
            convolved["conv_c"],
            None if cache is None else cache["state"],
            real,
            segments,
        )
        mixed = mixed + value_of(self.D).astype(jnp.float32)[:, None] * convolved["conv_x"].astype(jnp.float32)
        gated = self.norm(mixed * jax.nn.silu(self.in_proj_z(x).astype(jnp.float32)))
        y = self.out_proj(gated.astype(x.dtype))
        return y, None if cache is None else {**kept, "end_index": cache["end_index"] + x.shape[1]}


class GroupedNorm(nnx.Module):
    """A root mean square norm over the heads of each group together; `scale` is `[head, head_dim]`."""

    eps: float
    num_groups: int
    scale: nnx.Param[jax.Array]

    def __init__(self, parameters: Parameters, block: architecture.Mamba2):
        self.eps, self.num_groups = block.norm.eps, block.num_groups
        self.scale = parameters.declare("scale", nnx.initializers.ones_init())

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, length, head, head_dim]` to the same, in float32."""
        grouped = x.reshape(*x.shape[:2], self.num_groups, -1, x.shape[-1])
        return normalized(grouped, self.eps, trailing=2).reshape(x.shape) * self.scale[...].astype(jnp.float32)


def state_space(
    x: jax.Array,
    step: jax.Array,
    rate: jax.Array,
    b: jax.Array,
    c: jax.Array,
    state: jax.Array | None = None,
    real: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the model over a sequence, chunk by chunk, in float32.

    Args:
        x: `[batch, length, head, head_dim]`, of any length, zero included.
        step: The time steps, `[batch, length, head]`.
        rate: `[head]`, at most 0; a step lets the state decay by `exp(step * rate)`.
        b: What writes, `[batch, length, group, state_dim]`; each serves `head / group` neighbouring heads.
        c: What reads, of the same shape.
        state: `[batch, head, head_dim, state_dim]`, what the tokens before left; None for zeros.
        real: bool `[batch, length]`, False for padding, wherever it is: it leaves the state alone, and its outputs are
            finite nonsense. None for no padding.
        segment_ids: int32 `[batch, length]`; each segment starts from a state of zeros. None for one segment, which
            starts from `state`.

    Returns:
        `[batch, length, head, head_dim]`, and the state after the last token, both float32.
    """
    x, step, b, c = (array.astype(jnp.float32) for array in (x, step, b, c))
    if real is not None:
        step = jnp.where(real[..., None], step, 0)
    batch, length, heads, head_dim = x.shape
    groups = (b.shape[2], heads // b.shape[2])
    tokens = _Tokens(
        x=(x * step[..., None]).reshape(batch, length, *groups, head_dim),
        log_decay=forgetting(step * rate.astype(jnp.float32), segment_ids).reshape(batch, length, *groups),
        b=b,
        c=c,
    )
    if state is None:
        state = jnp.zeros((batch, heads, head_dim, b.shape[-1]))
    start = state.astype(jnp.float32).reshape(batch, *groups, head_dim, b.shape[-1])
    size = max(1, min(_CHUNK, length))
    chunks = _solve_chunks(jax.tree.map(partial(split, size=size), tokens))
    end, outputs = jax.lax.scan(_run_chunk, start, chunks)
    return joined(outputs)[:, :length].reshape(x.shape), end.reshape(state.shape)


def _solve_chunks(chunks: _Tokens) -> _Chunk:
    """What needs no state, for all chunks at once; all arrays, in and out, have a leading dimension `chunk`."""
    each = jnp.moveaxis(chunks.log_decay, 2, -1)
    # Masked before exp: where token t is before s, it would be one, and not zero.
    between = sums_between(each)
    decay = jnp.exp(jnp.where(np.tri(each.shape[-1], dtype=bool), between, -jnp.inf))
    scores = jnp.einsum("nbtgk,nbsgk->nbgts", chunks.c, chunks.b)[:, :, :, None] * decay
    to_end = jnp.moveaxis(jnp.exp(between[..., -1, :]), -1, 2)
    return _Chunk(
        c=chunks.c,
        decay=jnp.exp(jnp.cumsum(each, axis=-1)),
        outputs=jnp.einsum("nbghts,nbsghp->nbtghp", scores, chunks.x),
        state=jnp.einsum("nbsgk,nbsghp->nbghpk", chunks.b, to_end[..., None] * chunks.x),
    )


def _run_chunk(state: jax.Array, chunk: _Chunk) -> tuple[jax.Array, jax.Array]:
    """The state after a chunk, and the outputs of its tokens, `[batch, token, group, head, head_dim]`."""
    before = jnp.einsum("btgk,bghpk->btghp", chunk.c, state) * jnp.moveaxis(chunk.decay, -1, 1)[..., None]
    return chunk.decay[..., -1, None, None] * state + chunk.state, chunk.outputs + before
