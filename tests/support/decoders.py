"""Small decoders with random weights, for the tests of the models."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lazyload.architecture import (
    MLP,
    AltUp,
    AltUpStreams,
    Attention,
    CompressedAttention,
    CompressedIndexer,
    Compressor,
    DecoderConfig,
    Experts,
    GatedDeltaNet,
    HyperConnection,
    HyperStreams,
    Indexer,
    LatentAttention,
    Laurel,
    Layer,
    LayerNorm,
    Mamba2,
    Norm,
    PerLayerEmbedding,
    PerLayerInput,
    Rope,
    Temperature,
)
from lazyload.models.decoder import Decoder
from lazyload.models.fill import fill
from lazyload.models.kv_cache import KVCache
from lazyload.models.parameters import STORED

ROPE = Rope(theta=1e4, dim=8)
TOKENS = (np.arange(48).reshape(4, 12) * 7 % 61).astype(np.int32)

ATTENTION = Attention(num_heads=4, num_kv_heads=2, head_dim=8, rope=ROPE)
DELTA_NET = GatedDeltaNet(num_key_heads=2, num_value_heads=4, key_dim=8, value_dim=6, conv_width=4)
LATENT = LatentAttention(
    num_heads=4,
    q_rank=12,
    kv_rank=16,
    nope_dim=8,
    rope_dim=4,
    v_dim=6,
    rope=Rope(theta=1e4, dim=4, interleaved=True),
)
INDEXER = Indexer(num_heads=2, head_dim=6, num_selected=5, rope=Rope(theta=1e4, dim=4))
LOCAL = CompressedAttention(
    num_heads=4, head_dim=8, q_rank=12, num_groups=2, o_rank=5, window=4, rope=Rope(theta=1e4, dim=4, interleaved=True)
)
HEAVY = replace(LOCAL, compressor=Compressor(rate=3, dim=8))
SPARSE = replace(
    LOCAL,
    compressor=Compressor(rate=2, dim=8, overlapping=True),
    indexer=CompressedIndexer(
        num_heads=3, compressor=Compressor(rate=2, dim=6, overlapping=True, prefix="index_"), num_selected=2
    ),
)
MAMBA = Mamba2(num_heads=4, head_dim=6, num_groups=2, state_dim=5, conv_width=4)
DENSE = MLP(mlp_dim=48)
EXPERTS = Experts(num_experts=8, num_selected=2, mlp_dim=16)


def layer(mixer: Any = ATTENTION, feed_forward: Any = DENSE, **changes: Any) -> Layer:
    return Layer(**({"mixer": mixer, "feed_forward": feed_forward, "norm": Norm()} | changes))


def config(*layers: Layer, **changes: Any) -> DecoderConfig:
    plain = {"vocab_size": 64, "embed_dim": 32, "layers": layers or (layer(),) * 2, "norm": Norm()}
    return DecoderConfig(**(plain | changes))


def _gemma2() -> DecoderConfig:
    norm, dense = Norm(offset=1.0), MLP(mlp_dim=48, activation="gelu_tanh")
    mixers = [replace(ATTENTION, softcap=2.0, window=window) for window in (4, None)]
    layers = [layer(mixer, dense, norm=norm, post_norms=True) for mixer in mixers]
    return config(*layers, norm=norm, tied=True, final_softcap=3.0, embed_scale=32**0.5)


def _gpt_oss() -> DecoderConfig:
    mixer = replace(ATTENTION, qkv_bias=True, o_bias=True, sinks=True)
    experts = replace(EXPERTS, scores="topk_softmax", router_bias=True, bias=True, clamped_swiglu=(1.702, 0.5))
    return config(layer(replace(mixer, window=5)), layer(replace(mixer, rope=None), experts))


def _deepseek() -> DecoderConfig:
    mixer = replace(LATENT, a_bias=True, o_bias=True)
    experts = replace(
        EXPERTS,
        shared_mlp_dim=8,
        scores="sigmoid",
        scale=2.5,
        num_groups=4,
        num_selected_groups=2,
        group_score="top2",
        selection_bias=True,
    )
    return config(layer(mixer), layer(mixer, experts))


def _gemma4() -> DecoderConfig:
    local = replace(ATTENTION, query_scale=0.25, qk_norm="head", v_norm=True, window=4)
    rotary = Rope(theta=1e4, dim=12, kind="proportional", turning_pairs=2)
    full = replace(local, num_kv_heads=1, head_dim=12, v_from_k=True, window=None, rope=rotary)
    experts = replace(EXPERTS, router_norm=Norm(), expert_scale=True)
    rest = {"post_norms": True, "scalar": True, "per_layer_input": PerLayerInput(dim=6)}
    layers = [
        layer(local, experts=experts, **rest),
        layer(full, **rest),
        layer(replace(local, kv_layer=0), MLP(mlp_dim=96), **rest),
        layer(replace(full, kv_layer=1), **rest),
    ]
    return config(*layers, tied=True, per_layer_embedding=PerLayerEmbedding(vocab_size=62, num_layers=4, dim=6))


def _gemma3n() -> DecoderConfig:
    local = replace(ATTENTION, query_scale=1.0, qk_norm="head", v_norm=True, window=4)
    altup = AltUp(num_streams=3, active=1)
    rest = {"post_norms": True, "per_layer_input": PerLayerInput(dim=6), "laurel": Laurel(rank=5)}
    layers = [
        layer(local, replace(DENSE, sparsity=0.7), altup=altup, **rest),
        layer(replace(local, kv_layer=0), MLP(mlp_dim=40), altup=replace(altup, scaled=False), **rest),
    ]
    inputs, streams = PerLayerEmbedding(vocab_size=50, num_layers=2, dim=6), AltUpStreams(num_streams=3, embed_dim=32)
    return config(*layers, tied=True, final_softcap=3.0, per_layer_embedding=inputs, streams=streams)


def _nemotron_h() -> DecoderConfig:
    experts = replace(
        EXPERTS,
        activation="relu2",
        gated=False,
        latent_dim=10,
        latent_bias=True,
        shared_mlp_dim=8,
        shared_bias=True,
        scores="sigmoid",
        selection_bias=True,
    )
    dense = MLP(mlp_dim=48, activation="relu2", gated=False, bias=True)
    mamba, attention = replace(MAMBA, least_step=0.3), replace(ATTENTION, rope=None)
    return config(layer(None, dense), layer(mamba, None), layer(None, experts), layer(attention, None))


def _parallel() -> DecoderConfig:
    mixer = replace(ATTENTION, qk_norm="head", norm_after_rope=True, qkv_clip=1.0)
    experts = replace(EXPERTS, scores="sparsemixer", margin=0.2)
    norm, dense = LayerNorm(bias=True), MLP(mlp_dim=48, activation="xielu", gated=False)
    layers = [layer(mixer, feed_forward, norm=norm, parallel=True) for feed_forward in (dense, experts)]
    return config(*layers, norm=norm, tied=True, logits_bias=True)


def _llama4() -> DecoderConfig:
    rotary = replace(ROPE, interleaved=True)
    mixer = replace(ATTENTION, rope=rotary, qk_norm="bare", chunk=5)
    plain = replace(ATTENTION, rope=None, temperature=Temperature(beta=0.5, length=3, counted_from=1))
    experts = replace(EXPERTS, shared_mlp_dim=16, scores="sigmoid", normalize=False, weighted_inputs=True)
    return config(layer(mixer), layer(plain, experts))


def _deepseek_v4() -> DecoderConfig:
    experts = replace(EXPERTS, shared_mlp_dim=16, scores="sqrtsoftplus", scale=1.5, limit=0.5)
    by_token, by_router = replace(experts, by_token=True), replace(experts, selection_bias=True)
    streams = {"hyper_connection": HyperConnection(num_streams=3, num_iterations=5)}
    layers = [layer(LOCAL, by_token, **streams), layer(HEAVY, **streams), layer(SPARSE, by_router, **streams)]
    return config(*layers, streams=HyperStreams(num_streams=3))


CONFIGS = {
    "plain": config(),
    "gemma2": _gemma2(),
    "gemma3n": _gemma3n(),
    "gemma4": _gemma4(),
    "olmo": config(*[layer(replace(ATTENTION, qk_norm="full"), pre_norms=False, post_norms=True)] * 2),
    "gpt_oss": _gpt_oss(),
    "deepseek": _deepseek(),
    "deepseek_v32": config(layer(replace(LATENT, indexer=INDEXER)), layer(replace(LATENT, shares_selection=True))),
    "deepseek_v4": _deepseek_v4(),
    "qwen3_5": config(layer(replace(DELTA_NET, fused=False)), layer(replace(ATTENTION, gated=True))),
    "parallel": _parallel(),
    "granite4": config(layer(replace(MAMBA, proj_bias=True), residual_scale=0.5), layer(), layer(MAMBA)),
    "llama4": _llama4(),
    "nemotron_h": _nemotron_h(),
    "ministral3": config(*[layer(replace(ATTENTION, temperature=Temperature(beta=0.5, length=3)))] * 2),
    "qwen3_next": config(
        layer(DELTA_NET),
        layer(replace(ATTENTION, gated=True, qk_norm="head")),
        layer(feed_forward=replace(EXPERTS, shared_mlp_dim=8, shared_gate=True)),
    ),
}


FULL_BLOCKS = (
    replace(ATTENTION, qk_norm="head", qkv_bias=True, o_bias=True, sinks=True),
    replace(LATENT, a_bias=True, o_bias=True, indexer=INDEXER),
    SPARSE,
    DELTA_NET,
    replace(DELTA_NET, fused=False),
    replace(MAMBA, proj_bias=True),
    replace(DENSE, bias=True),
    replace(DENSE, activation="xielu", gated=False, bias=True),
    replace(
        EXPERTS,
        shared_mlp_dim=8,
        shared_bias=True,
        shared_gate=True,
        selection_bias=True,
        router_bias=True,
        router_norm=Norm(),
        expert_scale=True,
        bias=True,
    ),
    replace(EXPERTS, gated=False, latent_dim=10, latent_bias=True, shared_mlp_dim=8, shared_bias=True),
    replace(EXPERTS, by_token=True),
    PerLayerInput(dim=6),
    PerLayerEmbedding(vocab_size=62, num_layers=4, dim=6),
    Laurel(rank=5),
    AltUp(num_streams=3),
    AltUpStreams(num_streams=3, embed_dim=32),
    HyperStreams(num_streams=3),
)
"""Every block with everything that it can have."""


def abstract(config: DecoderConfig) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def parameter_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {".".join(map(str, path)): param.shape for path, param in nnx.to_flat_state(nnx.state(model, STORED))}


def build(config: DecoderConfig, dtype: Any, arrays: dict[str, jax.Array]) -> Decoder:
    return fill(Decoder(config, dtype=dtype, rngs=None), arrays)


def weights(config: DecoderConfig) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = parameter_shapes(abstract(config))
    made = {
        path: (random.normal(size=shape) * 0.2 + _around_one(path, config)).astype(np.float32)
        for path, shape in shapes.items()
    }
    for path in (path for path in made if path.endswith("token_experts")):
        rows, selected = shapes[path]
        every = np.tile(np.arange(EXPERTS.num_experts, dtype=np.int32), (rows, 1))
        made[path] = random.permuted(every, axis=1)[:, :selected]
    return made


def _around_one(path: str, config: DecoderConfig) -> bool:
    """Whether a parameter is a factor."""
    return ("norm" in path and not getattr(config.norm, "offset", 0.0)) or path.endswith(
        ("layer_scalar", "expert_scale", "output_scale")
    )


def run(model: Decoder, *args: Any, **kwargs: Any) -> Any:
    """The model's result, compiled: eager execution of a whole model is slow."""
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, args, kwargs: nnx.merge(graphdef, state)(*args, **kwargs))(state, args, kwargs)


def decode(model: Decoder, tokens: Any, cache_size: int = 16) -> np.ndarray:
    """The logits of the tokens fed one at a time."""
    graphdef, state = nnx.split(model)
    step = jax.jit(lambda state, tokens, cache: nnx.merge(graphdef, state)(tokens, cache=cache))
    cache = model.init_cache(tokens.shape[0], cache_size, jnp.float32)
    logits = []
    for number in range(tokens.shape[1]):
        step_logits, cache = step(state, tokens[:, number : number + 1], cache)
        logits.append(np.asarray(step_logits))
    return np.concatenate(logits, axis=1)


def decode_scanned(model: Decoder, tokens: Any, cache_size: int) -> np.ndarray:
    """The same in one loop that is compiled, which compiles the step once instead of twice or more."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def steps(state: Any, cache: KVCache, tokens: jax.Array) -> jax.Array:
        def step(cache: KVCache, token: jax.Array) -> tuple[KVCache, jax.Array]:
            logits, cache = nnx.merge(graphdef, state)(token, cache=cache)
            return cache, logits[:, 0]

        return jax.lax.scan(step, cache, tokens.T[:, :, None])[1]

    cache = model.init_cache(tokens.shape[0], cache_size, jnp.float32)
    return np.asarray(steps(state, cache, tokens)).swapaxes(0, 1)
