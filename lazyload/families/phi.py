"""Phi 3, 3.5 and 4 (the models that call themselves `phi3`)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, window
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_FUSED = {
    "self_attn.qkv_proj.weight": "attn.q | attn.k | attn.v : "
    "(head head_dim | kv_head head_dim | kv_head head_dim) embed",
    "self_attn.o_proj.weight": "attn.o : embed (head head_dim)",
    "mlp.gate_up_proj.weight": "mlp.in : (gate_up mlp) embed",
    "mlp.down_proj.weight": "mlp.out : embed mlp",
}


def phi3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Phi 3."""
    fields = Fields(values, max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5)
    mixer = attention(fields, window=window(fields))
    # The files of Phi 3's first release call the same scaling "su", and some "yarn".
    rotary = rope.read(fields, mixer.head_dim, partial=True, names={"su": "longrope", "yarn": "longrope"})
    fields.ignore("original_max_position_embeddings")
    fields.refuse("attention_bias")
    fields.refuse("mlp_bias")
    fields.refuse("lm_head_bias")
    fields.refuse("full_attn_mod", 1)
    fields.refuse("interpolate_factor", 1)
    layer = Layer(mixer=replace(mixer, rope=rotary), feed_forward=mlp(fields), norm=norm(fields))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def phi3_huggingface(config: DecoderConfig) -> Layout:
    """Queries, keys and values lie in one tensor, gate and up projection in another."""
    return huggingface.decoder(config, huggingface.NORMS | _FUSED)


PHI3 = Family(
    "phi3",
    ("phi3",),
    phi3_config,
    phi3_huggingface,
    title="Phi 3, 3.5, 4",
    covered="fused projections, partial rotary, LongRoPE",
    since="0.1",
)
