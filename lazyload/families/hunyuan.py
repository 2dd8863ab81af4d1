"""Hunyuan's dense models: a Llama whose queries and keys have norms after their rotation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer, Rope
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_RENAMED = {f"self_attn.{x[0]}_norm.weight": f"self_attn.{x}_layernorm.weight" for x in ("query", "key")}


def hunyuan_dense_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a dense Hunyuan."""
    fields = Fields(values, max_position_embeddings=2048, rms_norm_eps=1e-5)
    # The files describe what transformers takes for granted, and have sizes of what is switched off.
    for name, value in {"use_qk_norm": True, "use_rotary_pos_emb": True, "norm_type": "rms"}.items():
        fields.refuse(name, value)
    fields.ignore("cla_share_factor", "dense_list", "class_num", "pool_type", "attention_head_dim")
    bias = fields.get("attention_bias", False)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, qk_norm="head", norm=norm(fields), norm_after_rope=True)
    layer = Layer(mixer=replace(mixer, rope=_rope(fields, mixer.head_dim)), feed_forward=mlp(fields), norm=norm(fields))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def _rope(fields: Fields, dim: int) -> Rope:
    """The rotary embedding: "dynamic" with an `alpha` is a larger base, and does not depend on the length."""
    described = Fields(rope.parameters_of(fields), where=f"{fields.where}: rope_scaling")
    if described.get("rope_type", described.get("type", "default")) != "dynamic":
        return rope.read(fields, dim, ignored=("alpha",))
    # Beside `alpha` there is what belongs to other scalings.
    unused, alpha = ("alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), described.get("alpha", 0.0)
    if not alpha:
        return rope.read(fields, dim, ignored=unused)
    if alpha < 0 or dim == 2:
        raise ConfigError(f"{described.where}: alpha = {alpha!r} must be positive, and heads wider than one pair")
    plain = rope.read(fields, dim, names={"dynamic": "default"}, ignored=("factor", *unused))
    return replace(plain, theta=plain.theta * alpha ** (dim / (dim - 2)))


def hunyuan_huggingface(config: DecoderConfig) -> Layout:
    """Llama's names, but for the norms of queries and keys."""
    return huggingface.decoder(config, {_RENAMED.get(name, name): entry for name, entry in huggingface.LAYER.items()})


HUNYUAN_DENSE = Family(
    "hunyuan_v1_dense",
    ("hunyuan_v1_dense",),
    hunyuan_dense_config,
    hunyuan_huggingface,
    title="Hunyuan, dense",
    covered="q/k norms after RoPE, its base by `alpha`",
    since="0.2",
)
