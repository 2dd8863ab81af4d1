"""SmolLM 3: a Llama in which every fourth layer has no rotary embedding."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import Attention, DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, sliding, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface


def smollm3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a SmolLM 3."""
    fields = Fields(values, num_key_value_heads=4, max_position_embeddings=32_768)
    bias = fields.get("attention_bias", False)
    feed_forward = mlp(fields, bias=fields.get("mlp_bias", False))
    mixers = _mixers(fields, attention(fields, qkv_bias=bias, o_bias=bias))
    layers = [Layer(mixer=mixer, feed_forward=feed_forward, norm=norm(fields)) for mixer in mixers]
    return decoder(fields, layers, tied=True)


def _mixers(fields: Fields, plain: Attention) -> list[Attention]:
    """The attention of each layer; in `no_rope_layers`, a 1 stands for a layer *with* the embedding."""
    rotary = rope.read(fields, plain.head_dim, theta=2e6)
    count = fields.size("num_hidden_layers")
    interval = fields.size("no_rope_layer_interval", 4)
    rotated = fields.optional("no_rope_layers", list)
    if rotated is None:
        rotated = [(number + 1) % interval != 0 for number in range(count)]
    if len(rotated) < count:
        raise ConfigError(f"{fields.where}: no_rope_layers has {len(rotated)} values for {count} layers")
    used = fields.get("use_sliding_window", False)
    width = window(fields, used=used)
    switched_on = used and width is not None
    fields.ignore("max_window_layers")
    slides = sliding(fields, [switched_on and not rotated[number] for number in range(count)])
    return [
        replace(plain, rope=rotary if has_rope else None, window=width if slid else None)
        for has_rope, slid in zip(rotated, slides, strict=False)
    ]


SMOLLM3 = Family(
    "smollm3",
    ("smollm3",),
    smollm3_config,
    huggingface.decoder,
    title="SmolLM 3",
    covered="layers without RoPE",
    since="0.1",
)
