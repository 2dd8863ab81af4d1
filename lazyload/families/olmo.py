"""OLMo 2 and 3: norms after attention and MLP, and of all heads' queries and keys together."""

from collections.abc import Mapping
from typing import Any

from lazyload.architecture.decoder import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import activation, layer_types, shape, window
from lazyload.families.family import Family
from lazyload.formats import huggingface


def olmo2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an OLMo 2."""
    fields = Fields(values, max_position_embeddings=2048, rms_norm_eps=1e-5)
    sizes = shape(fields)
    layer = Layer(rope=rope.read(fields, sizes["head_dim"]))
    config = DecoderConfig(**sizes, **_common(fields), layers=(layer,) * fields.size("num_hidden_layers"))
    fields.finish()
    return config


def olmo3_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of an OLMo 3: of four layers, three see a sliding window."""
    fields = Fields(values, max_position_embeddings=2048, rms_norm_eps=1e-5)
    sizes = shape(fields)
    theta = fields.get("rope_theta", 500_000.0)
    ropes = rope.read_by_layer_type(fields, sizes["head_dim"], theta=theta, local_theta=theta)
    width = window(fields, default=4096)
    count = fields.size("num_hidden_layers")
    sliding = layer_types(fields, [(number + 1) % 4 != 0 for number in range(count)])
    layers = tuple(
        Layer(rope=ropes["sliding_attention"], window=width) if slides else Layer(rope=ropes["full_attention"])
        for slides in sliding
    )
    config = DecoderConfig(**sizes, **_common(fields), layers=layers)
    fields.finish()
    return config


def _common(fields: Fields) -> dict[str, Any]:
    bias = fields.get("attention_bias", False)
    return {
        "activation": activation(fields),
        "tied": fields.get("tie_word_embeddings", False),
        "pre_norms": False,
        "post_norms": True,
        "qk_norm": "full",
        "qkv_bias": bias,
        "o_bias": bias,
    }


OLMO2 = Family("olmo2", ("olmo2",), olmo2_config, huggingface.decoder)
OLMO3 = Family("olmo3", ("olmo3",), olmo3_config, huggingface.decoder)
