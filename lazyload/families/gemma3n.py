"""Gemma 3n: text models, and those of multimodal repositories."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lazyload.architecture import MLP, AltUp, AltUpStreams, Attention, DecoderConfig, Laurel, Layer
from lazyload.config_json import rope
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.per_layer import kv_layers, layer_by_layer, per_layer_inputs
from lazyload.config_json.shape import activation, attention, decoder, layer_types, norm, window
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.MLP,
    **huggingface.SANDWICH_NORMS,
    **huggingface.PER_LAYER_INPUT,
    "laurel.linear_left.weight": "laurel.left : laurel_rank embed",
    "laurel.linear_right.weight": "laurel.right : embed laurel_rank",
    "laurel.post_laurel_norm.weight": "laurel.norm : embed",
    "altup.router_norm.weight": "altup.router_norm : embed",
    "altup.modality_router.weight": "altup.router : modality embed",
    "altup.prediction_coefs.weight": "altup.prediction : (stream stream_read) modality",
    "altup.correction_coefs.weight": "altup.correction : stream modality",
    "altup.correct_output_scale": "altup.output_scale : embed",
}
_FURTHER = {
    **huggingface.PER_LAYER_EMBEDDING,
    "model.altup_projections.{further_stream}.weight": "altup.split : stream_embed embed",
    "model.altup_unembed_projections.{further_stream}.weight": "altup.join : embed stream_embed",
}
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
    "num_kv_shared_layers": 15,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262_144,
}
# A part of a file may leave out whatever is as in transformers' class, be it the model's size.
_PART_DEFAULTS: Mapping[str, Any] = {
    **_DEFAULTS,
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
}
# How images and sounds become embeddings.
_TOWERS = ("audio_config", "audio_soft_tokens_per_image", "vision_soft_tokens_per_image")


def gemma3n_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Gemma 3n: of a text model, or the text model's part of a multimodal one."""
    if values.get("model_type") == "gemma3n":
        fields = text_fields({"tie_word_embeddings": True, **values}, towers=_TOWERS, **_PART_DEFAULTS)
    else:
        fields = Fields(values, **_DEFAULTS)
    # How the weights were trained; and a scale of the logits of attention, which are never divided.
    fields.ignore("altup_coef_clip", "altup_lr_multiplier", "query_pre_attn_scalar")
    count, width = fields.size("num_hidden_layers"), fields.size("hidden_size")
    kinds = layer_types(fields, ["sliding_attention" if (n + 1) % 5 else "full_attention" for n in range(count)])
    mixers = _mixers(fields)
    mlps = _mlps(fields, count)
    embedding, per_layer_input = per_layer_inputs(fields, count, mlps[0].activation)
    streams, active = fields.size("altup_num_inputs", 4), fields.get("altup_active_idx", 0)
    if not (streams > 1 and 0 <= active < streams):
        raise ConfigError(
            f"{fields.where}: altup_active_idx = {active} of altup_num_inputs = {streams} must be one of two or more"
        )
    scaled = fields.get("altup_correct_scale", True)
    first = Layer(
        mixer=mixers[kinds[0]],
        feed_forward=mlps[0],
        norm=norm(fields),
        post_norms=True,
        per_layer_input=per_layer_input,
        laurel=Laurel(rank=fields.size("laurel_rank", 64), norm=norm(fields)),
        altup=AltUp(num_streams=streams, active=active, scaled=scaled, norm=norm(fields)),
    )
    layers = [
        replace(first, mixer=replace(mixers[kind], kv_layer=kv_layer), feed_forward=mlp)
        for kind, kv_layer, mlp in zip(kinds, kv_layers(fields, kinds), mlps, strict=True)
    ]
    return decoder(
        fields,
        layers,
        tied=True,
        embed_scale=math.sqrt(width),
        final_softcap=fields.optional("final_logit_softcapping", float, 30.0),
        per_layer_embedding=embedding,
        streams=AltUpStreams(num_streams=streams, embed_dim=width),
    )


def gemma3n_huggingface(config: DecoderConfig) -> Layout:
    """The text model lies behind a prefix where there are towers; what the file switches off is stored all the same."""
    towers = ("vision_tower", "audio_tower", "embed_vision", "embed_audio")
    unused = [*huggingface.unused_keys_and_values(config), "*altup.correct_output_scale"]
    return huggingface.decoder(
        config,
        _LAYER,
        further=_FURTHER,
        skipped=[*(f"*{tower}.*" for tower in towers), *unused],
        aliases=huggingface.TEXT_MODEL,
    )


def _mixers(fields: Fields) -> dict[str, Attention]:
    """The attention of each kind of layer; its logits are not divided."""
    bias = fields.get("attention_bias", False)
    plain = attention(
        fields, query_scale=1.0, qk_norm="head", v_norm=True, norm=norm(fields), qkv_bias=bias, o_bias=bias
    )
    ropes = rope.read_by_layer_type(
        fields,
        plain.head_dim,
        theta=fields.get("rope_theta", 1e6),
        local_theta=fields.get("rope_local_base_freq", 1e4),
    )
    widths = {"sliding_attention": window(fields), "full_attention": None}
    return {kind: replace(plain, rope=ropes[kind], window=width) for kind, width in widths.items()}


def _mlps(fields: Fields, count: int) -> list[MLP]:
    """The MLP of each layer, whose width the file may say layer by layer."""
    gate = activation(fields, "hidden_activation", "gelu_pytorch_tanh")
    is_list = isinstance(fields.optional("intermediate_size", object), list)
    sizes = layer_by_layer(fields, "intermediate_size", count) if is_list else None
    widths = [sizes.size(str(n)) if sizes else fields.size("intermediate_size") for n in range(count)]
    sparse = 10 if count > 10 else 0
    shares = [0.95] * sparse + [0.0] * (count - sparse)
    if fields.optional("activation_sparsity_pattern", list) is not None:
        given = layer_by_layer(fields, "activation_sparsity_pattern", count)
        shares = [given.need(str(number), float) for number in range(count)]
    if not all(0 <= share < 1 for share in shares):
        raise ConfigError(f"{fields.where}: activation_sparsity_pattern = {shares} must hold shares below 1")
    return [MLP(mlp_dim=width, activation=gate, sparsity=share) for width, share in zip(widths, shares, strict=True)]


GEMMA3N = Family(
    "gemma3n",
    ("gemma3n", "gemma3n_text"),
    gemma3n_config,
    gemma3n_huggingface,
    title="Gemma 3n",
    covered="AltUp, Laurel, sparse activations, per-layer embeddings, shared keys and values; the text model of "
    "multimodal repositories",
    since="0.2",
)
