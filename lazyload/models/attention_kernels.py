"""Softmax attention, by a kernel that never holds the logits of all tokens, or densely.

Kernels are those that JAX has: splash attention (`jax.experimental.pallas.ops.tpu.splash_attention`) on TPUs, and
cuDNN's flash attention (`jax.nn.dot_product_attention`) on GPUs. Which one computes a layer is known when the call is
traced: it follows from the platform, from what the layer is, and from what the call brings. A kernel is told which
tokens see each other by a rule (causal, a window, chunks) and a number for each token; masks of pairs of tokens are
made only where these cannot say it.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from lazyload.architecture import Attention, AttentionKernel, CompressedAttention, DecoderConfig, LatentAttention
from lazyload.errors import InputError
from lazyload.models.activations import batch_split
from lazyload.models.context import Context
from lazyload.models.meshes import automatic_mesh, usable
from lazyload.models.parameters import partition
from lazyload.models.projection import Projection

_OF_PLATFORM: Mapping[str, AttentionKernel] = {"tpu": "splash", "gpu": "cudnn"}

_BLOCKS = (512, 256, 128)
"""The lengths of the blocks that splash attention may go by; the logits of fewer tokens than the least are few."""

_PADDING = np.iinfo(np.int32).min
"""The number of tokens that are padding, which is no segment's."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What attention depends on of a decoder's call.

    Attributes:
        platform: Where it runs, as `platform` says it.
        dtype: The dtype of queries.
        length: The number of tokens.
        has_cache: Whether keys are those of a key-value cache.
        has_padding: Whether some tokens may be padding.
        has_pairs: Whether there is a mask for each pair of tokens.
        has_segments: Whether rows hold several documents.
        is_checked: Whether a `jax.shard_map` around it checks what varies between devices (`check_vma=True`).
    """

    platform: str
    dtype: Any
    length: int
    has_cache: bool = False
    has_padding: bool = False
    has_pairs: bool = False
    has_segments: bool = False
    is_checked: bool = False


@dataclass(frozen=True, kw_only=True)
class Split:
    """The mesh axes that a batch of sequences, and those that query heads are split over."""

    batch: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()


def split_of(projection: Projection) -> Split:
    """How the mesh that is set splits what a projection to query heads puts out."""
    if automatic_mesh() is None:
        return Split()
    over = partition(projection.kernel, projection.axes)
    return Split(batch=batch_split(projection.axes, over) or (), heads=over[projection.axes.index("head")])


def platform() -> str:
    """`"tpu"`, `"gpu"` or `"cpu"`: of the devices of the mesh that is set, else of JAX's default device."""
    device: Any = jax.sharding.get_abstract_mesh().abstract_device or getattr(jax.config, "jax_default_device", None)
    if device is None or isinstance(device, str):
        return _without_maker(device or jax.default_backend())
    named: str | None = getattr(device, "platform", None)
    if named is None:
        # JAX 0.8 knows the kind of a mesh's devices alone.
        named = "tpu" if device.device_kind.startswith("TPU") else "cpu" if device.device_kind == "cpu" else "gpu"
    return _without_maker(named)


def platform_of(array: object) -> str | None:
    """The same of the devices that an array lies on; None where it is traced, which leaves it open."""
    if not isinstance(array, jax.Array) or isinstance(array, jax.core.Tracer):
        return None
    return _without_maker(next(iter(array.devices())).platform)


def _without_maker(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform


def call_of(context: Context, x: jax.Array) -> Call:
    """What attention depends on of the call whose context this is, and whose activations or queries are these."""
    mask, kind = context.attention_mask, jax.typeof(x)
    # JAX 0.8 has it in `vma`, later versions in `mat`.
    varying = getattr(getattr(kind, "mat", None), "varying", None) or getattr(kind, "vma", None)
    return Call(
        platform=context.platform or platform(),
        dtype=jnp.dtype(x.dtype),
        length=context.positions.shape[1],
        has_cache=context.has_cache,
        has_padding=mask is not None and mask.ndim == 2,
        has_pairs=mask is not None and mask.ndim == 3,
        has_segments=context.segment_ids is not None,
        is_checked=bool(varying),
    )


def require_able(config: DecoderConfig, name: AttentionKernel | None, call: Call | None = None) -> None:
    """Makes sure that an implementation that was asked for can compute every layer of a decoder.

    Args:
        config: What the decoder is.
        name: The implementation; None to have it chosen, layer by layer.
        call: What is known of the call; None for nothing, as long as there is none.

    Raises:
        InputError: There is none by that name, or it cannot: of which layer, and why.
    """
    if name is not None and name not in get_args(AttentionKernel):
        raise InputError(f"attention={name!r:.100}: give None, {', '.join(map(repr, get_args(AttentionKernel)))}")
    if name is None or (call is not None and call.has_cache):
        return
    for number, layer in enumerate(config.layers):
        reason = None if layer.mixer is None else _refusal(name, layer.mixer, call)
        if reason is not None:
            raise InputError(f"attention={name!r} cannot compute layer {number}: {reason}; give attention=None")


def chosen(name: AttentionKernel | None, mixer: Attention | LatentAttention, call: Call) -> AttentionKernel:
    """What computes the attention of a layer: what was asked for, else the platform's kernel where it can, else dense.

    With a key-value cache that is dense in any case: one token has few logits. With a mask, cuDNN computes only where
    it was asked for: its call in `jax.nn.dot_product_attention` does not go together with a mask under `jax.vmap`.
    """
    if call.has_cache:
        return "dense"
    kernel = name or _OF_PLATFORM.get(call.platform, "dense")
    if name is None and (call.length < _BLOCKS[-1] or (kernel == "cudnn" and _is_masked(kernel, mixer, call))):
        return "dense"
    return "dense" if _refusal(kernel, mixer, call) else kernel


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    context: Context,
    mixer: Attention | LatentAttention,
    split: Split,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention of a layer; logits and softmax are in float32.

    Args:
        query: `[batch, length, head, dim]`.
        key: `[batch, keys, kv_head, dim]`; each serves `head / kv_head` neighbouring query heads.
        value: `[batch, keys, kv_head, v_dim]`.
        context: Which tokens may see each other, and what computes it.
        mixer: The layer's scale, soft cap, window and chunks.
        split: How the mesh that is set splits batch and heads.
        sinks: `[head]`: one further logit a head, whose share of the attention goes nowhere.

    Returns:
        `[batch, length, head, v_dim]`, of the values' dtype. Tokens that are padding get finite nonsense.
    """
    rule = _Rule.of(mixer)
    call = call_of(context, query)
    kernel = chosen(context.attention, mixer, call)
    if kernel == "dense":
        pairs = context.mask(key.shape[1], rule.window, rule.chunk)
        return dense(query, key, value, pairs, scale=rule.scale, softcap=rule.softcap, sinks=sinks)

    run: Callable[..., jax.Array]
    if kernel == "splash":
        run = functools.partial(_splash, rule=rule, interpret=call.platform == "cpu")
    else:
        run = functools.partial(_cudnn, rule=rule, causal=not call.has_pairs)
    by_pairs = _is_masked(kernel, mixer, call)
    mask = context.mask(key.shape[1], rule.window, rule.chunk) if by_pairs else None
    if mask is not None:
        mask = jnp.broadcast_to(mask, (query.shape[0], *mask.shape[1:]))
    return _on_shards(run, query, key, value, mask, None if by_pairs else _groups(context), sinks, split)


def dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention by products of all queries with all keys; logits and softmax are in float32.

    Args:
        query: `[batch, length, head, dim]`.
        key: `[batch, keys, kv_head, dim]`; each serves `head / kv_head` neighbouring query heads.
        value: `[batch, keys, kv_head, v_dim]`.
        mask: bool `[batch or 1, length, keys]`. A query that may attend to nothing (padding) gets finite nonsense.
        scale: What the logits are multiplied with.
        softcap: `softcap * tanh(logits / softcap)`, before the mask.
        sinks: `[head]`: one further logit a head, whose share of the attention goes nowhere.

    Returns:
        `[batch, length, head, v_dim]`, of the values' dtype.
    """
    batch, length, heads, dim = query.shape
    kv_heads = key.shape[2]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    logits = jnp.einsum("btkgh,bskh->bkgts", grouped, key, preferred_element_type=jnp.float32) * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(1, kv_heads, -1, 1, 1)
        logits = jnp.concatenate([logits, jnp.broadcast_to(sink, (*logits.shape[:-1], 1))], axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)[..., : key.shape[1]]
    mixed = jnp.einsum("bkgts,bskv->btkgv", weights.astype(value.dtype), value)
    return mixed.reshape(batch, length, heads, value.shape[-1])


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """How a layer makes logits of queries and keys, and which keys a token sees."""

    scale: float
    softcap: float | None = None
    window: int | None = None
    chunk: int | None = None

    @classmethod
    def of(cls, mixer: Attention | LatentAttention) -> "_Rule":
        if isinstance(mixer, LatentAttention):
            return cls(scale=mixer.scale)
        return cls(scale=mixer.scale, softcap=mixer.softcap, window=mixer.window, chunk=mixer.chunk)


def _is_masked(kernel: AttentionKernel, mixer: Attention | LatentAttention, call: Call) -> bool:
    """Whether a kernel has to be told of each pair of tokens whether they see each other."""
    if kernel == "splash":
        return call.has_pairs
    return call.has_pairs or call.has_padding or call.has_segments or _Rule.of(mixer).chunk is not None


def _refusal(kernel: AttentionKernel, mixer: Any, call: Call | None) -> str | None:
    """Why a kernel cannot compute the attention of a layer, in a call or in any; None where it can."""
    if kernel == "dense" or not isinstance(mixer, Attention | LatentAttention | CompressedAttention):
        return None
    if isinstance(mixer, CompressedAttention):
        return "it attends to compressed keys"
    if isinstance(mixer, LatentAttention) and (mixer.indexer is not None or mixer.shares_selection):
        return "it attends to keys that an indexer selects"
    mesh = jax.sharding.get_abstract_mesh()
    if call is not None and AxisType.Manual in mesh.axis_types and AxisType.Auto in mesh.axis_types:
        return "some axes of the mesh are manual and some automatic"
    return (_refusal_of_splash if kernel == "splash" else _refusal_of_cudnn)(mixer, call)


def _refusal_of_splash(mixer: Attention | LatentAttention, call: Call | None) -> str | None:
    if call is None:
        return None
    if call.platform not in ("tpu", "cpu"):
        return f"splash attention is a kernel for TPUs, and the model lies on a {call.platform}"
    if call.is_checked:
        return "the jax.shard_map around it checks what varies (check_vma=False)"
    if _Rule.of(mixer).chunk and not call.has_pairs and (call.has_padding or call.has_segments):
        return "its chunks start where padding ends and where segments do"
    return None


def _refusal_of_cudnn(mixer: Attention | LatentAttention, call: Call | None) -> str | None:
    rule = _Rule.of(mixer)
    if rule.softcap is not None:
        return "cuDNN's kernel has no soft cap"
    if isinstance(mixer, Attention) and mixer.sinks:
        return "cuDNN's kernel has no sinks"
    if isinstance(mixer, LatentAttention) and mixer.v_dim != mixer.head_dim:
        return (
            f"keys are {mixer.head_dim} wide and values {mixer.v_dim}, which jax.nn.dot_product_attention wants alike"
        )
    if mixer.head_dim % 8 or mixer.head_dim > 256:
        return f"heads are {mixer.head_dim} wide; cuDNN's kernel takes multiples of 8 up to 256"
    if call is None:
        return None
    if call.platform != "gpu":
        return f"cuDNN is for NVIDIA's GPUs, and the model lies on a {call.platform}"
    if call.dtype not in (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)):
        return f"queries are {call.dtype}; cuDNN's kernel takes bfloat16 and float16 (compute_dtype=)"
    capability = _compute_capability()
    if capability is None or capability < (8, 0):
        return "cuDNN's kernel is for NVIDIA's GPUs of compute capability 8.0 and above"
    if mixer.head_dim > 128 and capability != (9, 0):
        return f"heads are {mixer.head_dim} wide; but for compute capability 9.0, cuDNN's kernel takes up to 128"
    return None


def _compute_capability() -> tuple[int, int] | None:
    """That of this process's GPUs; None where there are none of NVIDIA's."""
    try:
        devices = jax.local_devices(backend="gpu")
    except RuntimeError:
        return None
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(devices[0], "compute_capability", "")))
    return None if found is None else (int(found[1]), int(found[2]))


def _groups(context: Context) -> jax.Array | None:
    """A number for each token, int32 `[batch, length]`; those of the same number may see each other. None for all."""
    real, segments = context.real(), context.segment_ids
    if segments is None and real is None:
        return None
    numbers = jnp.zeros(context.positions.shape, jnp.int32) if segments is None else segments.astype(jnp.int32)
    return numbers if real is None else jnp.where(real, numbers, _PADDING)


def _on_shards(
    run: Callable[..., jax.Array],
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    groups: jax.Array | None,
    sinks: jax.Array | None,
    split: Split,
) -> jax.Array:
    """Runs a kernel on each device of the mesh that is set, on its sequences and heads.

    Axes of the mesh that split neither split the batch, too, as far as they divide it.
    """
    mesh = automatic_mesh()
    if mesh is None:
        return run(query, key, value, mask, groups, sinks)
    heads = usable(mesh, split.heads, query.shape[2])
    others = [name for name in mesh.axis_names if name not in (*split.batch, *heads)]
    batch = usable(mesh, [*(name for name in split.batch if name not in heads), *others], query.shape[0])
    parts = math.prod(mesh.shape[name] for name in heads)
    # Where there are fewer of them than parts, several parts have the same ones.
    copies = math.lcm(key.shape[2], parts) // key.shape[2]
    if copies > 1:
        key, value = jnp.repeat(key, copies, axis=2), jnp.repeat(value, copies, axis=2)
    by_head, by_row = PartitionSpec(batch, None, heads), PartitionSpec(batch)
    places = (by_head, by_head, by_head, by_row, by_row, PartitionSpec(heads))
    shards: Callable[..., jax.Array] = jax.shard_map(run, in_specs=places, out_specs=by_head, check_vma=False)
    return shards(query, key, value, mask, groups, sinks)


def _cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, *_: None, rule: _Rule, causal: bool
) -> jax.Array:
    """Computes attention on one device; the mask is None for what the rule says, and causal or not beside it.

    cuDNN's gradient wants an even number of tokens: to an odd one comes another at the end, which nobody else sees. So
    it was with JAX 0.11.2 on an H200, without a mask, too: `check_is_flash_attention`, which asks for it where there is
    a bias, takes the empty array that stands for none for one.
    """
    length = query.shape[1]
    fill = length % 2
    query, key, value = (jnp.pad(x, ((0, 0), (0, fill), (0, 0), (0, 0))) for x in (query, key, value))
    if mask is not None and fill:
        mask = jnp.pad(mask, ((0, 0), (0, fill), (0, fill))).at[:, length, length].set(True)
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if mask is None else mask[:, None],
        scale=rule.scale,
        is_causal=causal,
        local_window_size=None if rule.window is None or mask is not None else (rule.window - 1, 0),
        implementation="cudnn",
    )
    return mixed[:, :length]


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    groups: jax.Array | None,
    sinks: jax.Array | None,
    *,
    rule: _Rule,
    interpret: bool,
) -> jax.Array:
    """Splash attention on one device.

    The sequence is filled up at its end to whole blocks, which no token before sees.

    Args:
        query: `[batch, length, head, dim]`, and so on, as in `attend`.
        key: The keys.
        value: The values.
        mask: bool `[batch, length, length]`; None for what the rule says.
        groups: As `_groups` makes them.
        sinks: float `[head]`, or None.
        rule: What is computed.
        interpret: Whether to run the kernel's program as plain operations, where there is no TPU.
    """
    # Pallas takes a while to import.
    from jax.experimental.pallas.ops.tpu import splash_attention

    length, heads = query.shape[1:3]
    block = _block(length)
    fill = -length % block
    # The kernel multiplies logits with nothing.
    query = (query.astype(jnp.float32) * rule.scale).astype(query.dtype)
    filling = ((0, 0), (0, 0), (0, fill), (0, 0))
    query, key, value = (jnp.pad(jnp.swapaxes(x, 1, 2), filling) for x in (query, key, value))
    sizes = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def kernel_of(mask: Any) -> Any:
        return splash_attention.make_splash_mha(
            mask,
            block_sizes=sizes,
            attn_logits_soft_cap=rule.softcap,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )

    def by_rule(query: jax.Array, key: jax.Array, value: jax.Array, groups: jax.Array | None) -> Any:
        ids = None if groups is None else splash_attention.SegmentIds(groups, groups)
        return kernel_of(_heads_mask(rule, length + fill, heads))(query, key, value, segment_ids=ids, sinks=sinks)

    def by_pairs(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> Any:
        kernel = kernel_of(mask[None])
        # JAX 0.10 to 0.12 make an array of this flag, and ask it whether it is true.
        kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
        return kernel(query, key, value, sinks=sinks)

    if mask is None:
        mixed = jax.vmap(by_rule)(query, key, value, None if groups is None else jnp.pad(groups, ((0, 0), (0, fill))))
    else:
        # A token that sees no key would be divided by zero.
        itself = jnp.eye(length + fill, dtype=bool)
        mixed = jax.vmap(by_pairs)(query, key, value, jnp.pad(mask, ((0, 0), (0, fill), (0, fill))) | itself)
    return jnp.swapaxes(mixed, 1, 2)[:, :length].astype(value.dtype)


def _heads_mask(rule: _Rule, length: int, heads: int) -> Any:
    """Which keys a token sees, as a rule that the kernel computes, the same for each head."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    mask: Any = masks.CausalMask(shape) if rule.window is None else masks.LocalMask(shape, (rule.window - 1, 0), 0)
    if rule.chunk is not None:
        chunks = masks.ChunkedCausalMask(shape, rule.chunk)
        mask = chunks if rule.window is None else mask & chunks
    return masks.MultiHeadMask([mask] * heads)


def _block(length: int) -> int:
    """The longest block that does not fill up a sequence by more than an eighth, else the shortest."""
    return next((block for block in _BLOCKS if -length % block <= length // 8), _BLOCKS[-1])
