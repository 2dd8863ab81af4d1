"""DeepSeek V3.2 and GLM 5: a DeepSeek V3 whose tokens attend to the keys that an indexer selects."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lazyload.architecture import DecoderConfig, Indexer, Layer
from lazyload.architecture.block import Block
from lazyload.config_json.experts import sigmoid_experts
from lazyload.config_json.fields import Fields
from lazyload.config_json.shape import decoder, layer_types, mlp, norm
from lazyload.errors import ConfigError
from lazyload.families.deepseek import LAYER, latent_attention
from lazyload.families.family import Family
from lazyload.formats import huggingface
from lazyload.layouts.layout import Layout

_SPARSE = ("indexed_attention", "deepseek_sparse_attention")
"""What `layer_types` calls these layers now, and did before."""


def deepseek_v32_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a DeepSeek V3.2, whose indexer rotates halves."""
    fields = Fields(
        values,
        n_shared_experts=1,
        n_group=8,
        topk_group=4,
        q_lora_rank=1536,
        max_position_embeddings=163_840,
    )
    own = [True] * fields.size("num_hidden_layers")
    return _decoder(fields, own, num_heads=64, interleaved=False)


def glm_moe_dsa_config(values: Mapping[str, Any]) -> DecoderConfig:
    """Reads the `config.json` of a GLM 5, whose indexer rotates neighbours; some layers share another's selection."""
    fields = Fields(values, n_shared_experts=1, q_lora_rank=2048, max_position_embeddings=202_752, rms_norm_eps=1e-5)
    return _decoder(fields, _own_indexers(fields), num_heads=32, interleaved=True)


def sparse_huggingface(config: DecoderConfig) -> Layout:
    """DeepSeek V3's names, and the indexer's below the attention's."""
    rows = {
        **LAYER,
        "self_attn.indexer.wq_b.weight": "indexer.q : (index_head index_dim) q_rank",
        "self_attn.indexer.wk.weight": "indexer.k : index_dim embed",
        "self_attn.indexer.k_norm.weight": "indexer.k_norm : index_dim",
        "self_attn.indexer.k_norm.bias": "indexer.k_norm.bias : index_dim",
        "self_attn.indexer.weights_proj.weight": "indexer.weights : index_head embed",
    }
    return huggingface.decoder(config, rows, skipped=huggingface.prediction_layers(config))


def _decoder(fields: Fields, own_indexers: Sequence[bool], *, num_heads: int, interleaved: bool) -> DecoderConfig:
    # Layers that predict further tokens are not part of the model.
    fields.ignore("num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types")
    # transformers reads none of them: no MLP has biases, and what is rotated how is the same in all models of a kind.
    fields.ignore("mlp_bias")
    fields.refuse("rope_interleave", True)
    fields.refuse("indexer_rope_interleave", interleaved)
    fields.refuse("moe_layer_freq", 1)
    fields.size("q_lora_rank")
    count = len(own_indexers)
    layer_types(fields, _SPARSE[:1] * count, *_SPARSE)
    first = min(max(fields.get("first_k_dense_replace", 3), 0), count)
    default = ["dense"] * first + ["sparse"] * (count - first)
    kinds = layer_types(fields, default, "dense", "sparse", name="mlp_layer_types")
    attention = latent_attention(fields, interleaved=True)
    indexer = Indexer(
        num_heads=fields.size("index_n_heads", num_heads),
        head_dim=fields.size("index_head_dim", 128),
        num_selected=fields.size("index_topk", 2048),
        rope=attention.rope and replace(attention.rope, interleaved=interleaved),
    )
    mixers = {True: replace(attention, indexer=indexer), False: replace(attention, shares_selection=True)}
    feed_forwards: Mapping[str, Block] = {"dense": mlp(fields), "sparse": sigmoid_experts(fields, scale=2.5)}
    layers = [
        Layer(mixer=mixers[own], feed_forward=feed_forwards[kind], norm=norm(fields))
        for own, kind in zip(own_indexers, kinds, strict=True)
    ]
    return decoder(fields, layers)


def _own_indexers(fields: Fields) -> list[bool]:
    """For each layer, whether it has an indexer; the others share the selection of the last one before them."""
    count = fields.size("num_hidden_layers")
    every, offset = max(fields.get("index_topk_freq", 1), 1), fields.get("index_skip_topk_offset", 2)
    kinds = ["shared" if max(number - offset + 1, 0) % every else "full" for number in range(count)]
    pattern = fields.optional("index_topk_pattern", object)
    if isinstance(pattern, str):
        pattern = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    for name, given in (("index_topk_pattern", pattern), ("indexer_types", fields.optional("indexer_types", list))):
        if given is None:
            continue
        # Further ones are of the layers that predict further tokens.
        if not isinstance(given, list) or len(given) < count or not set(map(str, given)) <= {"full", "shared"}:
            raise ConfigError(f"{fields.where}: {name} = {given!r:.200} must say full or shared of {count} layers")
        kinds = given[:count]
    if kinds[0] != "full":
        raise ConfigError(f"{fields.where}: the first layer must have an indexer of its own; it is {kinds[0]!r}")
    return [kind == "full" for kind in kinds]


DEEPSEEK_V32 = Family(
    "deepseek_v32",
    ("deepseek_v32",),
    deepseek_v32_config,
    sparse_huggingface,
    title="DeepSeek V3.2",
    covered="DeepSeek V3's form, and an indexer that selects what a token attends to",
    since="0.2",
)
GLM_MOE_DSA = Family(
    "glm_moe_dsa",
    ("glm_moe_dsa",),
    glm_moe_dsa_config,
    sparse_huggingface,
    title="GLM 5",
    covered="an indexer as DeepSeek V3.2's, which layers may share; without the layers that predict further tokens",
    since="0.2",
)
