"""Phi 3.5 MoE: experts chosen one after the other, layer norms, biases."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer, Rope
from lazyload.config_json import rope
from lazyload.config_json.experts import experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, layer_norm, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.families.mixtral import NUMBERED_EXPERTS
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_BIASES = {"input_layernorm.bias": "attn_norm.bias : embed", "post_attention_layernorm.bias": "mlp_norm.bias : embed"}
_LAYER = huggingface.ATTENTION | huggingface.NORMS | NUMBERED_EXPERTS | _BIASES
_MAGNITUDES = ("short_mscale", "long_mscale")


def phimoe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Phi 3.5 MoE; every token is sent to two experts."""
    fields = Fields(_with_own_length(values), num_key_value_heads=8, max_position_embeddings=131_072)
    bias, margin = fields.get("attention_bias", False), fields.get("router_jitter_noise", 0.01)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, window=window(fields))
    mixer = replace(mixer, rope=_rope(fields, mixer.head_dim))
    # Noise of the training, and a length that the plain embedding has no use for.
    fields.ignore("input_jitter_noise", "original_max_position_embeddings")
    fields.refuse("num_experts_per_tok", 2)
    feed_forward = experts(fields, "num_local_experts", "num_experts", scores="sparsemixer", margin=margin)
    layer = Layer(mixer=mixer, feed_forward=feed_forward, norm=layer_norm(fields, "rms_norm_eps", bias=True))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"), logits_bias=fields.get("lm_head_bias", False))


def _with_own_length(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same file; a length in the embedding's description counts more than the one beside it."""
    described = rope.parameters_of(Fields(values))
    name = "original_max_position_embeddings"
    return {**values, name: described[name]} if described.get(name) is not None else values


def _rope(fields: Fields, dim: int) -> Rope:
    """The rotary embedding: plain, or LongRoPE with its two magnitudes given."""
    plain = rope.read(fields, dim, theta=1e6, ignored=_MAGNITUDES)
    if plain.kind == "default":
        return plain
    described = Fields(rope.parameters_of(fields), where=f"{fields.where}: rope_scaling")
    if plain.kind != "longrope":
        raise ConfigError(f"{described.where}: the rotary embedding {plain.kind!r} is not implemented; longrope is")
    # transformers 5.24 forgets the long factors; the model's own code has them.
    short, long = (described.need(name, float) for name in _MAGNITUDES)
    return replace(plain, attention_factor=short, long_attention_factor=long)


def phimoe_huggingface(config: DecoderConfig) -> Layout:
    """Mixtral's names, and biases of the norms."""
    return huggingface.decoder(config, _LAYER)


PHIMOE = Family(
    "phimoe",
    ("phimoe",),
    phimoe_config,
    phimoe_huggingface,
    title="Phi 3.5 MoE",
    covered="experts by SparseMixer, layer norms with biases, LongRoPE",
    since="0.2",
)
