"""Llama 4: attention in chunks, by turns with full attention that has no RoPE; experts whose inputs are weighted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lazyload.architecture import Attention, DecoderConfig, Layer, Temperature
from lazyload.config_json import rope
from lazyload.config_json.experts import experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.multimodal import text_fields
from lazyload.config_json.shape import attention, decoder, layer_types, mlp, norm
from lazyload.errors import ConfigError
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_LAYER = {
    **huggingface.ATTENTION,
    **huggingface.NORMS,
    "feed_forward.{gate_up:gate,up}_proj.weight": "mlp.in : mlp embed",
    "feed_forward.down_proj.weight": "mlp.out : embed mlp",
    "feed_forward.router.weight": "router : expert embed",
    "feed_forward.experts.gate_up_proj": "experts.in : expert embed (gate_up expert_mlp)",
    "feed_forward.experts.down_proj": "experts.out : expert expert_mlp embed",
    "feed_forward.shared_expert.{gate_up:gate,up}_proj.weight": "shared.in : shared_mlp embed",
    "feed_forward.shared_expert.down_proj.weight": "shared.out : embed shared_mlp",
}
_ONE_BY_ONE = {
    "feed_forward.experts.{expert}.{gate_up:gate,up}_proj.weight": "experts.in : expert_mlp embed",
    "feed_forward.experts.{expert}.down_proj.weight": "experts.out : embed expert_mlp",
}
"""How llm-compressor stores packed experts."""

_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "attention_chunk_size": 8192,
}


def llama4_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a Llama 4, whose text model's part may stand in it by itself."""
    if values.get("model_type") == "llama4_text":
        return _decoder(Fields(values, **_DEFAULTS))
    # The text model is one of its own, which is tied as its part of the file says.
    text = {name: value for name, value in values.items() if name != "tie_word_embeddings"}
    return _decoder(text_fields(text, **_DEFAULTS))


def llama4_huggingface(config: DecoderConfig) -> Layout:
    """Experts are stored inputs first; the text model of a multimodal one lies behind a prefix."""
    skipped = ["*vision_model.*", "*multi_modal_projector.*"]
    aliases = huggingface.TEXT_MODEL
    return huggingface.decoder(config, _LAYER, skipped=skipped, aliases=aliases, alternatives=[_ONE_BY_ONE])


def _decoder(fields: Fields) -> DecoderConfig:
    # How the experts are stored, which the tensors tell.
    fields.ignore("for_llm_compressor")
    count = fields.size("num_hidden_layers")
    dense = replace(mlp(fields), mlp_dim=fields.size("intermediate_size_mlp", 16_384))
    routed = experts(
        fields,
        "num_local_experts",
        shared_mlp_dim=fields.size("intermediate_size"),
        scores="sigmoid",
        normalize=False,
        weighted_inputs=True,
    )
    step = fields.size("interleave_moe_layer_step", 1)
    sparse = fields.optional("moe_layers", list)
    if sparse is None:
        sparse = list(range(step - 1, count, step))
    layers = [
        Layer(mixer=mixer, feed_forward=routed if number in sparse else dense, norm=norm(fields))
        for number, mixer in enumerate(_mixers(fields, count))
    ]
    return decoder(fields, layers)


def _mixers(fields: Fields, count: int) -> list[Attention]:
    """The attention of each layer; in `no_rope_layers`, a 1 stands for a layer *with* the embedding."""
    bias = fields.get("attention_bias", False)
    plain = attention(fields, qkv_bias=bias, o_bias=bias, norm=norm(fields))
    rotary = rope.read(fields, plain.head_dim, theta=500_000.0, interleaved=True)
    temperature = Temperature(
        beta=fields.get("attn_scale", 0.1), length=fields.size("floor_scale", 8192), counted_from=1
    )
    # Early files have a number here.
    tuned = bool(fields.optional("attn_temperature_tuning", object, True))
    normed = fields.get("use_qk_norm", True)
    with_rope = replace(plain, rope=rotary, qk_norm="bare" if normed else None)
    without = replace(plain, temperature=temperature if tuned else None)
    mixers = [with_rope if rotated else without for rotated in _rotated(fields, count)]
    return _in_chunks(fields, mixers)


def _rotated(fields: Fields, count: int) -> Sequence[Any]:
    interval = fields.size("no_rope_layer_interval", 4)
    rotated = fields.optional("no_rope_layers", list) or [(number + 1) % interval != 0 for number in range(count)]
    if len(rotated) < count:
        raise ConfigError(f"{fields.where}: no_rope_layers has {len(rotated)} values for {count} layers")
    return rotated[:count]


def _in_chunks(fields: Fields, mixers: Sequence[Attention]) -> list[Attention]:
    """The same in chunks, where `layer_types` says so, or else in the layers with RoPE."""
    chunk = fields.optional("attention_chunk_size", int)
    default = ["chunked_attention" if mixer.rope and chunk is not None else "full_attention" for mixer in mixers]
    kinds = layer_types(fields, default, "chunked_attention", "full_attention")
    if "chunked_attention" in kinds:
        chunk = fields.size("attention_chunk_size")
    in_chunks = [kind == "chunked_attention" for kind in kinds]
    return [replace(m, chunk=chunk) if chunked else m for m, chunked in zip(mixers, in_chunks, strict=True)]


LLAMA4 = Family(
    "llama4",
    ("llama4", "llama4_text"),
    llama4_config,
    llama4_huggingface,
    title="Llama 4",
    covered="attention in chunks, layers without RoPE, experts whose inputs are weighted; the text model of "
    "multimodal repositories",
    since="0.2",
)
