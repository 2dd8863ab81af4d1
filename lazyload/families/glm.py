"""GLM 4 (the models that call themselves `glm4`: GLM-4-0414, GLM-Z1-0414)."""

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

# Unlike in Gemma, the norm after the attention has a name of its own, and the usual one stays before the MLP.
_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.NORMS,
    "post_self_attn_layernorm.weight": "post_attn_norm : embed",
    "post_mlp_layernorm.weight": "post_mlp_norm : embed",
    "mlp.gate_up_proj.weight": "mlp.in : (gate_up mlp) embed",
    "mlp.down_proj.weight": "mlp.out : embed mlp",
}


def glm4_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a GLM 4: neighbours are rotated, in half of each head."""
    fields = Fields(
        values,
        num_key_value_heads=2,
        head_dim=128,
        partial_rotary_factor=0.5,
        max_position_embeddings=131_072,
        rms_norm_eps=1.5625e-7,
    )
    # The output projection of the attention has no bias, whatever the file says.
    mixer = attention(fields, qkv_bias=fields.get("attention_bias", True))
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, partial=True, interleaved=True))
    layer = Layer(mixer=mixer, feed_forward=mlp(fields), norm=norm(fields), post_norms=True)
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def glm4_huggingface(config: DecoderConfig) -> Layout:
    """Norms around both blocks; gate and up projection lie in one tensor."""
    return huggingface.decoder(config, _LAYER)


GLM4 = Family("glm4", ("glm4",), glm4_config, glm4_huggingface)
