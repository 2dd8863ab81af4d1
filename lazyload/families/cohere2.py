"""Cohere 2 (Command R7B, Command A, Aya): parallel blocks, layer norms without biases, layers without RoPE."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import attention, decoder, layer_norm, mlp, sliding, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface


def cohere2_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Cohere 2: neighbours are rotated, in the layers with a sliding window only."""
    fields = Fields(values, max_position_embeddings=8192)
    _refuse_what_is_fixed(fields)
    bias = fields.get("attention_bias", False)
    full = attention(fields, qkv_bias=bias, o_bias=bias)
    width = window(fields, default=4096)
    if width is None:
        raise ConfigError(f"{fields.where}: sliding_window = null, which the layers with RoPE need")
    local = replace(full, rope=rope.read(fields, full.head_dim, interleaved=True), window=width)
    interval, count = fields.size("sliding_window_pattern", 4), fields.size("num_hidden_layers")
    feed_forward, norm = mlp(fields), layer_norm(fields)
    layers = [
        Layer(mixer=local if slid else full, feed_forward=feed_forward, norm=norm, parallel=True)
        for slid in sliding(fields, [(number + 1) % interval != 0 for number in range(count)])
    ]
    return decoder(fields, layers, tied=True, logits_scale=fields.get("logit_scale", 0.0625))


def _refuse_what_is_fixed(fields: Fields) -> None:
    """The files describe what transformers takes for granted."""
    fields.refuse("use_parallel_block", True)
    fields.refuse("use_gated_activation", True)
    fields.refuse("use_qk_norm", False)
    fields.refuse("rotary_pct", 1.0)
    fields.refuse("position_embedding_type", "rope_gptj")
    fields.refuse("order_of_interleaved_layers", "local_attn_first")
    # Copies of `sliding_window_pattern` and `tie_word_embeddings`, and how the model was trained.
    fields.ignore("layer_switch", "use_embedding_sharing", "use_parallel_embedding")


COHERE2 = Family(
    "cohere2",
    ("cohere2",),
    cohere2_config,
    huggingface.decoder,
    title="Cohere 2 (Command R7B, Command A, Aya)",
    covered="parallel blocks, layer norms, layers without RoPE",
    since="0.2",
)
