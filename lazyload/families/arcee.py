"""Arcee (AFM): a Llama whose MLP has no gate, and squares what its activation puts out."""

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

_LAYER = huggingface.ATTENTION | huggingface.UNGATED_MLP | huggingface.NORMS


def arcee_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an Arcee."""
    fields = Fields(values, max_position_embeddings=4096, rms_norm_eps=1e-5)
    bias = fields.get("attention_bias", False)
    mixer = attention(fields, qkv_bias=bias, o_bias=bias)
    feed_forward = mlp(fields, default="relu2", gated=False, bias=fields.get("mlp_bias", False))
    layer = Layer(
        mixer=replace(mixer, rope=rope.read(fields, mixer.head_dim)), feed_forward=feed_forward, norm=norm(fields)
    )
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


def arcee_huggingface(config: DecoderConfig) -> Layout:
    """Llama's names without those of the gate."""
    return huggingface.decoder(config, _LAYER)


ARCEE = Family(
    "arcee",
    ("arcee",),
    arcee_config,
    arcee_huggingface,
    title="Arcee (AFM)",
    covered="MLPs without a gate, squared ReLU",
    since="0.2",
)
