"""SmolLM 3: a Llama in which every fourth layer has no rotary embedding."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, layer_types, shape, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface


def smollm3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a SmolLM 3; in `no_rope_layers`, a 1 stands for a layer *with* the embedding."""
    fields = Fields(values, num_key_value_heads=4, max_position_embeddings=32_768)
    sizes = shape(fields)
    bias = fields.get("attention_bias", False)
    config = DecoderConfig(
        **sizes,
        layers=_layers(fields, sizes["head_dim"]),
        activation=activation(fields),
        tied=fields.get("tie_word_embeddings", True),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=fields.get("mlp_bias", False),
    )
    fields.finish()
    return config


def _layers(fields: Fields, head_dim: int) -> tuple[Layer, ...]:
    rotary = rope.read(fields, head_dim, theta=2e6)
    count = fields.size("num_hidden_layers")
    interval = fields.size("no_rope_layer_interval", 4)
    rotated = fields.optional("no_rope_layers", list)
    if rotated is None:
        rotated = [(number + 1) % interval != 0 for number in range(count)]
    if len(rotated) < count:
        raise ConfigError(f"{fields.where}: no_rope_layers has {len(rotated)} values for {count} layers")
    width = window(fields)
    switched_on = fields.get("use_sliding_window", False) and width is not None
    fields.ignore("max_window_layers")
    sliding = layer_types(fields, [switched_on and not rotated[number] for number in range(count)])
    return tuple(
        Layer(rope=rotary if has_rope else None, window=width if slides else None)
        for has_rope, slides in zip(rotated, sliding, strict=False)
    )


SMOLLM3 = Family("smollm3", ("smollm3",), smollm3_config, huggingface.decoder)
