"""EXAONE 4: norms after the blocks, and of each head's queries and keys; without RoPE where others slide."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, mlp, norm, sliding, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout


def exaone4_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an EXAONE 4: with a window, layers that see everything have no rotary embedding."""
    fields = Fields(values, num_key_value_heads=32, max_position_embeddings=2048, rms_norm_eps=1e-5)
    mixer = attention(fields, qk_norm="head", norm=norm(fields))
    rotated = replace(mixer, rope=rope.read(fields, mixer.head_dim))
    width = window(fields, default=4096)
    slides = sliding(fields, _pattern(fields, width))
    if width is None and any(slides):
        raise ConfigError(f"{fields.where}: layer_types has sliding_attention, but sliding_window = null")
    full = rotated if width is None else mixer
    local = replace(rotated, window=width)
    layer = Layer(mixer=full, feed_forward=mlp(fields), norm=norm(fields), pre_norms=False, post_norms=True)
    return decoder(fields, [replace(layer, mixer=local if slid else full) for slid in slides])


def _pattern(fields: Fields, width: int | None) -> list[bool]:
    """For each layer, whether it slides where `layer_types` does not say: all but every so many-th."""
    count = fields.size("num_hidden_layers")
    if width is None or "layer_types" in fields:
        # The files of the 32B model also spell it, "LLLG".
        fields.ignore("sliding_window_pattern")
        return [False] * count
    interval = fields.size("sliding_window_pattern", 4)
    return [(number + 1) % interval != 0 for number in range(count)]


def exaone4_huggingface(config: DecoderConfig) -> Layout:
    """Llama's names, with norms after the blocks."""
    return huggingface.decoder(config, huggingface.ATTENTION | huggingface.MLP | huggingface.SANDWICH_NORMS)


EXAONE4 = Family(
    "exaone4",
    ("exaone4",),
    exaone4_config,
    exaone4_huggingface,
    title="EXAONE 4",
    covered="norms after the blocks, q/k norms, layers without RoPE",
    since="0.2",
)
