"""Small decoders with random weights, for the tests of the models."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lazyload.architecture.decoder import DecoderConfig, Experts, LatentAttention, Layer, Rope
from lazyload.models.decoder import Decoder
from lazyload.models.fill import parameter_shapes

ROPE = Rope(theta=1e4, dim=8)
TOKENS = (np.arange(48).reshape(4, 12) * 7 % 61).astype(np.int32)

MIXED = (Layer(rope=ROPE, window=5), Layer(rope=None, sparse=True))
EXPERTS = Experts(num_experts=8, num_selected=2, mlp_dim=16)


def config(**changes: Any) -> DecoderConfig:
    plain = {
        "vocab_size": 64,
        "embed_dim": 32,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "mlp_dim": 48,
        "norm_eps": 1e-6,
        "query_scale": 8**-0.5,
        "layers": (Layer(rope=ROPE), Layer(rope=ROPE)),
    }
    return DecoderConfig(**(plain | changes))


CONFIGS = {
    "plain": config(),
    "gemma2": config(
        layers=(Layer(rope=ROPE, window=4), Layer(rope=ROPE)),
        tied=True,
        activation="gelu_tanh",
        norm_offset=1.0,
        post_norms=True,
        attn_softcap=2.0,
        final_softcap=3.0,
        embed_scale=32**0.5,
    ),
    "olmo": config(pre_norms=False, post_norms=True, qk_norm="full"),
    "gpt_oss": config(
        layers=MIXED,
        qkv_bias=True,
        o_bias=True,
        sinks=True,
        experts=Experts(
            num_experts=8,
            num_selected=2,
            mlp_dim=16,
            scores="topk_softmax",
            router_bias=True,
            bias=True,
            clamped_swiglu=(1.702, 0.5),
        ),
    ),
    "deepseek": config(
        layers=tuple(Layer(rope=Rope(theta=1e4, dim=4, interleaved=True), sparse=sparse) for sparse in (False, True)),
        num_kv_heads=4,
        qkv_bias=True,
        o_bias=True,
        latent=LatentAttention(q_rank=12, kv_rank=16, nope_dim=8, rope_dim=4, v_dim=6),
        experts=Experts(
            num_experts=8,
            num_selected=2,
            mlp_dim=16,
            shared_mlp_dim=8,
            scores="sigmoid",
            scale=2.5,
            num_groups=4,
            num_selected_groups=2,
            group_score="top2",
            selection_bias=True,
        ),
    ),
}


def abstract(config: DecoderConfig) -> Decoder:
    return nnx.eval_shape(lambda: Decoder(config, dtype=jnp.float32, rngs=nnx.Rngs(0)))


def weights(config: DecoderConfig) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = parameter_shapes(abstract(config))
    return {
        path: (random.normal(size=shape) * 0.2 + ("norm" in path and not config.norm_offset)).astype(np.float32)
        for path, shape in shapes.items()
    }


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
