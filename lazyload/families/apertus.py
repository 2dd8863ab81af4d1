"""Apertus: a Llama whose MLP has no gate, but an activation with learned parameters, xIELU."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import MLP, DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.UNGATED_MLP,
    "attention_layernorm.weight": "attn_norm : embed",
    "feedforward_layernorm.weight": "mlp_norm : embed",
    "mlp.act_fn.alpha_p": "mlp.xielu.alpha_p : 1",
    "mlp.act_fn.alpha_n": "mlp.xielu.alpha_n : 1",
    "mlp.act_fn.beta": "mlp.xielu.beta :",
    "mlp.act_fn.eps": "mlp.xielu.eps :",
}

_ROPE = {"rope_type": "llama3", "rope_theta": 12e6, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def apertus_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an Apertus."""
    if not values.get("rope_scaling") and values.get("rope_parameters") is None:
        values = {**values, "rope_parameters": {**_ROPE, "original_max_position_embeddings": 8192}}
    fields = Fields(values, max_position_embeddings=65_536, rms_norm_eps=1e-5)
    # What transformers takes for granted.
    fields.refuse("qk_norm", True)
    bias = fields.get("attention_bias", False)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias, qk_norm="head", norm=norm(fields))
    mixer = replace(mixer, rope=rope.read(fields, mixer.head_dim, theta=12e6))
    if fields.get("hidden_act", "xielu") == "xielu":
        feed_forward = MLP(mlp_dim=fields.size("intermediate_size"), activation="xielu", gated=False)
    else:
        feed_forward = mlp(fields, gated=False)
    layer = Layer(mixer=mixer, feed_forward=feed_forward, norm=norm(fields))
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def apertus_huggingface(config: DecoderConfig) -> Layout:
    """Norms by names of their own; beside each MLP what its activation has."""
    return huggingface.decoder(config, _LAYER)


APERTUS = Family(
    "apertus",
    ("apertus",),
    apertus_config,
    apertus_huggingface,
    title="Apertus",
    covered="MLPs without a gate, xIELU with learned parameters, q/k norms",
    since="0.2",
)
