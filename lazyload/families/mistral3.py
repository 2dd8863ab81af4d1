"""Ministral 3: a Mistral whose queries grow with their position; and the text models of multimodal Mistral 3."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer, Temperature
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.families.llama import mistral
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_BETA = "llama_4_scaling_beta"
_ROPE = {
    "type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    _BETA: 0.1,
}


def ministral3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Ministral 3."""
    return _ministral3(Fields(values, **_DEFAULTS))


def mistral3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the text model's part of the `config.json` of a Mistral 3: a Mistral, or a Ministral 3."""
    towers = ("projector_hidden_act", "vision_feature_layer", "multimodal_projector_bias", "spatial_merge_size")
    values = {"tie_word_embeddings": True, **values}
    text = values.get("text_config")
    kind = text.get("model_type", "mistral") if isinstance(text, Mapping) else None
    match kind:
        case "ministral3":
            return _ministral3(text_fields(values, towers=towers, **_DEFAULTS))
        case "mistral" | None:
            defaults = {"num_key_value_heads": 8, "max_position_embeddings": 131_072}
            return mistral(text_fields(values, towers=towers, **defaults))
    raise ConfigError(
        f"config.json: text_config: model_type = {kind!r} is not implemented; there are mistral and ministral3"
    )


def mistral3_huggingface(config: DecoderConfig) -> Layout:
    """The text model lies behind a prefix, beside what turns images into embeddings."""
    skipped = ["*vision_tower.*", "*multi_modal_projector.*"]
    return huggingface.decoder(config, skipped=skipped, aliases=huggingface.TEXT_MODEL)


_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-5,
    "rope_parameters": _ROPE,
}


def _ministral3(fields: Fields) -> DecoderConfig:
    # Beside the embedding's parameters it would count for some kinds of embedding only.
    fields.refuse("original_max_position_embeddings")
    mixer = attention(fields, window=window(fields))
    rotary = rope.read(fields, mixer.head_dim, ignored=(_BETA, "max_position_embeddings"))
    parameters = Fields(rope.parameters_of(fields), where=f"{fields.where}: rope_parameters")
    temperature = Temperature(
        beta=parameters.need(_BETA, float), length=parameters.size("original_max_position_embeddings")
    )
    layer = Layer(
        mixer=replace(mixer, rope=rotary, temperature=temperature), feed_forward=mlp(fields), norm=norm(fields)
    )
    return decoder(fields, (layer,) * fields.size("num_hidden_layers"))


MINISTRAL3 = Family(
    "ministral3",
    ("ministral3",),
    ministral3_config,
    huggingface.decoder,
    title="Ministral 3",
    covered="queries that grow with their position",
    since="0.2",
)
MISTRAL3 = Family(
    "mistral3",
    ("mistral3",),
    mistral3_config,
    mistral3_huggingface,
    title="Mistral 3",
    covered="the text model of multimodal repositories: a Mistral or a Ministral 3",
    since="0.2",
)
