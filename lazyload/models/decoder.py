"""The decoder: a stack of layers between an embedding and an output projection."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from lazyload.architecture import AttentionKernel, DecoderConfig, Layer
from lazyload.architecture.stacking import stacks
from lazyload.errors import InputError
from lazyload.models import kv_cache, weight_sync
from lazyload.models.activations import value_of, zeros
from lazyload.models.altup import AltUpStreams
from lazyload.models.attention_kernels import call_of, platform_of, require_able
from lazyload.models.context import Context, checked_mask, counted_positions, require_segments
from lazyload.models.hyper_connection import HyperStreams
from lazyload.models.kv_cache import KVCache
from lazyload.models.layer import BLOCKS, DecoderLayer
from lazyload.models.meshes import explicit_spec, has_explicit_axes, mesh_of, run_with_automatic_axes
from lazyload.models.norm import LayerNorm, RMSNorm, norm_of
from lazyload.models.parameters import Parameters
from lazyload.models.projection import Embedding, Projection, TiedProjection
from lazyload.models.stack import Remat, Stack


class Decoder(nnx.Module):
    """A decoder-only transformer, whatever its family.

    Activations have the dtype of the embedding, and products with parameters of another dtype are computed in the wider
    of the two; with `compute_dtype` both have that one, whatever dtype parameters are stored in. Norms, rotary
    embedding, softmax and routing are in float32 in any case. The model runs without a mesh and on any mesh, with
    automatic or explicit axes, whether or not one is set. Made with `rngs=None`, its parameters have shapes and no
    values.

    Attributes:
        config: What it is.
        compute_dtype: The dtype of activations and products; None for what the parameters' dtypes make of it.
        scan_layers: Whether layers that are alike are stacked, each parameter an array of all of them.
        remat: What the backward pass computes again instead of having it kept; it may be set at any time. `"none"`:
            nothing; `"block"`: all of a layer but its input; `"dots"`: all but that and the products with parameters.
        attention: What computes attention where there is no key-value cache; it may be set at any time. None: the
            platform's kernel where it can, splash attention on TPUs and, without a mask, cuDNN's on GPUs, and dense
            products elsewhere. `"dense"`, `"splash"` or `"cudnn"`: that, and an error where it cannot. With a cache it
            is dense. Kernels have no derivatives in forward mode (`jax.jvp`, `jax.linearize`, `jax.hessian`), for which
            it has to be `"dense"`.
        embed: The embedding.
        layers: The layers, or the stacks of them: those that follow each other, or those at each place of a cycle.
        per_layer_embedding: What makes the layers' own inputs; absent where they have none.
        streams: What makes several residual streams of one, and one again; absent where there is one.
        final_norm: The norm before the output projection.
        hub_names: For each parameter the tensor of the hub's checkpoint that holds it, in pairs, as `tensor_names` of
            `lazyload/formats/tensor_names.py` says them; empty for a decoder that was not loaded.
        lm_head: The output projection; without parameters where the embedding is used for it, too. It may be replaced
            by any module that takes `[batch, length, embed]`, such as a value head. Absent where the config has a head
            that scores tokens, which is an attribute by its own name; what is said of logits holds for its scores.
        logits_bias: The bias of either; absent where there is none.
    """

    remat: Remat
    attention: AttentionKernel | None
    embed: Embedding
    compute_dtype: np.dtype[Any] | None
    hub_names: tuple[tuple[str, str], ...]
    per_layer_embedding: nnx.Module
    streams: AltUpStreams | HyperStreams
    layers: nnx.List[DecoderLayer]
    final_norm: RMSNorm | LayerNorm
    lm_head: Any
    logits_bias: nnx.Param[jax.Array]

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: DTypeLike = jnp.bfloat16,
        compute_dtype: DTypeLike | None = None,
        scan_layers: bool = False,
        remat: Remat = "none",
        attention: AttentionKernel | None = None,
        rngs: nnx.Rngs | None,
    ):
        self.config = config
        self.compute_dtype = None if compute_dtype is None else jnp.dtype(compute_dtype)
        self.hub_names = ()
        self.scan_layers = scan_layers
        self.remat = remat
        self.attention = attention

        def declared(part: DecoderConfig | Layer, layers: int | None = None) -> Parameters:
            return Parameters(
                part.parameters,
                {**config.axes, **part.axes},
                dtype=dtype,
                rngs=rngs,
                layers=layers,
                compute_dtype=self.compute_dtype,
            )

        parameters = declared(config)
        self.embed = Embedding(parameters["embed"])
        for block in config.blocks:
            setattr(self, block.name, BLOCKS[type(block)](block, parameters[block.name]))

        def made(layer: Layer, layers: int | None = None) -> DecoderLayer:
            return DecoderLayer(layer, declared(layer, layers))

        if scan_layers:
            self.layers = nnx.List([made(config.layers[stack[0]], len(stack)) for stack in stacks(config)])
        else:
            self.layers = nnx.List(map(made if rngs is not None else _copied(made), config.layers))
        self.final_norm = norm_of(parameters["final_norm"], config.norm)
        if config.head is not None:
            setattr(self, config.head.name, Projection(parameters[config.head.name]))
        elif config.tied:
            self.lm_head = TiedProjection(config.embed_dim, config.vocab_size)
        else:
            self.lm_head = Projection(parameters["lm_head"])
        if "logits_bias" in parameters:
            self.logits_bias = parameters.declare("logits_bias", nnx.initializers.zeros_init())

    def __repr__(self) -> str:
        # What shows something takes a while to import, and loading shows nothing.
        from lazyload.models import card

        return card.as_text(self, self.config)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        from lazyload.models import card

        return card.as_html(self, self.config)

    @property
    def num_embed(self) -> int:
        """The rows of the embedding, by the name that Tunix reads."""
        return self.config.vocab_size

    def init_cache(self, batch_size: int, cache_size: int, dtype: DTypeLike) -> KVCache:
        """An empty cache, as `lazyload/models/kv_cache.py` describes it.

        Args:
            batch_size: The number of sequences.
            cache_size: The tokens that each of them may have.
            dtype: The dtype of keys and values.
        """
        (embedding,) = jax.tree.leaves(self.embed.embedding)
        with mesh_of(embedding):
            numbers = [stack[0] for stack in stacks(self.config)] if self.scan_layers else range(len(self.layers))
            layers = dict(zip(numbers, self.layers, strict=True))

            def made(number: int, axes: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
                return zeros(axes, shape, dtype, layers[number], self.embed.embedding)

            return kv_cache.init_cache(
                self.config, batch_size, cache_size, dtype, scan_layers=self.scan_layers, zeros=made
            )

    def get_model_input(self) -> dict[str, Any]:
        """Arguments for a trial call, by the name that qwix reads."""
        tokens = jnp.ones((2, 1), jnp.int32)
        return {"tokens": tokens, "positions": tokens, "cache": None, "attention_mask": jnp.ones((2, 1, 1), bool)}

    def mapping_config(self, backend: str = "vllm_jax", *, tensor_parallel_size: int | None = None) -> dict[str, Any]:
        """All tables that Tunix asks for below, by their names, for its `RolloutConfig(rollout_mapping_config=...)`.

        Args:
            backend: `"vllm_jax"` or `"sglang_jax"`.
            tensor_parallel_size: Over how many devices that program splits a layer's widths; Tunix's `MappingConfig`,
                which asks the model itself otherwise, has no way to say it. Of vLLM's JAX models it is the size of axis
                `model` of their mesh alone, whatever other axes that has, such as those of data or expert parallelism.

        Raises:
            InputError: There is no such backend, or parameters have no name there.
        """
        return {
            "to_hf_mappings": self.to_hf_mappings(backend, tensor_parallel_size=tensor_parallel_size),
            "lora_to_hf_mappings": self.lora_to_hf_mappings(backend),
            "to_hf_hook_fns": None,
            "to_hf_transpose_keys": self.to_hf_transpose_keys(backend),
            "lora_to_hf_transpose_keys": self.lora_to_hf_transpose_keys(backend),
            "preprocess_src_state": self.preprocess_src_state(backend, tensor_parallel_size=tensor_parallel_size),
        }

    def to_hf_mappings(
        self, backend: str = "vllm_jax", *, tensor_parallel_size: int | None = None
    ) -> dict[str, weight_sync.Entry]:
        """What Tunix asks for to bring weights into vLLM (`"vllm_jax"`) or SGLang (`"sglang_jax"`).

        Raises:
            InputError: There is no such backend, or parameters have no name there; or an array there is of several
                parameters in an order that depends on `tensor_parallel_size`, as in `mapping_config`.
        """
        return weight_sync.mappings(self, self._names(), self.config.family, backend, tensor_parallel_size)

    def lora_to_hf_mappings(self, backend: str = "vllm_jax") -> dict[str, weight_sync.Entry]:
        """The same for the parameters that LoRA adds; `backend` is one of the same.

        Raises:
            InputError: There is no such backend, or some of them have no name there.
        """
        return weight_sync.lora_mappings(self, self._names(), self.config.family, backend)

    def to_hf_transpose_keys(self, backend: str = "vllm_jax") -> dict[str, tuple[int, ...]] | None:
        """The parameters whose dimensions have another order in `backend`."""
        return weight_sync.transposed(self, backend)

    def lora_to_hf_transpose_keys(self, backend: str = "vllm_jax") -> dict[str, tuple[int, ...]] | None:
        """The same for the parameters that LoRA adds; `backend` is one of the same."""
        return weight_sync.lora_transposed(self, backend)

    def to_hf_hook_fns(self, backend: str = "vllm_jax") -> None:
        """None: no value is another one in either `backend`."""

    def preprocess_src_state(
        self, backend: str = "vllm_jax", *, tensor_parallel_size: int | None = None
    ) -> Callable[[nnx.State[Any, Any]], nnx.State[Any, Any]] | None:
        """What makes of the parameters those that `backend` has: of gates and ups one array; or None.

        Raises:
            InputError: There is no such backend, or that depends on `tensor_parallel_size`.
        """
        return weight_sync.preprocessing(self, self.config.family, backend, tensor_parallel_size)

    def _names(self) -> dict[str, str]:
        if not self.hub_names:
            raise InputError("names in other programs are known of decoders that lazyload.from_pretrained has loaded")
        return dict(self.hub_names)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array | None = None,
        cache: KVCache | None = None,
        attention_mask: jax.Array | None = None,
        *,
        segment_ids: jax.Array | None = None,
        output_hidden_states: bool = False,
        skip_lm_head: bool = False,
        decode_only_last_token: bool = False,
        images: None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Predicts the next token after each of the tokens.

        Args:
            tokens: int32 `[batch, length]`.
            positions: int32 `[batch, length]`, for the rotary embedding; None counts up from the cache's end, or from
                the start of each segment.
            cache: What earlier calls left, or `init_cache(...)`; None for a whole sequence at once.
            attention_mask: bool, True where a key may be attended to, keys being the cache's slots or, without a
                cache, the tokens. `[batch, keys]`, as tokenizers make it, says which keys are no padding; `[batch,
                length, keys]` or `[batch, 1, length, keys]` says it for each token. None is causal. Sliding windows
                narrow either, counted in slots, and chunks, counted from the first key that a token may attend to.
                Columns count from the cache's first token, also where it has no slots.
            segment_ids: int32 `[batch, length]`, the documents that are packed into a row, each of tokens that follow
                each other. Tokens see those of their own segment only, and of these what the mask allows; states that
                are carried along start anew with each segment. None for one document a row.
            output_hidden_states: Whether to sow what the output projection gets, `[batch, length, embed]`, as the
                `nnx.Intermediate` `all_hidden_states`.
            skip_lm_head: Whether to return that instead of logits, for `compute_final_logits`.
            decode_only_last_token: Whether to return the last token's logits only, `[batch, 1, vocab]`.
            images: None: the models are of text alone.

        Returns:
            Logits, float32 `[batch, length, vocab]` (the projection itself is computed in the activations' dtype, or
            in its own where that is wider), and the cache with these tokens, None where none was given. Inside
            `jax.jit`, where it cannot be known beforehand that tokens do not fit into the cache, they are no numbers
            then (NaN).

        Raises:
            InputError: The tokens do not fit into the cache, the mask or the segments have another shape, there are
                segments and a cache or compressed attention, there are images, or `attention` names what cannot
                compute a layer.
        """
        if images is not None:
            raise InputError("there are images, and this is a model of text alone: give images=None")
        batch, length = tokens.shape
        size = length if cache is None else kv_cache.slots(self.config, cache)
        if cache is not None and size is not None:
            kv_cache.require_room(cache, size, length)
        keys = length if size is None else size
        if cache is not None and size is None and attention_mask is not None:
            # Nothing is kept of each token; the mask has a column for those before, too.
            keys = attention_mask.shape[-1]
        attention_mask = checked_mask(attention_mask, batch, length, keys)
        if segment_ids is not None:
            require_segments(segment_ids, tokens, cache)
        with mesh_of(self.embed.embedding[...]):
            args = (tokens, positions, cache, attention_mask, segment_ids)
            if has_explicit_axes():
                specs = (self._hidden_spec(tokens), jax.tree.map(explicit_spec, cache))
                hidden, kept = run_with_automatic_axes(Decoder._forward, self, *args, out_specs=specs)
            else:
                hidden, kept = self._forward(*args)
        if output_hidden_states:
            self.sow(nnx.Intermediate, "all_hidden_states", hidden)
        if decode_only_last_token:
            hidden = hidden[:, -1:]
        return (hidden if skip_lm_head else self.compute_final_logits(hidden)), kept

    def compute_final_logits(self, x: jax.Array) -> jax.Array:
        """The logits of hidden states, as a call with `skip_lm_head` returns them.

        Args:
            x: `[batch, length, embed]`, of any length.

        Returns:
            float32 `[batch, length, vocab]`; of an output projection that was put in the place of the model's own,
            whatever that makes of them, in float32.
        """
        with mesh_of(self.embed.embedding[...]):
            if not has_explicit_axes():
                return self._logits(x)
            logits: jax.Array = run_with_automatic_axes(
                Decoder._logits, self, x, out_specs=self._logits_spec(explicit_spec(x))
            )
            return logits

    def _forward(
        self,
        tokens: jax.Array,
        positions: jax.Array | None,
        cache: KVCache | None,
        attention_mask: jax.Array | None,
        segment_ids: jax.Array | None,
    ) -> tuple[jax.Array, KVCache | None]:
        """What the output projection gets, `[batch, length, embed]`, and the cache."""
        start: jax.Array | int = 0 if cache is None else cache["layer_0"]["end_index"][0]
        if positions is None:
            positions = counted_positions(tokens, start, segment_ids)
        (embedding, *_) = jax.tree.leaves(self.embed.embedding)
        platform = platform_of(embedding)
        context = Context(positions, start, attention_mask, segment_ids, tokens, self.attention, platform)
        x = self.embed(tokens)
        require_able(self.config, self.attention, call_of(context, x))
        x = x * jnp.asarray(self.config.embed_scale, x.dtype)
        inputs = None if self.config.per_layer_embedding is None else self.per_layer_embedding(tokens, x)
        if self.config.streams is not None:
            x = self.streams.spread(x)
        stack = Stack(self.config, self.remat, context, inputs, cache)
        x = stack.scan(self.layers, x) if self.scan_layers else stack.run(self.layers, x)
        if self.config.streams is not None:
            x = self.streams.gathered(x)
        x = self.final_norm(x)
        if cache is None:
            return x, None
        size = kv_cache.slots(self.config, cache)
        if size is not None:
            x = jnp.where(start + tokens.shape[1] > size, jnp.nan, x)
        return x, stack.kept

    def _logits(self, x: jax.Array) -> jax.Array:
        head = self.lm_head if self.config.head is None else getattr(self, self.config.head.name)
        if isinstance(head, Projection):
            # Not rounded to the activations' dtype where the projection has a wider one.
            wide = x.dtype if self.compute_dtype else jnp.promote_types(x.dtype, head.kernel.dtype)
            logits = head(x.astype(wide)).astype(jnp.float32)
        elif isinstance(head, TiedProjection):
            logits = self.embed.attend(x).astype(jnp.float32)
        else:
            return jnp.asarray(head(x), jnp.float32)
        if self.config.head is not None:
            return logits
        if self.config.logits_bias:
            logits = logits + value_of(self.logits_bias).astype(jnp.float32)
        logits = logits * self.config.logits_scale
        cap = self.config.final_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def _hidden_spec(self, tokens: jax.Array) -> PartitionSpec:
        """The tokens' own sharding."""
        return PartitionSpec(*explicit_spec(tokens), None)

    def _logits_spec(self, hidden: PartitionSpec) -> PartitionSpec:
        """The hidden states' own sharding, and the embedding's along the vocabulary as far as that is still free."""
        batch, length, _ = hidden
        vocab = explicit_spec(self.embed.embedding[...])[0]
        taken = set(_names(batch)) | set(_names(length))
        own = self.config.head is None and isinstance(self.lm_head, Projection | TiedProjection)
        return PartitionSpec(batch, length, vocab if own and not taken & set(_names(vocab)) else None)


def _copied(made: Callable[[Layer], DecoderLayer]) -> Callable[[Layer], DecoderLayer]:
    """What makes abstract layers: of those that are alike one, and copies of it, which takes a tenth of the time."""
    parts = functools.cache(lambda layer: nnx.split(made(layer)))
    return lambda layer: nnx.merge(*parts(layer), copy=True)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of a `PartitionSpec`."""
    return (entry,) if isinstance(entry, str) else entry or ()
