"""What Tunix's classes are made with, and what they compute with it: both sides as a decoder's config.

`fields` says what to tell a class, `computed` what it makes of that. Where the result differs from the config that was
wanted, the class knows no such thing. Read from `tunix/models/*/model.py` of Tunix 0.1.7.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from lazyload.architecture import (
    MLP,
    Attention,
    DecoderConfig,
    Experts,
    Layer,
    Norm,
    PerLayerEmbedding,
    PerLayerInput,
    Rope,
)

Fields = Mapping[str, Any]
"""Of a `ModelConfig`, by name."""

_FIXED_THETA = 1e6
"""The base of Llama 3 and Qwen 3, which hand their config's `rope_theta` to nobody."""

_GEMMA_EPS = 1e-6


@dataclass(frozen=True)
class _Attentions:
    """Of a model with local and global layers, the attention of each; the one kind in place of both where there is one.

    Attributes:
        local: Of layers with a window.
        globe: Of layers without.
    """

    local: Attention
    globe: Attention


def fields(module: str, config: DecoderConfig, tunix: ModuleType) -> dict[str, Any]:
    """The fields of Tunix's `ModelConfig` that a model's `config.json` decides.

    Args:
        module: The name of Tunix's module.
        config: What `config.json` means.
        tunix: The module itself.
    """
    match module:
        case "gemma":
            return _gemma_fields(config, tunix)
        case "gemma3":
            return _gemma3_fields(config, tunix)
        case "gemma4":
            return _gemma4_fields(config, tunix)
    return _qwen_fields(module, config)


def computed(module: str, given: Fields, tunix: ModuleType) -> DecoderConfig:
    """The decoder that a class of Tunix is.

    Args:
        module: The name of its module.
        given: The fields of its config.
        tunix: The module itself.
    """
    match module:
        case "gemma":
            return _gemma(given, tunix)
        case "gemma3":
            return _gemma3(given, tunix)
        case "gemma4":
            return _gemma4(given, tunix)
    return _qwen(module, given)


def further_differences(module: str, config: DecoderConfig) -> list[str]:
    """What a class computes otherwise, where a decoder's config has no words for it: clauses."""
    if module == "gemma4" and config.first(Experts) is not None:
        return [
            "the experts' router sees the residual stream, Tunix's Gemma4 shows it what the experts' norm made of it"
        ]
    return []


def _qwen_fields(module: str, config: DecoderConfig) -> dict[str, Any]:
    attention, experts = _attentions(config).globe, config.first(Experts)
    given = {
        "num_layers": config.num_layers,
        "vocab_size": config.vocab_size,
        "embed_dim": config.embed_dim,
        "hidden_dim": experts.mlp_dim if experts else _dense(config).mlp_dim,
        "num_heads": attention.num_heads,
        "head_dim": attention.head_dim,
        "num_kv_heads": attention.num_kv_heads,
        "rope_theta": _theta(attention),
        "norm_eps": config.norm.eps,
        "weight_tying" if module == "llama3" else "use_tied_embedding": config.tied,
    }
    if experts:
        given |= {"num_experts": experts.num_experts, "num_experts_per_tok": experts.num_selected}
    return given


def _qwen(module: str, given: Fields) -> DecoderConfig:
    """Llama 3, Qwen 2 and Qwen 3."""
    norm = Norm(given["norm_eps"])
    theta = float(given["rope_theta"]) if module == "qwen2" else _FIXED_THETA
    attention = Attention(
        num_heads=given["num_heads"],
        num_kv_heads=given["num_kv_heads"],
        head_dim=given["head_dim"],
        rope=Rope(theta=theta, dim=given["head_dim"]),
        qk_norm="head" if module == "qwen3" else None,
        norm=norm if module == "qwen3" else Norm(),
        qkv_bias=module == "qwen2",
    )
    feed_forward: MLP | Experts = MLP(mlp_dim=given["hidden_dim"])
    if given.get("num_experts"):
        feed_forward = Experts(
            num_experts=given["num_experts"],
            num_selected=given["num_experts_per_tok"],
            mlp_dim=given["hidden_dim"],
        )
    layer = Layer(mixer=attention, feed_forward=feed_forward, norm=norm)
    tied = given.get("weight_tying", given.get("use_tied_embedding", False))
    return DecoderConfig(
        vocab_size=given["vocab_size"],
        embed_dim=given["embed_dim"],
        layers=(layer,) * given["num_layers"],
        norm=norm,
        tied=tied,
    )


def _gemma_sizes(config: DecoderConfig) -> dict[str, Any]:
    attention = _attentions(config).local
    return {
        "num_layers": config.num_layers,
        "num_embed": config.vocab_size,
        "embed_dim": config.embed_dim,
        "hidden_dim": _dense(config).mlp_dim,
        "num_heads": attention.num_heads,
        "head_dim": attention.head_dim,
        "num_kv_heads": attention.num_kv_heads,
        "sliding_window_size": attention.window,
    }


def _gemma_fields(config: DecoderConfig, tunix: ModuleType) -> dict[str, Any]:
    post_norms = config.layers[0].post_norms
    return {
        **_gemma_sizes(config),
        "final_logit_softcap": config.final_softcap,
        "use_post_attn_norm": post_norms,
        "use_post_ffw_norm": post_norms,
        "attention_types": _attention_types(config, tunix),
        "attn_logits_soft_cap": _attentions(config).local.softcap,
    }


def _gemma(given: Fields, tunix: ModuleType) -> DecoderConfig:
    attention = replace(_gemma_attention(given), softcap=given["attn_logits_soft_cap"])
    layers = tuple(
        Layer(
            mixer=replace(attention, window=_window(given, kind, tunix)),
            feed_forward=MLP(mlp_dim=given["hidden_dim"], activation="gelu_tanh"),
            norm=_gemma_norm(),
            post_norms=given["use_post_attn_norm"],
        )
        for kind in tuple(given["attention_types"])[: given["num_layers"]]
    )
    return _gemma_decoder(given, layers, norm=_gemma_norm(), final_softcap=given["final_logit_softcap"])


def _gemma3_fields(config: DecoderConfig, tunix: ModuleType) -> dict[str, Any]:
    attentions, scales = _attentions(config), tunix.QueryPreAttentionNormalisation
    by_head = math.isclose(attentions.local.scale, attentions.local.head_dim**-0.5)
    return {
        **_gemma_sizes(config),
        "local_base_frequency": _theta(attentions.local),
        "global_base_frequency": _theta(attentions.globe),
        "local_scale_factor": _factor(attentions.local),
        "global_scale_factor": _factor(attentions.globe),
        "query_pre_attn_norm": scales.BY_ONE_OVER_SQRT_HEAD_DIM
        if by_head
        else scales.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS,
    }


def _gemma3(given: Fields, tunix: ModuleType) -> DecoderConfig:
    by_head = given["query_pre_attn_norm"] == tunix.QueryPreAttentionNormalisation.BY_ONE_OVER_SQRT_HEAD_DIM
    divided_by = given["head_dim"] if by_head else given["embed_dim"] // given["num_heads"]
    attention = replace(_gemma_attention(given), qk_norm="head", norm=_gemma_norm(), query_scale=divided_by**-0.5)
    pattern = tunix.GEMMA3_ATTENTION_PATTERN
    kinds = [pattern[number % len(pattern)] for number in range(given["num_layers"])]
    layers = tuple(
        Layer(
            mixer=replace(
                attention, window=_window(given, kind, tunix), rope=_rope(given, kind, tunix, given["head_dim"])
            ),
            feed_forward=MLP(mlp_dim=given["hidden_dim"], activation="gelu_tanh"),
            norm=_gemma_norm(),
            post_norms=True,
        )
        for kind in kinds
    )
    return _gemma_decoder(given, layers, norm=_gemma_norm())


def _gemma4_fields(config: DecoderConfig, tunix: ModuleType) -> dict[str, Any]:
    attentions, experts, inputs = _attentions(config), config.first(Experts), config.per_layer_embedding
    local, globe = attentions.local, attentions.globe
    sharing = [number for number in range(config.num_layers) if config.kv_layer(number) != number]
    wide = config.layers[sharing[0]].feed_forward if sharing else None
    return {
        **_gemma_sizes(config),
        "final_logit_softcap": config.final_softcap,
        "per_layer_input_dim": inputs.dim if inputs else 0,
        "num_global_kv_heads": globe.num_kv_heads,
        "global_key_size": globe.head_dim,
        "attention_pattern": _attention_types(config, tunix),
        "frac_shared_layers": _share(len(sharing), config.num_layers),
        "global_rope_proportion": _turning(globe),
        "local_rope_proportion": _turning(local),
        "k_eq_v_global": globe.v_from_k,
        "override_kv_shared_ffw_hidden": wide.mlp_dim if isinstance(wide, MLP) else None,
        "local_base_frequency": _theta(local),
        "global_base_frequency": _theta(globe),
        "local_scale_factor": _factor(local),
        "global_scale_factor": _factor(globe),
        "enable_moe": experts is not None,
        "num_experts": experts.num_experts if experts else None,
        "num_experts_per_tok": experts.num_selected if experts else None,
        "expert_dim": experts.mlp_dim if experts else None,
    }


def _gemma4(given: Fields, tunix: ModuleType) -> DecoderConfig:
    count, norm = given["num_layers"], Norm(_GEMMA_EPS)
    pattern = given["attention_pattern"] or tunix.GEMMA4_ATTENTION_PATTERN
    kinds = [pattern[number % len(pattern)] for number in range(count)]
    own = int(count - given["frac_shared_layers"] * count)
    dense = MLP(mlp_dim=given["hidden_dim"], activation="gelu_tanh")
    wide = replace(dense, mlp_dim=given["override_kv_shared_ffw_hidden"] or dense.mlp_dim)
    inputs = given["per_layer_input_dim"]
    layers = []
    for number, kind in enumerate(kinds):
        is_global = kind == tunix.AttentionType.GLOBAL
        head_dim = (is_global and given["global_key_size"]) or given["head_dim"]
        attention = Attention(
            num_heads=given["num_heads"],
            num_kv_heads=(is_global and given["num_global_kv_heads"]) or given["num_kv_heads"],
            head_dim=head_dim,
            rope=_rope(given, kind, tunix, head_dim),
            window=_window(given, kind, tunix),
            query_scale=1.0,
            qk_norm="head",
            norm=norm,
            v_norm=True,
            v_from_k=is_global and given["k_eq_v_global"],
            kv_layer=None if number < own else own - (1 if is_global else 2),
            keeps_kv=number >= own,
        )
        layers.append(
            Layer(
                mixer=attention,
                feed_forward=dense if number < own else wide,
                norm=norm,
                post_norms=True,
                experts=_gemma4_experts(given, norm),
                per_layer_input=PerLayerInput(dim=inputs) if inputs else None,
                scalar=True,
            )
        )
    embedding = PerLayerEmbedding(vocab_size=given["num_embed"], num_layers=count, dim=inputs) if inputs else None
    softcap = given["final_logit_softcap"]
    return _gemma_decoder(given, tuple(layers), norm=norm, final_softcap=softcap, per_layer_embedding=embedding)


def _gemma4_experts(given: Fields, norm: Norm) -> Experts | None:
    if not given["enable_moe"]:
        return None
    return Experts(
        num_experts=given["num_experts"],
        num_selected=given["num_experts_per_tok"],
        mlp_dim=given["expert_dim"],
        activation="gelu_tanh",
        router_norm=norm,
        expert_scale=True,
    )


def _gemma_norm() -> Norm:
    return Norm(_GEMMA_EPS, offset=1.0)


def _gemma_attention(given: Fields) -> Attention:
    """What Gemma and Gemma 3 share; the base of the rotary embedding is Gemma's."""
    return Attention(
        num_heads=given["num_heads"],
        num_kv_heads=given["num_kv_heads"],
        head_dim=given["head_dim"],
        rope=Rope(theta=1e4, dim=given["head_dim"]),
    )


def _gemma_decoder(
    given: Fields,
    layers: tuple[Layer, ...],
    *,
    norm: Norm,
    final_softcap: float | None = None,
    per_layer_embedding: PerLayerEmbedding | None = None,
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=given["num_embed"],
        embed_dim=given["embed_dim"],
        layers=layers,
        norm=norm,
        tied=True,
        embed_scale=math.sqrt(given["embed_dim"]),
        final_softcap=final_softcap,
        per_layer_embedding=per_layer_embedding,
    )


def _attentions(config: DecoderConfig) -> _Attentions:
    mixers = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    local = next((mixer for mixer in mixers if mixer.window is not None), mixers[0])
    globe = next((mixer for mixer in mixers if mixer.window is None), mixers[0])
    return _Attentions(local, globe)


def _attention_types(config: DecoderConfig, tunix: ModuleType) -> tuple[Any, ...]:
    kinds = tunix.AttentionType
    windows = [getattr(layer.mixer, "window", None) for layer in config.layers]
    return tuple(kinds.GLOBAL if window is None else kinds.LOCAL_SLIDING for window in windows)


def _dense(config: DecoderConfig) -> MLP:
    """The MLP of the first layer that has one."""
    return next(block for layer in config.layers for block in layer.blocks if isinstance(block, MLP))


def _theta(attention: Attention) -> float:
    return attention.rope.theta if attention.rope else _FIXED_THETA


def _factor(attention: Attention) -> float:
    """What positions are divided by."""
    return attention.rope.factor if attention.rope and attention.rope.kind in ("linear", "proportional") else 1.0


def _turning(attention: Attention) -> float:
    """The share of a head's pairs that turn."""
    rope = attention.rope
    return 2 * rope.turning_pairs / rope.dim if rope and rope.kind == "proportional" else 1.0


def _share(count: int, layers: int) -> float:
    """The share of so many of the layers, from which the class computes the same number again."""
    share = count / layers
    return share if int(layers - share * layers) == layers - count else (count - 0.5) / layers


def _window(given: Fields, kind: Any, tunix: ModuleType) -> int | None:
    window: int | None = given["sliding_window_size"]
    return window if kind == tunix.AttentionType.LOCAL_SLIDING else None


def _rope(given: Fields, kind: Any, tunix: ModuleType, head_dim: int) -> Rope:
    """The rotary embedding of a kind of layer of Gemma 3 or 4."""
    of = "local" if kind == tunix.AttentionType.LOCAL_SLIDING else "global"
    theta, factor = float(given[f"{of}_base_frequency"]), float(given[f"{of}_scale_factor"])
    turning = given.get(f"{of}_rope_proportion", 1.0)
    if turning != 1.0:
        pairs = int(turning * head_dim // 2)
        return Rope(theta=theta, dim=head_dim, kind="proportional", factor=factor, turning_pairs=pairs)
    return Rope(theta=theta, dim=head_dim, kind="default" if factor == 1.0 else "linear", factor=factor)
