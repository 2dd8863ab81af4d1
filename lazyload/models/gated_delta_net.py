"""The gated delta rule (https://arxiv.org/abs/2412.06464), and the short convolution before it.

The rule is a linear attention: what a value head remembers is a matrix, `state`, `[key_dim, value_dim]`, whatever the
length. Each token lets it decay, corrects what it answers to the token's key, and reads it with the token's query:

    state = exp(log_decay) * state
    state = state + beta * outer(key, value - key @ state)
    output = query @ state

The corrections of the tokens of one chunk solve a triangular system (section 3.3 of the paper), so that all is matrix
products, and only the state goes from chunk to chunk. Nothing is summed over heads: sharded heads need no exchange.
"""

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lazyload import architecture
from lazyload.models.activations import value_of
from lazyload.models.chunks import forgetting, joined, split, sums_between
from lazyload.models.context import Context
from lazyload.models.kv_cache import LayerCache
from lazyload.models.mlp import ACTIVATIONS
from lazyload.models.norm import RMSNorm
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Projection

# As in transformers and in flash-linear-attention.
_CHUNK = 64
_NORM_EPS = 1e-6

# In the einsums: n chunk, b batch, t and s token, h key head, g value head of its group, k key_dim, v value_dim.


class _Tokens(NamedTuple):
    """What the rule reads, in float32, with the value heads grouped by the key head that serves them.

    Attributes:
        query: `[batch, length, key_head, key_dim]`, normalised and scaled.
        key: `[batch, length, key_head, key_dim]`, normalised.
        value: `[batch, length, key_head, group, value_dim]`.
        log_decay: `[batch, length, key_head, group]`.
        beta: `[batch, length, key_head, group]`.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    log_decay: jax.Array
    beta: jax.Array


class _Chunk(NamedTuple):
    """A chunk's tokens, worked out as far as that goes without the state before them.

    Attributes:
        query: `[batch, token, key_head, key_dim]`.
        key: `[batch, token, key_head, key_dim]`.
        log_decay: `[batch, key_head, group, token]`, from the chunk's start to the token, itself included.
        log_decay_to_end: `[batch, key_head, group, token]`, from the token, itself left out, to the chunk's end.
        scores: `[batch, key_head, group, token, token]`, how much each query reads of each correction.
        corrections: `[batch, key_head, group, token, value_dim]`, what is added to the state, were it zero before.
        lookups: `[batch, key_head, group, token, key_dim]`, whose answers from the state before are to be subtracted.
    """

    query: jax.Array
    key: jax.Array
    log_decay: jax.Array
    log_decay_to_end: jax.Array
    scores: jax.Array
    corrections: jax.Array
    lookups: jax.Array


class GatedDeltaNet(nnx.Module):
    """The mixer: projections, a convolution of queries, keys and values, the rule, and a gated norm of its outputs."""

    in_proj_qkvz: Projection
    in_proj_ba: Projection
    in_proj_qkv: Projection
    in_proj_z: Projection
    in_proj_b: Projection
    in_proj_a: Projection
    conv1d: "DepthwiseConv"
    A_log: nnx.Param[jax.Array]
    dt_bias: nnx.Param[jax.Array]
    norm: RMSNorm
    out_proj: Projection

    def __init__(self, block: architecture.GatedDeltaNet, parameters: Parameters):
        self.block = block
        if block.fused:
            self.in_proj_qkvz = Projection(parameters["in_proj_qkvz"])
            self.in_proj_ba = Projection(parameters["in_proj_ba"])
        else:
            self.in_proj_qkv = Projection(parameters["in_proj_qkv"])
            self.in_proj_z = Projection(parameters["in_proj_z"])
            self.in_proj_b = Projection(parameters["in_proj_b"])
            self.in_proj_a = Projection(parameters["in_proj_a"])
        self.conv1d = DepthwiseConv(parameters["conv1d"])
        self.A_log = parameters.declare("A_log", nnx.initializers.zeros_init())
        self.dt_bias = parameters.declare("dt_bias", nnx.initializers.ones_init())
        self.norm = RMSNorm(parameters["norm"], block.norm)
        self.out_proj = Projection(parameters["out_proj"], inputs=3)

    def __call__(self, x: jax.Array, context: Context, cache: LayerCache | None) -> tuple[jax.Array, LayerCache | None]:
        """Mixes the tokens of `x`, `[batch, length, embed]`; arguments and results are those of `Attention`.

        Of the attention mask only padding counts: a token that may not attend to itself leaves all states alone.
        """
        block, real, segments = self.block, context.real(), context.carried_segments()
        conv, state = (None, None) if cache is None else (cache["conv"], cache["state"])
        qkv, gate, beta, alpha = self._projected(x)
        qkv, conv = self.conv1d(qkv, conv, real, segments)
        query, key, value = jnp.split(ACTIVATIONS[block.activation](qkv), [block.key_dim, 2 * block.key_dim], axis=-1)
        rate = jnp.exp(value_of(self.A_log).astype(jnp.float32))
        log_decay = -rate * jax.nn.softplus(alpha.astype(jnp.float32) + value_of(self.dt_bias))
        values = (*x.shape[:2], block.num_value_heads)
        mixed, state = gated_delta_rule(
            query,
            key,
            value.reshape(*values, block.value_dim),
            log_decay.reshape(values),
            jax.nn.sigmoid(beta.astype(jnp.float32)).reshape(values),
            state,
            real,
            segments,
        )
        mixed = mixed.reshape(*x.shape[:2], block.num_key_heads, block.group, block.value_dim)
        gated = self.norm(mixed).astype(jnp.float32) * jax.nn.silu(gate.reshape(mixed.shape).astype(jnp.float32))
        y = self.out_proj(gated.astype(x.dtype))
        if cache is None:
            return y, None
        return y, {"conv": conv, "state": state, "end_index": cache["end_index"] + x.shape[1]}

    def _projected(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values before the convolution, the output's gate, and what decides correction and decay.

        All are `[batch, length, key_head, ...]`.
        """
        if not self.block.fused:
            return self.in_proj_qkv(x), self.in_proj_z(x), self.in_proj_b(x), self.in_proj_a(x)
        qkv, gate = jnp.split(self.in_proj_qkvz(x), [self.block.axes["qkv"]], axis=-1)
        beta, alpha = jnp.split(self.in_proj_ba(x), 2, axis=-1)
        return qkv, gate, beta, alpha


class DepthwiseConv(nnx.Module):
    """A causal convolution of each channel alone; `kernel` is `[width, *channels]`, `bias` one number a channel."""

    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None

    def __init__(self, parameters: Parameters):
        self.kernel = parameters.declare("kernel", nnx.initializers.normal(0.02))
        self.bias = parameters.declare("bias", nnx.initializers.zeros_init()) if "bias" in parameters else None

    def __call__(
        self, x: jax.Array, state: jax.Array | None, real: jax.Array | None, segment_ids: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """`causal_conv` over the channels of `x`, `[batch, length, *channels]`, each in its own place."""
        y, last = causal_conv(x, self.kernel[...], state, real, segment_ids)
        return (y if self.bias is None else (y + self.bias[...]).astype(x.dtype)), last


def gated_delta_rule(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    state: jax.Array | None = None,
    real: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Runs the rule over a sequence, chunk by chunk.

    Queries and keys are divided by their L2 norms, queries also by the square root of `key_dim`. Everything is in
    float32; products have the precision that JAX is set to, but those whose errors would build up have the highest.

    Args:
        query: `[batch, length, key_head, key_dim]`, of any length, zero included.
        key: `[batch, length, key_head, key_dim]`; each serves `value_head / key_head` neighbouring value heads.
        value: `[batch, length, value_head, value_dim]`.
        log_decay: `[batch, length, value_head]`, the logarithm of the factor that the state decays by, at most 0.
        beta: `[batch, length, value_head]`, the share of the error that is corrected, from 0 to 1.
        state: `[batch, value_head, key_dim, value_dim]`, what the tokens before left; None for zeros.
        real: bool `[batch, length]`, False for padding, wherever it is: it leaves the state alone, and its outputs are
            finite nonsense. None for no padding.
        segment_ids: int32 `[batch, length]`; each segment starts from a state of zeros. None for one segment, which
            starts from `state`.

    Returns:
        `[batch, length, value_head, value_dim]`, of the values' dtype, and the state after the last token, float32.
    """
    tokens, start = _prepare(query, key, value, log_decay, beta, state, real, segment_ids)
    length = value.shape[1]
    size = max(1, min(_CHUNK, length))
    chunks = _solve_chunks(jax.tree.map(partial(split, size=size), tokens))
    end, outputs = jax.lax.scan(_run_chunk, start, chunks)
    return joined(outputs)[:, :length].reshape(value.shape).astype(value.dtype), _ungrouped(end)


def causal_conv(
    x: jax.Array,
    kernel: jax.Array,
    state: jax.Array | None = None,
    real: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Convolves each channel with a kernel of its own over the token and those before it; in float32.

    Args:
        x: `[batch, length, *channels]`, of any length, zero included.
        kernel: `[width, *channels]`; its last row meets the token itself.
        state: `[batch, width - 1, *channels]`, the last inputs before these; None for zeros.
        real: bool `[batch, length]`, False for padding, before a row's tokens or after them but not among them; its
            outputs are finite nonsense. None for no padding.
        segment_ids: int32 `[batch, length]`; a token meets none of the inputs before its segment. None for one segment.

    Returns:
        `[batch, length, *channels]`, of `x`'s dtype, and the last `width - 1` inputs, padding left out, of the state's
        dtype or, without one, `x`'s. A row of padding alone keeps its state.
    """
    batch, length, *channels = x.shape
    width = kernel.shape[0]
    if state is None:
        state = jnp.zeros((batch, width - 1, *channels), x.dtype)
    if real is None:
        inputs = jnp.concatenate([state.astype(x.dtype), x], axis=1)
        last = inputs[:, length:]
    else:
        # The state is put right before the first token, over the padding that would part them.
        first = jnp.sum(jnp.cumsum(real, axis=1) == 0, axis=1)
        inputs = jnp.pad(x, [(0, 0), (width - 1, 0)] + [(0, 0)] * len(channels))
        inputs = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))(inputs, state.astype(x.dtype), first, 0)
        last = jax.vmap(jax.lax.dynamic_slice_in_dim, (0, 0, None))(inputs, first + jnp.sum(real, axis=1), width - 1)
    wide, taps = inputs.astype(jnp.float32), kernel.astype(jnp.float32)
    y = jnp.zeros(x.shape, jnp.float32)
    for shift in range(width):
        met = wide[:, shift : shift + length]
        if segment_ids is not None:
            met = jnp.where(_same_segment(segment_ids, width - 1 - shift, met.ndim), met, 0)
        y += met * taps[shift]
    return y.astype(x.dtype), last.astype(state.dtype)


def _same_segment(segment_ids: jax.Array, back: int, ndim: int) -> jax.Array:
    """Whether a token is of the segment of the one so many tokens back, bool `[batch, length, 1, ...]` of `ndim`."""
    batch, length = segment_ids.shape
    same = segment_ids[:, back:] == segment_ids[:, : max(length - back, 0)]
    return jnp.pad(same, ((0, 0), (length - same.shape[1], 0))).reshape(batch, length, *(1,) * (ndim - 2))


def _prepare(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_decay: jax.Array,
    beta: jax.Array,
    state: jax.Array | None,
    real: jax.Array | None,
    segment_ids: jax.Array | None,
) -> tuple[_Tokens, jax.Array]:
    """The tokens, and the state before them, `[batch, key_head, group, key_dim, value_dim]`, as the rule reads them."""
    query, key, value, log_decay, beta = (x.astype(jnp.float32) for x in (query, key, value, log_decay, beta))
    if real is not None:
        log_decay, beta = (jnp.where(real[..., None], x, 0) for x in (log_decay, beta))
    log_decay = forgetting(log_decay, segment_ids)
    batch, length, key_heads, key_dim = key.shape
    value_dim = value.shape[-1]
    groups = (key_heads, value.shape[2] // key_heads)
    tokens = _Tokens(
        query=_normalised(query) * key_dim**-0.5,
        key=_normalised(key),
        value=value.reshape(batch, length, *groups, value_dim),
        log_decay=log_decay.reshape(batch, length, *groups),
        beta=beta.reshape(batch, length, *groups),
    )
    if state is None:
        state = jnp.zeros((batch, value.shape[2], key_dim, value_dim))
    return tokens, state.astype(jnp.float32).reshape(batch, *groups, key_dim, value_dim)


def _normalised(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + _NORM_EPS)


def _ungrouped(state: jax.Array) -> jax.Array:
    batch, key_heads, group, key_dim, value_dim = state.shape
    return state.reshape(batch, key_heads * group, key_dim, value_dim)


def _solve_chunks(chunks: _Tokens) -> _Chunk:
    """What needs no state, for all chunks at once; all arrays, in and out, have a leading dimension `chunk`."""
    query, key, value = chunks.query, chunks.key, chunks.value
    beta = jnp.moveaxis(chunks.beta, 2, -1)
    each = jnp.moveaxis(chunks.log_decay, 2, -1)
    log_decay = jnp.cumsum(each, axis=-1)
    # Masked before exp: where token t is before s, it would be one, and not zero.
    between = sums_between(each)
    decay = jnp.exp(jnp.where(np.tri(key.shape[2], dtype=bool), between, -jnp.inf))
    overlaps = jnp.einsum("nbthk,nbshk->nbhts", key, key)[:, :, :, None] * decay
    system = _inverse_of_unit_lower(beta[..., None] * overlaps) * beta[..., None, :]
    return _Chunk(
        query=query,
        key=key,
        log_decay=log_decay,
        log_decay_to_end=between[..., -1, :],
        scores=jnp.einsum("nbthk,nbshk->nbhts", query, key)[:, :, :, None] * decay,
        corrections=jnp.einsum("nbhgts,nbshgv->nbhgtv", system, value),
        lookups=jnp.einsum("nbhgts,nbshk->nbhgtk", system * jnp.exp(log_decay)[..., None, :], key),
    )


def _run_chunk(state: jax.Array, chunk: _Chunk) -> tuple[jax.Array, jax.Array]:
    """The state after a chunk, and the outputs of its tokens, `[batch, token, key_head, group, value_dim]`."""
    corrections = chunk.corrections - jnp.einsum("bhgtk,bhgkv->bhgtv", chunk.lookups, state)
    decay = jnp.exp(chunk.log_decay)[..., None]
    outputs = decay * jnp.einsum("bthk,bhgkv->bhgtv", chunk.query, state)
    outputs += jnp.einsum("bhgts,bhgsv->bhgtv", chunk.scores, corrections)
    to_end = jnp.exp(chunk.log_decay_to_end)[..., None]
    state = decay[..., -1:, :] * state + jnp.einsum("bthk,bhgtv->bhgkv", chunk.key, to_end * corrections)
    return state, jnp.moveaxis(outputs, 3, 1)


@jax.custom_jvp
def _inverse_of_unit_lower(matrix: jax.Array) -> jax.Array:
    """The inverse of the matrix whose diagonal is ones and which below it is `matrix`, `[..., size, size]`.

    Inverses of diagonal blocks are joined to inverses of blocks twice as large: as exact as substitution, but few
    products instead of many steps, and these are sharded like any other.
    """
    size = matrix.shape[-1]
    row, column = np.indices((size, size))
    inverse = jnp.broadcast_to(jnp.eye(size, dtype=matrix.dtype), matrix.shape)
    block = 1
    while block < size:
        corners = jnp.where((row // block == column // block + 1) & (row // block % 2 == 1), matrix, 0)
        inverse -= corners if block == 1 else _product(inverse, corners, inverse)
        block *= 2
    return inverse


@_inverse_of_unit_lower.defjvp
def _inverse_of_unit_lower_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    inverse = _inverse_of_unit_lower(*primals)
    return inverse, -_product(inverse, jnp.tril(*tangents, k=-1), inverse)


def _product(*matrices: jax.Array) -> jax.Array:
    """The matrices' product in full precision: its errors would be multiplied from block to block."""
    return reduce(partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST), matrices)
