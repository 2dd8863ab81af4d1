"""GLM 4 (`glm4`: GLM-4-0414, GLM-Z1-0414), and GLM 4 with experts (`glm4_moe`: GLM-4.5, 4.6, 4.7)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.experts import sigmoid_experts
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


def glm4_moe_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a GLM 4 with experts: halves are rotated, in half of each head."""
    fields = Fields(
        values,
        num_key_value_heads=8,
        partial_rotary_factor=0.5,
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        n_shared_experts=1,
        first_k_dense_replace=1,
    )
    # Layers that predict further tokens are not part of the model.
    fields.ignore("num_nextn_predict_layers", "num_mtp_layers")
    mixer = attention(
        fields,
        # As in GLM 4, not on what attention puts out.
        qkv_bias=fields.get("attention_bias", False),
        qk_norm="head" if fields.get("use_qk_norm", False) else None,
        norm=norm(fields),
    )
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, partial=True))
    dense, experts = mlp(fields), sigmoid_experts(fields, scale=1.0)
    first = fields.get("first_k_dense_replace", 0)
    layers = [
        Layer(mixer=mixer, feed_forward=dense if number < first else experts, norm=norm(fields))
        for number in range(fields.size("num_hidden_layers"))
    ]
    return decoder(fields, layers)


def glm4_moe_huggingface(config: DecoderConfig) -> Layout:
    """DeepSeek's names for the experts, and its layers behind the last."""
    rows = huggingface.LAYER | huggingface.EXPERTS | huggingface.SHARED_EXPERTS
    return huggingface.decoder(config, rows, skipped=huggingface.prediction_layers(config))


GLM4 = Family(
    "glm4",
    ("glm4",),
    glm4_config,
    glm4_huggingface,
    title="GLM 4 (GLM-4-0414, GLM-Z1-0414)",
    covered="norms around the blocks, fused gate and up projection, partial rotary",
    since="0.2",
)
GLM4_MOE = Family(
    "glm4_moe",
    ("glm4_moe",),
    glm4_moe_config,
    glm4_moe_huggingface,
    title="GLM 4 with experts (4.5, 4.6, 4.7)",
    covered="sigmoid router, partial rotary; without the layers that predict further tokens",
    since="0.2",
)
