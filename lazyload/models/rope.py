"""Rotary position embedding, with the scalings of `transformers.modeling_rope_utils`."""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lazyload.architecture import Rope


@partial(jax.tree_util.register_dataclass, data_fields=("cos", "sin"), meta_fields=("interleaved",))
@dataclass(frozen=True)
class Rotation:
    """The angles of one rotary embedding at some positions.

    Attributes:
        cos: float32 `[batch, length, dim / 2]`.
        sin: float32 `[batch, length, dim / 2]`.
        interleaved: Whether a rotated pair is two neighbours instead of the two halves.
    """

    cos: jax.Array
    sin: jax.Array
    interleaved: bool


def rotation(rope: Rope, positions: jax.Array, segment_ids: jax.Array | None = None) -> Rotation:
    """The angles at `positions`, int32 `[batch, length]`.

    "dynamic" and "longrope" depend on the sequence's length; it is taken to be the largest position plus one, over the
    whole batch or, with `segment_ids` of the same shape, over each segment.
    """
    length = jnp.max(positions) + 1
    if segment_ids is not None and rope.kind in ("dynamic", "longrope"):
        together = segment_ids[:, :, None] == segment_ids[:, None]
        length = jnp.max(jnp.where(together, positions[:, None], 0), axis=-1, keepdims=True) + 1
    angles = positions.astype(jnp.float32)[..., None] * frequencies(rope, length)
    factor: jax.Array | float = rope.attention_factor
    if rope.long_attention_factor is not None:
        factor = jnp.where(length > _original(rope), rope.long_attention_factor, factor)
    return Rotation(jnp.cos(angles) * factor, jnp.sin(angles) * factor, rope.interleaved)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates the first `dim` dimensions of every head of `x`, `[batch, length, head, head_dim]`; in float32.

    Interleaved pairs come out as halves: queries and keys are permuted alike, which their products do not notice.
    """
    cos, sin = rotation.cos[:, :, None], rotation.sin[:, :, None]
    dim = 2 * cos.shape[-1]
    rotated, rest = x[..., :dim].astype(jnp.float32), x[..., dim:]
    if rotation.interleaved:
        first, second = rotated[..., 0::2], rotated[..., 1::2]
    else:
        first, second = jnp.split(rotated, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x.dtype), rest], axis=-1)


def frequencies(rope: Rope, length: jax.Array | int) -> jax.Array:
    """The angle that each pair turns by from one position to the next, float32 `[dim / 2]`.

    Args:
        rope: The embedding.
        length: The sequence's length, which "dynamic" and "longrope" depend on; a scalar, or `[..., 1]` for angles
            `[..., dim / 2]`.
    """
    plain = rope.theta ** -(np.arange(0, rope.dim, 2) / rope.dim)
    match rope.kind:
        case "default":
            scaled = plain
        case "linear":
            scaled = plain / rope.factor
        case "llama3":
            scaled = _llama3(rope, plain)
        case "yarn":
            scaled = _yarn(rope, plain)
        case "dynamic":
            return _dynamic(rope, length)
        case "proportional":
            scaled = np.where(np.arange(rope.dim // 2) < rope.turning_pairs, plain / rope.factor, 0.0)
        case "longrope":
            short, long = (np.float32(plain / np.array(f)) for f in (rope.short_factor, rope.long_factor))
            return jnp.where(length > _original(rope), long, short)
    return jnp.asarray(scaled, jnp.float32)


def _original(rope: Rope) -> int:
    assert rope.original_max_position is not None  # `Rope` sees to it
    return rope.original_max_position


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Long wavelengths are stretched by the factor, short ones kept, those between interpolated."""
    turns = _original(rope) * plain / (2 * math.pi)
    # Llama 4 Scout has nothing between the two.
    with np.errstate(divide="ignore"):
        smooth = (turns - rope.low_freq_factor) / np.float64(rope.high_freq_factor - rope.low_freq_factor)
    keep = np.clip(smooth, 0, 1)
    scaled: np.ndarray = (1 - keep) * plain / rope.factor + keep * plain
    return scaled


def _yarn(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """YaRN (https://arxiv.org/abs/2309.00071): a ramp over the dimensions from kept to stretched."""

    def dimension_of(turns: float) -> float:
        return rope.dim * math.log(_original(rope) / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = (np.arange(rope.dim // 2) - low) / (high - low if high != low else 0.001)
    stretch = np.clip(ramp, 0, 1)
    scaled: np.ndarray = stretch * plain / rope.factor + (1 - stretch) * plain
    return scaled


def _dynamic(rope: Rope, length: jax.Array | int) -> jax.Array:
    """NTK-aware scaling: beyond the original length the base grows with the sequence."""
    original = _original(rope)
    reach = jnp.maximum(length, original).astype(jnp.float32)
    growth = (rope.factor * reach / original - (rope.factor - 1)) ** (rope.dim / (rope.dim - 2))
    return 1 / (rope.theta * growth) ** (np.arange(0, rope.dim, 2, dtype=np.float32) / rope.dim)
