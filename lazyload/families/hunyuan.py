"""Hunyuan's dense models: a Llama whose queries and keys have norms after their rotation."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_RENAMED = {f"self_attn.{x[0]}_norm.weight": f"self_attn.{x}_layernorm.weight" for x in ("query", "key")}

# The files describe what transformers takes for granted; they name tokens, and have sizes of what is switched off.
_FIXED = {"use_qk_norm": True, "use_rotary_pos_emb": True, "norm_type": "rms", "num_experts": 1}
_TOKENS = ("im_start_id", "im_end_id", "im_newline_id", "text_start_id", "text_end_id", "mask_init_id", "pad_id")
_UNUSED = ("org_vocab_size", "attention_head_dim", "cla_share_factor", "dense_list", "class_num", "pool_type")


def hunyuan_dense_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a dense Hunyuan."""
    fields = Fields(values, max_position_embeddings=2048, rms_norm_eps=1e-5)
    for name, value in _FIXED.items():
        fields.refuse(name, value)
    fields.ignore(*_TOKENS, *_UNUSED)
    bias = fields.get("attention_bias", False)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, qk_norm="head", norm=norm(fields), norm_after_rope=True)
    # With an `alpha`, what is called "dynamic" does not depend on the length.
    names = {"dynamic": "ntk_alpha"} if rope.parameters_of(fields).get("alpha") else None
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, names=names))
    layer = Layer(mixer=mixer, feed_forward=mlp(fields), norm=norm(fields))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


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
