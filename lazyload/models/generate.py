"""`generate`: a decoder continues sequences of tokens, in one compiled program: the prompt, then a loop."""

import functools
import math
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from lazyload.errors import ArgumentError, InputError
from lazyload.models.meshes import constrain, has_explicit_axes, mesh_of, run_with_automatic_axes
from lazyload.models.sampling import choose

if TYPE_CHECKING:
    from lazyload.models.decoder import Decoder


def generate(
    model: "Decoder",
    tokens: ArrayLike,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    key: jax.Array | int | None = None,
    eos: int | Sequence[int] | None = None,
    pad: int | None = None,
    attention_mask: ArrayLike | None = None,
) -> jax.Array:
    """Continues sequences of tokens.

    Prompt and loop are one compiled program, which is compiled again for another shape of `tokens`, another
    `max_new_tokens` or `top_k`. The key-value cache lives in it and is never copied. This is enough to see what a model
    says, and no server.

    Args:
        model: The model, on whatever mesh.
        tokens: Prompts, whole numbers `[batch, length]`; shorter ones are padded on the left.
        max_new_tokens: How many tokens are added at most.
        temperature: 0 takes the likeliest token each time; above it, tokens are drawn from logits divided by it.
        top_k: Draws from the so many likeliest tokens; None for all.
        top_p: Draws from the likeliest tokens that together have this probability; None for all.
        key: What is drawn with: a `jax.random.key`, or a number to make one of. The same key draws the same tokens.
        eos: The token, or tokens, that end a sequence. The loop ends when all sequences have ended; None for never.
        pad: The token that fills prompts on their left, and sequences that have ended; None for no padding in the
            prompts (unless `attention_mask` says where it is), and the first of `eos` behind the ends.
        attention_mask: Which tokens are no padding, `[batch, length]` of 0 and 1, as tokenizers make it; None for what
            follows from `pad`.

    Returns:
        int32 `[batch, length + new tokens]`: the prompts and what follows, as far as the longest sequence goes.

    Raises:
        ArgumentError: An argument is none of those that are taken.
        InputError: `tokens` are no tokens of the model, `attention_mask` does not fit them, or the model scores tokens.

    Example:
        >>> tokens = lazyload.generate(model, [[1, 2, 3]], max_new_tokens=8)  # doctest: +SKIP
    """
    prompts = _prompts(tokens, model.config.vocab_size)
    _require_options(max_new_tokens, temperature, top_k, top_p, key)
    if pad is not None and not (_is_whole(pad) and 0 <= pad < model.config.vocab_size):
        raise ArgumentError(f"pad={pad!r:.200}: give a token of the model, 0 to {model.config.vocab_size - 1}, or None")
    mask = _mask(prompts, pad, attention_mask)
    ends = _ends(eos, model.config.vocab_size)
    if key is not None and not isinstance(key, jax.Array):
        key = jax.random.key(int(key))
    fill = pad if pad is not None else ends[0] if ends else 0
    graphdef, state = nnx.split(model)
    new, count = _generated(
        graphdef,
        state,
        jnp.asarray(prompts),
        None if mask is None else jnp.asarray(mask),
        key if temperature else None,
        jnp.float32(temperature),
        None if top_p is None else jnp.float32(top_p),
        jnp.asarray(ends, jnp.int32),
        jnp.int32(fill),
        max_new_tokens=max_new_tokens,
        top_k=top_k,
    )
    return jnp.concatenate([jnp.asarray(prompts), jnp.asarray(np.asarray(new)[:, : int(count)])], axis=1)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("max_new_tokens", "top_k"))
def _generated(graphdef: Any, state: Any, *args: Any, max_new_tokens: int, top_k: int | None) -> Any:
    """The new tokens, `[batch, max_new_tokens]`, and how many of them count."""
    model = nnx.merge(graphdef, state)
    loop = functools.partial(_loop, max_new_tokens=max_new_tokens, top_k=top_k)
    with mesh_of(model.embed.embedding[...]):
        if has_explicit_axes():
            return run_with_automatic_axes(loop, model, *args, out_specs=(PartitionSpec(), PartitionSpec()))
        new, count = loop(model, *args)
        return constrain(new, (), ()), count


def _loop(
    model: "Decoder",
    tokens: jax.Array,
    mask: jax.Array | None,
    key: jax.Array | None,
    temperature: jax.Array,
    top_p: jax.Array | None,
    ends: jax.Array,
    fill: jax.Array,
    *,
    max_new_tokens: int,
    top_k: int | None,
) -> tuple[jax.Array, jax.Array]:
    batch, length = tokens.shape
    dtype = getattr(model, "compute_dtype", None) or model.embed.embedding.dtype
    cache = model.init_cache(batch, length + max_new_tokens, dtype)
    real = jnp.ones_like(tokens) if mask is None else mask.astype(jnp.int32)
    positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
    following = positions[:, -1:] + 1

    def chosen(logits: jax.Array, step: jax.Array | int, ended: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = None if key is None else jax.random.fold_in(key, step)
        token = jnp.where(ended, fill, choose(logits[:, -1], own, temperature, top_k, top_p))
        return token, ended | jnp.any(token[:, None] == ends, axis=1)

    def goes_on(carry: Any) -> jax.Array:
        step, _, _, ended, _ = carry
        is_open: jax.Array = ~jnp.all(ended) & (step < max_new_tokens)
        return is_open

    def advance(carry: Any) -> Any:
        step, token, cache, ended, new = carry
        logits, cache = model(token[:, None], following + step - 1, cache, mask)
        token, ended = chosen(logits, step, ended)
        return step + 1, token, cache, ended, jax.lax.dynamic_update_slice(new, token[:, None], (0, step))

    logits, filled = model(tokens, positions, cache, mask)
    if logits.shape[-1] != model.config.vocab_size:
        raise InputError(f"the model scores tokens, {logits.shape[-1]} numbers each, and predicts none")
    token, ended = chosen(logits, 0, jnp.zeros(batch, bool))
    new = jnp.full((batch, max_new_tokens), fill, jnp.int32).at[:, 0].set(token)
    step, _, _, _, new = jax.lax.while_loop(goes_on, advance, (jnp.int32(1), token, filled, ended, new))
    return new, step


def _prompts(tokens: ArrayLike, vocab_size: int) -> np.ndarray:
    try:
        prompts = np.asarray(tokens)
    except ValueError:
        raise InputError("tokens: the prompts differ in length; pad shorter ones on the left, and give pad=") from None
    if prompts.ndim != 2 or not prompts.size or not np.issubdtype(prompts.dtype, np.integer):
        raise InputError(f"tokens are {prompts.dtype} {list(prompts.shape)}; give whole numbers [batch, length]")
    if prompts.min() < 0 or prompts.max() >= vocab_size:
        raise InputError(
            f"tokens: the model has the tokens 0 to {vocab_size - 1}, not {prompts.min()} or {prompts.max()}"
        )
    return prompts.astype(np.int32)


def _require_options(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, key: jax.Array | int | None
) -> None:
    if not _is_whole(max_new_tokens) or max_new_tokens < 1:
        raise ArgumentError(f"max_new_tokens={max_new_tokens!r:.200}: give a whole number from 1 on")
    if not isinstance(temperature, numbers.Real) or not 0 <= temperature < math.inf:
        raise ArgumentError(f"temperature={temperature!r:.200}: give 0 for the likeliest token, or a number above it")
    if top_k is not None and (not _is_whole(top_k) or top_k < 1):
        raise ArgumentError(f"top_k={top_k!r:.200}: give a whole number from 1 on, or None for all tokens")
    if top_p is not None and (not isinstance(top_p, numbers.Real) or not 0 < top_p <= 1):
        raise ArgumentError(f"top_p={top_p!r:.200}: give a number above 0, up to 1, or None for all tokens")
    if not (key is None or _is_whole(key) or isinstance(key, jax.Array)):
        raise ArgumentError(f"key={key!r:.200}: give a jax.random.key, or a whole number to make one of")
    if temperature and key is None:
        raise ArgumentError("with temperature= tokens are drawn: give key=, such as jax.random.key(0)")
    if not temperature and (top_k is not None or top_p is not None):
        raise ArgumentError("top_k= and top_p= say what tokens are drawn from: give temperature=, too, such as 1.0")


def _mask(prompts: np.ndarray, pad: int | None, attention_mask: ArrayLike | None) -> np.ndarray | None:
    """Which tokens are no padding; None for all."""
    if attention_mask is None:
        # A token in the middle is none of the padding, whatever it is.
        mask = np.logical_or.accumulate(prompts != pad, axis=1) if pad is not None else np.ones(prompts.shape, bool)
    else:
        try:
            mask = np.asarray(attention_mask)
        except ValueError:
            raise InputError(f"attention_mask: rows differ in length; give {list(prompts.shape)} of 0 and 1") from None
        if mask.shape != prompts.shape or not np.isin(mask, (0, 1)).all():
            raise InputError(f"attention_mask has shape {list(mask.shape)}; give {list(prompts.shape)} of 0 and 1")
        mask = mask.astype(bool)
    if not mask[:, -1].all() or (mask[:, 1:] < mask[:, :-1]).any():
        raise InputError("the prompts are padded on the right, or are nothing but padding; pad them on the left")
    return None if mask.all() else mask


def _ends(eos: int | Sequence[int] | None, vocab_size: int) -> tuple[int, ...]:
    ends = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    if not all(_is_whole(token) and 0 <= token < vocab_size for token in ends):
        raise ArgumentError(f"eos={eos!r:.200}: give a token of the model, 0 to {vocab_size - 1}, or several")
    return ends


def _is_whole(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool)
