"""Models of every kind that transformers builds from drawn configurations, loaded and compared with transformers.

Whole and token by token. `LAZYLOAD_EXAMPLES=50` draws more configurations, and other ones each time.
"""

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.decoders import decode_scanned, run

import lazyload
from lazyload import families
from lazyload.errors import ConfigError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.24")

TOLERANCE = 2e-4
LENGTH = 20
EXAMPLES = int(os.environ.get("LAZYLOAD_EXAMPLES", "1"))

Values = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

BOTH = st.booleans()
ACTIVATIONS = st.sampled_from(["silu", "gelu", "gelu_pytorch_tanh", "relu"])
THETAS = st.sampled_from([100.0, 10_000.0, 500_000.0, 1e6])
# Shorter and longer than the sequences: some scalings depend on that.
LENGTHS = st.sampled_from([12, 16, 64, 4096])
# Not 1: transformers' own cache keeps everything for it.
WINDOWS = st.sampled_from([None, 2, 5, 4096])
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 28,
    "patch_size": 14,
}
PIXTRAL = {**VISION, "model_type": "pixtral", "head_dim": 8}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "num_position_embeddings": 16,
}
KIMI_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 4,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
    "pos_emb_time": 2,
}

GEMMA4_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}
GEMMA4_UNIFIED_VISION = {
    "mm_embed_dim": 16,
    "mm_posemb_size": 16,
    "output_proj_dims": 16,
    "patch_size": 4,
    "pooling_kernel_size": 2,
}


def maybe(draw: Draw, **fields: st.SearchStrategy[Any]) -> Values:
    """Some of the fields; what is left out has the default of transformers' class."""
    return {name: draw(values) for name, values in fields.items() if draw(BOTH)}


def sizes(draw: Draw, *, kv_heads: bool = True, head_dim: bool = True) -> Values:
    """What every model has; odd sizes more often than round ones."""
    groups, kv = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    if not kv_heads:
        groups, kv = groups * kv, 1
    heads = groups * kv
    width = draw(st.sampled_from([6, 8, 10]))
    values = {
        "vocab_size": draw(st.sampled_from([37, 61, 96])),
        "hidden_size": heads * width,
        "intermediate_size": draw(st.sampled_from([17, 40])),
        "num_hidden_layers": draw(st.integers(1, 5)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv if kv_heads else heads,
        # Beyond most vocabularies by default.
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if head_dim:
        values["head_dim"] = draw(st.sampled_from([4, 8, 14]))
    return values | maybe(draw, rms_norm_eps=st.sampled_from([1e-6, 1e-5, 1e-2]), tie_word_embeddings=BOTH)


def scaling(draw: Draw, dim: int, kinds: str) -> Values:
    """The description of a rotary embedding of `dim` dimensions without its base."""
    # With one pair, transformers divides by zero: refused.
    kind = draw(st.sampled_from([kind for kind in kinds.split() if kind != "dynamic" or dim > 2]))
    factor = draw(st.sampled_from([1.0, 2.0, 4.5, 40.0]))
    original = {"original_max_position_embeddings": draw(st.sampled_from([8, 16, 64]))}
    match kind:
        case "default":
            return {"rope_type": "default"}
        case "linear" | "dynamic":
            return {"rope_type": kind, "factor": factor}
        case "llama3":
            edges = {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
            return {"rope_type": kind, "factor": factor, **original, **edges}
        case "yarn":
            values = {"rope_type": kind, "factor": factor, **original} | maybe(
                draw,
                beta_fast=st.sampled_from([8.0, 32.0]),
                beta_slow=st.sampled_from([0.5, 1.0]),
                attention_factor=st.sampled_from([0.7, 1.2]),
                truncate=BOTH,
            )
            return values | draw(st.sampled_from([{}, {"mscale": 0.707, "mscale_all_dim": 1.0}]))
        case _:
            factors = st.lists(st.sampled_from([1.0, 1.5, 3.0, 20.0]), min_size=dim // 2, max_size=dim // 2)
            values = {"rope_type": kind, "short_factor": draw(factors), "long_factor": draw(factors), **original}
            return values | maybe(draw, factor=st.just(factor), attention_factor=st.sampled_from([0.7, 1.2]))


def rope(draw: Draw, dim: int, kinds: str = "default linear dynamic llama3 yarn longrope") -> Values:
    """The rotary embedding in the old or the new form, or nothing of it."""
    values = {"max_position_embeddings": draw(LENGTHS)}
    form = draw(st.sampled_from(["none", "theta", "old", "older", "new"]))
    described = scaling(draw, dim, kinds)
    theta = {"rope_theta": draw(THETAS)}
    match form:
        case "none":
            return values
        case "theta":
            return values | theta | {"rope_scaling": None}
        case "old" | "older":
            if form == "older":
                described["type"] = described.pop("rope_type")
            return values | theta | {"rope_scaling": described}
        case _:
            return values | {"rope_parameters": described | theta}


def descriptions(values: Values) -> list[Values]:
    """The object that describes the rotary embedding, if there is one."""
    return [found for name in ("rope_parameters", "rope_scaling") if (found := values.get(name))]


def partial(draw: Draw, dim: int, default: float) -> Values:
    """The rotary embedding of a share of the dimensions; the share stands in its description, or beside it."""
    # transformers rotates more dimensions than it computes frequencies for where their number is odd: refused.
    share = draw(st.sampled_from([share for share in (0.25, 0.5, 0.75, 1.0) if int(dim * share) % 2 == 0]))
    values = rope(draw, int(dim * share))
    if share != default or draw(BOTH):
        draw(st.sampled_from([values, *descriptions(values)]))["partial_rotary_factor"] = share
    return values


def sections(draw: Draw, values: Values) -> Values:
    """The same values; the rotary embedding's description says how images use it, as Qwen's does."""
    for found in descriptions(values):
        found.update(maybe(draw, mrope_section=st.just([2, 1, 1]), mrope_interleaved=st.just(True)))
    return values


def multimodal(draw: Draw, kind: str, text: Values, vision: Values) -> Values:
    """A text model below `text_config`, beside a vision tower."""
    return {"text_config": {"model_type": kind, **text}, "vision_config": vision} | maybe(
        draw, tie_word_embeddings=BOTH
    )


def width(values: Values) -> int:
    return values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]


def kinds_of_layers(values: Values) -> st.SearchStrategy[list[str]]:
    count = values["num_hidden_layers"]
    return st.lists(st.sampled_from(["sliding_attention", "full_attention"]), min_size=count, max_size=count)


def llama(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    return values | rope(draw, width(values)) | maybe(draw, attention_bias=BOTH, mlp_bias=BOTH, hidden_act=ACTIVATIONS)


def llama4_text(draw: Draw) -> Values:
    values = sizes(draw)
    count, experts = values["num_hidden_layers"], draw(st.integers(1, 5))
    values |= rope(draw, width(values))
    kinds = st.lists(st.sampled_from(["chunked_attention", "full_attention"]), min_size=count, max_size=count)
    # Not 1: transformers' own cache keeps everything for it.
    values |= {"attention_chunk_size": draw(st.sampled_from([2, 5, 8192]))}
    values |= draw(st.sampled_from([{}, {"layer_types": draw(kinds)}, {"attention_chunk_size": None}]))
    values |= {"num_local_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts))}
    return (
        values
        | maybe(
            draw,
            attention_bias=BOTH,
            hidden_act=ACTIVATIONS,
            use_qk_norm=BOTH,
            attn_temperature_tuning=BOTH,
            floor_scale=st.sampled_from([1, 3, 8]),
            attn_scale=st.sampled_from([0.1, 1.0]),
            no_rope_layer_interval=st.integers(1, 3),
            no_rope_layers=st.lists(st.integers(0, 1), min_size=count, max_size=count),
            interleave_moe_layer_step=st.integers(1, 3),
            moe_layers=st.lists(st.integers(0, 4), max_size=3),
        )
        | {"intermediate_size_mlp": 23}
    )


def mistral(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH)) | maybe(draw, hidden_act=ACTIVATIONS)
    return values | rope(draw, width(values)) | {"sliding_window": draw(WINDOWS)}


def ministral3(draw: Draw) -> Values:
    values = sizes(draw) | {"sliding_window": draw(WINDOWS)}
    values |= rope(draw, width(values)) | maybe(draw, hidden_act=ACTIVATIONS)
    for found in descriptions(values):
        # transformers can do without neither, whatever the kind of embedding.
        found["llama_4_scaling_beta"] = draw(st.sampled_from([0.1, 1.0]))
        found.setdefault("original_max_position_embeddings", draw(st.sampled_from([8, 16])))
        found.update(maybe(draw, max_position_embeddings=st.just(64)))
    return values


def mistral3(draw: Draw) -> Values:
    if draw(BOTH):
        text = multimodal(draw, "ministral3", ministral3(draw), PIXTRAL)
    else:
        text = multimodal(draw, "mistral", mistral(draw), PIXTRAL)
    return text | maybe(draw, spatial_merge_size=st.just(1), multimodal_projector_bias=BOTH)


def mixtral(draw: Draw) -> Values:
    values = mistral(draw)
    # Without it, transformers computes only the plain embedding.
    values["head_dim"] = width(values)
    experts = draw(st.integers(1, 5))
    chosen = {"num_local_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts))}
    return values | chosen


def qwen2(draw: Draw) -> Values:
    values = sizes(draw, head_dim=False)
    values |= rope(draw, width(values)) | maybe(draw, hidden_act=ACTIVATIONS)
    return values | qwen_windows(draw, values)


def qwen_windows(draw: Draw, values: Values) -> Values:
    sliding = draw(BOTH)
    fields = {"use_sliding_window": sliding} | maybe(draw, max_window_layers=st.integers(0, 5))
    if not sliding:
        return fields | maybe(draw, sliding_window=st.sampled_from([5, None]))
    return fields | {"sliding_window": 3} | maybe(draw, layer_types=kinds_of_layers(values))


def qwen3(draw: Draw) -> Values:
    values = sizes(draw) | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS)
    return values | rope(draw, width(values)) | qwen_windows(draw, values)


def qwen3_moe(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    sliding = draw(BOTH)
    experts = draw(st.integers(1, 5))
    return (
        values
        | rope(draw, width(values))
        | {"use_sliding_window": sliding, "sliding_window": 3 if sliding else draw(WINDOWS)}
        | {"num_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts)), "moe_intermediate_size": 12}
        | maybe(
            draw,
            norm_topk_prob=BOTH,
            attention_bias=BOTH,
            hidden_act=ACTIVATIONS,
            decoder_sparse_step=st.integers(1, 3),
            mlp_only_layers=st.lists(st.integers(0, 4), max_size=3),
        )
    )


def hybrid(draw: Draw, kv_heads: int) -> Values:
    """What Qwen 3 Next and 3.5 share; `kv_heads` is what a missing `num_key_value_heads` stands for."""
    values = sizes(draw, head_dim=draw(BOTH))
    if values["num_attention_heads"] % kv_heads == 0 and draw(BOTH):
        del values["num_key_value_heads"]
    values |= partial(draw, values.get("head_dim", 256), 0.25)
    # A first token's output is its query times its key, which may be next to nothing, and the norm after it undoes
    # that: its rounding counts up to `eps ** -0.5` times, in transformers' numbers as much as in ours.
    values["rms_norm_eps"] = draw(st.sampled_from([1e-4, 1e-3, 1e-2]))
    heads, layers = draw(st.integers(1, 3)), values["num_hidden_layers"]
    # transformers' cache counts tokens in a layer with full attention.
    kinds = draw(st.lists(st.sampled_from(["linear_attention", "full_attention"]), min_size=layers, max_size=layers))
    kinds[draw(st.integers(0, layers - 1))] = "full_attention"
    interval = {"full_attention_interval": draw(st.integers(1, min(layers, 4)))}
    return (
        values
        | {"linear_num_key_heads": heads, "linear_num_value_heads": heads * draw(st.integers(1, 3))}
        | {"linear_key_head_dim": draw(st.sampled_from([4, 6])), "linear_value_head_dim": draw(st.integers(3, 8))}
        | draw(st.sampled_from([{"layer_types": kinds}, interval]))
        | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS, linear_conv_kernel_dim=st.integers(2, 5))
    )


def experts_beside_a_shared_one(draw: Draw) -> Values:
    experts = draw(st.integers(1, 5))
    return {
        "num_experts": experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
        "moe_intermediate_size": 12,
        "shared_expert_intermediate_size": draw(st.sampled_from([6, 10])),
    }


def qwen3_next(draw: Draw) -> Values:
    return (
        hybrid(draw, 2)
        | experts_beside_a_shared_one(draw)
        | maybe(
            draw,
            norm_topk_prob=BOTH,
            decoder_sparse_step=st.integers(1, 3),
            mlp_only_layers=st.lists(st.integers(0, 4), max_size=3),
        )
    )


def qwen3_5_text(draw: Draw) -> Values:
    return sections(draw, hybrid(draw, 4))


def qwen3_5_moe_text(draw: Draw) -> Values:
    values = sections(draw, hybrid(draw, 2))
    del values["intermediate_size"]
    return values | experts_beside_a_shared_one(draw) | maybe(draw, norm_topk_prob=BOTH)


def qwen3_5(draw: Draw) -> Values:
    return multimodal(draw, "qwen3_5_text", qwen3_5_text(draw), QWEN_VISION)


def qwen3_5_moe(draw: Draw) -> Values:
    return multimodal(draw, "qwen3_5_moe_text", qwen3_5_moe_text(draw), QWEN_VISION)


def qwen3_vl(draw: Draw) -> Values:
    text = sizes(draw)
    if draw(BOTH):
        text["num_key_value_heads"] = None
    text |= sections(draw, rope(draw, width(text))) | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS)
    return multimodal(draw, "qwen3_vl_text", text, {**QWEN_VISION, "deepstack_visual_indexes": [0]})


def qwen3_vl_moe(draw: Draw) -> Values:
    text = sizes(draw, head_dim=draw(BOTH)) | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS)
    if "head_dim" not in text:
        text |= maybe(draw, head_dim=st.none())
    experts = draw(st.integers(1, 5))
    text |= {"num_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts)), "moe_intermediate_size": 12}
    text |= sections(draw, rope(draw, width(text))) | maybe(
        draw,
        norm_topk_prob=BOTH,
        decoder_sparse_step=st.integers(1, 3),
        mlp_only_layers=st.lists(st.integers(0, 4), max_size=3),
        use_sliding_window=st.just(False),
        sliding_window=st.sampled_from([None, 5]),
    )
    return multimodal(draw, "qwen3_vl_moe_text", text, {**QWEN_VISION, "deepstack_visual_indexes": [0]})


def gemma(draw: Draw) -> Values:
    values = sizes(draw)
    activations = st.sampled_from(["gelu", "gelu_pytorch_tanh"])
    return values | rope(draw, width(values)) | maybe(draw, attention_bias=BOTH, hidden_act=activations)


def gemma2(draw: Draw) -> Values:
    values = sizes(draw)
    caps = st.sampled_from([None, 2.0, 30.0])
    return (
        values
        | rope(draw, width(values))
        | {"sliding_window": draw(st.sampled_from([2, 5, 4096]))}
        | maybe(
            draw,
            attention_bias=BOTH,
            hidden_activation=ACTIVATIONS,
            query_pre_attn_scalar=st.sampled_from([8, 144]),
            final_logit_softcapping=caps,
            attn_logit_softcapping=caps,
            layer_types=kinds_of_layers(values),
        )
    )


def gemma3_text(draw: Draw) -> Values:
    values = sizes(draw)
    values |= {"sliding_window": draw(st.sampled_from([2, 5, 4096])), "max_position_embeddings": draw(LENGTHS)}
    values |= maybe(
        draw,
        attention_bias=BOTH,
        hidden_activation=ACTIVATIONS,
        query_pre_attn_scalar=st.sampled_from([8, 168]),
        final_logit_softcapping=st.sampled_from([None, 2.0]),
        attn_logit_softcapping=st.sampled_from([None, 2.0]),
    )
    values |= draw(st.sampled_from([{}, {"sliding_window_pattern": 2}, {"sliding_window_pattern": 3}]))
    values |= maybe(draw, layer_types=kinds_of_layers(values))
    return values | rope_by_layer_type(draw, width(values), local=True)


def rope_by_layer_type(draw: Draw, dim: int, *, local: bool) -> Values:
    def described() -> Values:
        values = scaling(draw, dim, "default linear dynamic llama3 yarn longrope")
        # transformers looks for it beside the parameters of the layer types, where it cannot be.
        values.pop("truncate", None)
        return values

    if draw(BOTH):
        names = ("full_attention", "sliding_attention")
        return {"rope_parameters": {name: described() | {"rope_theta": draw(THETAS)} for name in names}}
    fields = maybe(draw, rope_scaling=st.just(described()))
    # transformers 5 forgets OLMo 3's `rope_theta` in the sliding layers; every release's is the default.
    return fields | (maybe(draw, rope_theta=THETAS, rope_local_base_freq=THETAS) if local else {})


def gemma3(draw: Draw) -> Values:
    text = gemma3_text(draw)
    tied = {"tie_word_embeddings": text["tie_word_embeddings"]} if "tie_word_embeddings" in text else {}
    return {"text_config": text, "vision_config": VISION, "mm_tokens_per_image": 4, **tied}


def gemma3n_text(draw: Draw) -> Values:
    values = sizes(draw)
    count = draw(st.integers(1, 6))
    values |= {"num_hidden_layers": count, "sliding_window": draw(st.sampled_from([2, 5, 4096]))}
    values |= {"max_position_embeddings": draw(LENGTHS)} | maybe(draw, layer_types=kinds_of_layers(values))
    kinds = values.get("layer_types") or ["sliding_attention"] * 4 + ["full_attention"] * 2
    # The others must have layers of every kind.
    own = max(kinds.index(kind) for kind in set(kinds[:count])) + 1
    # By default the tables are too large to draw; tokens that have no row are sounds and images.
    values |= {"hidden_size_per_layer_input": draw(st.sampled_from([6, 10]))}
    values |= {"vocab_size_per_layer_input": draw(st.sampled_from([30, 100]))}
    values |= {"num_kv_shared_layers": draw(st.integers(0, max(count - own, 0)))}
    inner = st.sampled_from([17, 40])
    streams = draw(st.integers(2, 4))
    return (
        values
        | {"intermediate_size": draw(st.one_of(inner, st.lists(inner, min_size=count, max_size=count)))}
        | {"altup_num_inputs": streams, "altup_active_idx": draw(st.integers(0, streams - 1)), "laurel_rank": 5}
        | maybe(
            draw,
            activation_sparsity_pattern=st.lists(st.sampled_from([0.0, 0.5, 0.95]), min_size=count, max_size=count),
            altup_correct_scale=BOTH,
            altup_coef_clip=st.just(0.1),
            attention_bias=BOTH,
            hidden_activation=ACTIVATIONS,
            final_logit_softcapping=st.sampled_from([2.0, 30.0]),
        )
        | rope_by_layer_type(draw, width(values), local=True)
    )


def gemma4_unified_text(draw: Draw) -> Values:
    values = sizes(draw)
    count, heads = draw(st.integers(1, 8)), values["num_attention_heads"]
    # Never left out: with weights like ours, heads of 512 make logits that rounding moves by more than the tolerance.
    values |= {"num_hidden_layers": count, "global_head_dim": draw(st.sampled_from([4, 8, 12]))}
    values |= maybe(draw, layer_types=kinds_of_layers(values))
    kinds = values.get("layer_types") or [
        "sliding_attention" if (n + 1) % 6 else "full_attention" for n in range(count)
    ]
    kinds = [*kinds[:-1], "full_attention"]
    # The others must have layers of every kind.
    shared = [n for n in range(count) if set(kinds[: count - n]) == set(kinds)]
    dims = {"full_attention": values["global_head_dim"], "sliding_attention": values["head_dim"]}
    values |= {"sliding_window": draw(st.sampled_from([2, 5, 4096])), "max_position_embeddings": draw(LENGTHS)}
    if draw(BOTH):
        values["rope_parameters"] = {
            kind: gemma4_rope(draw, dims[kind]) for kind in dims if kind in kinds or draw(BOTH)
        }
    return values | maybe(
        draw,
        attention_bias=BOTH,
        attention_k_eq_v=BOTH,
        num_global_key_value_heads=st.sampled_from([None, *(n for n in (1, 2, 3) if heads % n == 0)]),
        num_kv_shared_layers=st.sampled_from(shared),
        use_double_wide_mlp=BOTH,
        hidden_activation=ACTIVATIONS,
        final_logit_softcapping=st.sampled_from([None, 2.0, 30.0]),
        use_bidirectional_attention=st.sampled_from([None, "vision"]),
    )


def gemma4_rope(draw: Draw, dim: int) -> Values:
    described = {"rope_theta": draw(THETAS)}
    if draw(BOTH):
        share = {"partial_rotary_factor": st.sampled_from([0.0, 0.25, 0.4, 0.5, 1.0])}
        return described | {"rope_type": "proportional"} | maybe(draw, **share, factor=st.sampled_from([1.0, 4.5]))
    # Where heads differ in width, transformers cannot compute the others.
    described |= scaling(draw, dim, "default linear llama3 yarn")
    # transformers looks for it beside the parameters of the layer types, where it cannot be.
    described.pop("truncate", None)
    return described


def gemma4_text(draw: Draw) -> Values:
    values = gemma4_unified_text(draw)
    experts = draw(st.integers(1, 5))
    # By default the tables are too large to draw.
    values |= {"hidden_size_per_layer_input": draw(st.sampled_from([0, 6, 10])), "vocab_size_per_layer_input": 100}
    if not values["hidden_size_per_layer_input"]:
        # transformers slices inputs of layers that share keys and values, be there any or not.
        values.pop("num_kv_shared_layers", None)
    chosen = {"num_experts": experts, "top_k_experts": draw(st.integers(1, experts)), "moe_intermediate_size": 12}
    return values | draw(st.sampled_from([{}, chosen, {"enable_moe_block": True, **chosen}]))


def gemma4(draw: Draw) -> Values:
    return multimodal(draw, "gemma4_text", gemma4_text(draw), GEMMA4_VISION)


def gemma4_unified(draw: Draw) -> Values:
    return multimodal(draw, "gemma4_unified_text", gemma4_unified_text(draw), GEMMA4_UNIFIED_VISION)


def phi3(draw: Draw) -> Values:
    values = sizes(draw, head_dim=False)
    # Half of an even number of pairs, or all.
    values["hidden_size"] = values["num_attention_heads"] * draw(st.sampled_from([8, 16]))
    share = draw(st.sampled_from([1.0, 0.5, 0.75]))
    values |= rope(draw, int(width(values) * share), "default longrope")
    if share != 1.0:
        inside = values.get("rope_parameters")
        (values if inside is None else inside)["partial_rotary_factor"] = share
    extent = {"original_max_position_embeddings": st.sampled_from([8, 64])}
    return values | {"sliding_window": draw(WINDOWS)} | maybe(draw, hidden_act=ACTIVATIONS, **extent)


def olmo2(draw: Draw) -> Values:
    values = sizes(draw, head_dim=False)
    return values | rope(draw, width(values)) | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS)


def olmo3(draw: Draw) -> Values:
    values = sizes(draw, head_dim=False)
    return (
        values
        | {"sliding_window": draw(st.sampled_from([2, 5, 4096])), "max_position_embeddings": draw(LENGTHS)}
        | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS, layer_types=kinds_of_layers(values))
        | rope_by_layer_type(draw, width(values), local=False)
    )


def smollm3(draw: Draw) -> Values:
    values = sizes(draw, head_dim=False)
    count = values["num_hidden_layers"]
    values |= rope(draw, width(values)) | maybe(
        draw,
        attention_bias=BOTH,
        mlp_bias=BOTH,
        hidden_act=ACTIVATIONS,
        no_rope_layer_interval=st.integers(1, 3),
        no_rope_layers=st.lists(st.integers(0, 1), min_size=count, max_size=count),
    )
    if draw(BOTH):
        values |= {"use_sliding_window": True, "sliding_window": 4}
        values |= maybe(draw, layer_types=kinds_of_layers(values))
    return values


def granite(draw: Draw) -> Values:
    values = llama(draw)
    return values | maybe(
        draw,
        embedding_multiplier=st.sampled_from([12.0, 0.5]),
        logits_scaling=st.sampled_from([8.0, 0.5]),
        residual_multiplier=st.sampled_from([0.22, 1.5]),
        attention_multiplier=st.sampled_from([0.015625, 0.25]),
    )


def granitemoehybrid(draw: Draw) -> Values:
    values = sizes(draw, head_dim=False)
    values |= rope(draw, width(values))
    count, experts = values["num_hidden_layers"], draw(st.integers(0, 5))
    # transformers' cache counts tokens in a layer with attention.
    kinds = draw(st.lists(st.sampled_from(["mamba", "attention"]), min_size=count, max_size=count))
    kinds[draw(st.integers(0, count - 1))] = "attention"
    groups = draw(st.sampled_from([n for n in (1, 2, 3) if values["num_attention_heads"] % n == 0]))
    # transformers writes no infinite number that it reads again, and takes steps by themselves for as long as they are.
    return (
        values
        | {"layer_types": kinds, "num_local_experts": experts, "shared_intermediate_size": 19}
        | {"num_experts_per_tok": draw(st.integers(1, experts)) if experts else 0}
        | {"mamba_n_heads": values["num_attention_heads"], "mamba_n_groups": groups, "mamba_d_state": 7}
        | maybe(
            draw,
            position_embedding_type=st.sampled_from([None, "rope", "nope"]),
            attention_bias=BOTH,
            hidden_act=ACTIVATIONS,
            mamba_expand=st.integers(1, 3),
            mamba_d_conv=st.integers(2, 5),
            mamba_chunk_size=st.sampled_from([4, 16]),
            mamba_conv_bias=BOTH,
            mamba_proj_bias=BOTH,
            embedding_multiplier=st.sampled_from([12.0, 0.5]),
            logits_scaling=st.sampled_from([8.0, 0.5]),
            residual_multiplier=st.sampled_from([0.22, 1.5]),
            attention_multiplier=st.sampled_from([0.015625, 0.25]),
        )
    )


def nemotron_h(draw: Draw) -> Values:
    values = sizes(draw)
    # It has what other models call so by another name, or not at all.
    values = {name: value for name, value in values.items() if name not in ("num_hidden_layers", "rms_norm_eps")}
    # transformers' cache counts tokens in a layer with attention.
    kinds = draw(st.lists(st.sampled_from("M*-E"), min_size=1, max_size=5))
    kinds.insert(draw(st.integers(0, len(kinds))), "*")
    names = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    old = {"M": "mamba", "*": "attention"}
    values |= draw(
        st.sampled_from(
            [
                {"hybrid_override_pattern": "".join(kinds), "num_hidden_layers": len(kinds)},
                {"layers_block_type": [names[kind] for kind in kinds]},
                {"layers_block_type": [old.get(kind, names[kind]) for kind in kinds], "hybrid_override_pattern": "M"},
            ]
        )
    )
    groups, mamba_groups = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    experts = groups * draw(st.integers(2, 3))
    used = draw(st.integers(1, groups))
    most = used * experts // groups
    return (
        values
        | {"n_groups": mamba_groups, "mamba_num_heads": mamba_groups * draw(st.integers(1, 2)), "mamba_head_dim": 6}
        | {"ssm_state_size": 7, "n_routed_experts": experts, "n_group": groups, "topk_group": used}
        | {"num_experts_per_tok": draw(st.integers(1, most)), "moe_intermediate_size": 11}
        | {"moe_shared_expert_intermediate_size": 13}
        | maybe(
            draw,
            layer_norm_epsilon=st.sampled_from([1e-6, 1e-2]),
            moe_latent_size=st.sampled_from([None, 9]),
            mlp_hidden_act=ACTIVATIONS,
            mamba_hidden_act=ACTIVATIONS,
            conv_kernel=st.integers(2, 5),
            chunk_size=st.sampled_from([4, 16]),
            # transformers takes single steps whatever their length: those of whole sequences would be longer.
            time_step_min=st.just(1e-9),
            time_step_limit=st.just([0.1, 0.2]),
            use_bias=BOTH,
            use_conv_bias=BOTH,
            mlp_bias=BOTH,
            attention_bias=BOTH,
            mamba_proj_bias=BOTH,
            residual_in_fp32=BOTH,
            sliding_window=WINDOWS,
            norm_topk_prob=BOTH,
            routed_scaling_factor=st.sampled_from([1.0, 2.5]),
            expand=st.integers(1, 3),
            n_shared_experts=st.integers(0, 2),
        )
    )


def glm4(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    if values["num_attention_heads"] % 2 == 0 and draw(BOTH):
        del values["num_key_value_heads"]
    values |= partial(draw, values.get("head_dim", 128), 0.5)
    return values | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS)


def glm4_moe(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    values |= partial(draw, width(values), 0.5) | grouped(draw, 2)
    values |= {"moe_intermediate_size": 11} | maybe(draw, n_shared_experts=st.integers(1, 2))
    if values["n_group"] == 1:
        values = {name: value for name, value in values.items() if name not in ("n_group", "topk_group")}
    return values | maybe(
        draw,
        attention_bias=BOTH,
        hidden_act=ACTIVATIONS,
        use_qk_norm=BOTH,
        norm_topk_prob=BOTH,
        first_k_dense_replace=st.integers(0, 6),
        routed_scaling_factor=st.sampled_from([1.0, 2.5, 16.0]),
        num_nextn_predict_layers=st.integers(0, 1),
    )


def gpt_oss(draw: Draw) -> Values:
    values = sizes(draw)
    experts = draw(st.integers(1, 5))
    return (
        values
        | rope(draw, width(values))
        | {"num_local_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts))}
        | maybe(
            draw,
            attention_bias=BOTH,
            sliding_window=st.sampled_from([2, 5]),
            layer_types=kinds_of_layers(values),
            swiglu_alpha=st.sampled_from([1.0, 2.5]),
            swiglu_limit=st.sampled_from([0.25, 7.0]),
        )
    )


def latent(draw: Draw) -> Values:
    """What DeepSeek V2 and V3 share."""
    values = sizes(draw, kv_heads=False, head_dim=False)
    rope_dim = draw(st.sampled_from([4, 6]))
    values |= {
        "q_lora_rank": draw(st.sampled_from([None, 9])),
        "kv_lora_rank": draw(st.sampled_from([8, 10])),
        "qk_rope_head_dim": rope_dim,
        "qk_nope_head_dim": draw(st.sampled_from([6, 8])),
        "v_head_dim": draw(st.sampled_from([3, 6])),
        "moe_intermediate_size": 11,
        "n_shared_experts": draw(st.integers(1, 2)),
    }
    fields = {"first_k_dense_replace": st.integers(0, 6), "routed_scaling_factor": st.sampled_from([1.0, 2.5, 16.0])}
    return values | rope(draw, rope_dim) | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS, **fields)


def grouped(draw: Draw, smallest: int) -> Values:
    """Experts in groups; never more of them chosen than the groups chosen have."""
    groups, size = draw(st.integers(1, 4)), draw(st.integers(smallest, 3))
    chosen = draw(st.integers(1, groups))
    return {
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": chosen,
        "num_experts_per_tok": draw(st.integers(1, chosen * size)),
    }


def deepseek_v2(draw: Draw) -> Values:
    values = latent(draw) | maybe(draw, mlp_bias=BOTH, norm_topk_prob=BOTH)
    if draw(BOTH):
        return values | grouped(draw, 1) | {"topk_method": "group_limited_greedy"}
    experts = draw(st.integers(1, 5))
    return values | {"n_routed_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts))}


def deepseek_v3(draw: Draw) -> Values:
    return latent(draw) | grouped(draw, 2) | maybe(draw, norm_topk_prob=BOTH, rope_interleave=BOTH)


def sparse(draw: Draw) -> Values:
    """What DeepSeek V3.2 and GLM 5 share."""
    # Where heads have no product that is positive, scores are equal, and which key is selected is anybody's choice.
    values = latent(draw) | grouped(draw, 2) | {"index_n_heads": 24, "q_lora_rank": 9}
    values |= {"index_head_dim": values["qk_rope_head_dim"] + draw(st.sampled_from([0, 2, 4]))}
    values |= {"index_topk": draw(st.sampled_from([1, 3, 7, 19, 20, 64]))}
    count = values["num_hidden_layers"]
    kinds = st.lists(st.sampled_from(["dense", "sparse"]), min_size=count, max_size=count)
    return values | maybe(draw, norm_topk_prob=BOTH, mlp_layer_types=kinds, mlp_bias=BOTH)


def deepseek_v32(draw: Draw) -> Values:
    return sparse(draw)


def glm_moe_dsa(draw: Draw) -> Values:
    values = sparse(draw)
    kinds = ["full", *draw(st.lists(st.sampled_from(["full", "shared"]), min_size=4, max_size=4))]
    return values | draw(
        st.sampled_from(
            [
                {},
                {"indexer_types": kinds},
                {"index_topk_pattern": kinds},
                {"index_topk_pattern": "".join(kind[0].upper() for kind in kinds)},
                {"index_topk_freq": draw(st.integers(1, 4))},
                {"index_topk_freq": draw(st.integers(1, 4)), "index_skip_topk_offset": draw(st.integers(1, 3))},
            ]
        )
    )


def deepseek_v4(draw: Draw) -> Values:
    values = sizes(draw, kv_heads=False)
    del values["intermediate_size"]
    heads, count, experts = values["num_attention_heads"], values["num_hidden_layers"], draw(st.integers(1, 5))
    rotated = draw(st.sampled_from([2, 4]))
    groups = draw(st.sampled_from([size for size in (1, 2, 3) if heads % size == 0]))
    # Of which embedding keys of windows are rotated by would depend on the windows there are: refused.
    values |= rope(draw, rotated, "default linear llama3 yarn")
    if draw(BOTH):
        values["qk_rope_head_dim"] = rotated
    else:
        values |= {"partial_rotary_factor": rotated / values["head_dim"]}
    if draw(BOTH):
        described = {name: scaling(draw, rotated, "default linear llama3 yarn") for name in ("main", "compress")}
        for found in described.values():
            found.update({"rope_theta": draw(THETAS), "partial_rotary_factor": rotated / values["head_dim"]})
        values = {**values, "rope_parameters": described, "rope_scaling": None}
    kinds = ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"]
    rates = {kinds[1]: draw(st.integers(2, 5)), kinds[2]: draw(st.integers(3, 9))}
    ratios = st.lists(st.sampled_from([0, 4, 128]), min_size=count, max_size=count + 1)
    return (
        values
        | {"n_routed_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts))}
        | {"num_key_value_heads": 1, "moe_intermediate_size": 12, "q_lora_rank": 9, "o_lora_rank": 5}
        | {"o_groups": groups, "sliding_window": draw(st.sampled_from([2, 5, 64]))}
        # As in DeepSeek V3.2, many heads keep scores from being equal.
        | {"index_n_heads": 24, "index_head_dim": rotated + draw(st.sampled_from([0, 2]))}
        | {"index_topk": draw(st.sampled_from([1, 2, 3, 64])), "hc_mult": draw(st.integers(1, 4))}
        | draw(st.sampled_from([{}, {"compress_rates": rates}, {"compress_rate_csa": 3, "compress_rate_hca": 6}]))
        | draw(st.sampled_from([{}, {"compress_ratios": draw(ratios)}, {"layer_types": _drawn(draw, kinds, count)}]))
        | draw(st.sampled_from([{}, {"num_hash_layers": draw(st.integers(0, 5))}]))
        | maybe(
            draw,
            mlp_layer_types=st.just(_drawn(draw, ["hash_moe", "moe"], count)),
            mlp_bias=BOTH,
            hidden_act=ACTIVATIONS,
            scoring_func=st.sampled_from(["sqrtsoftplus", "sigmoid"]),
            norm_topk_prob=BOTH,
            routed_scaling_factor=st.sampled_from([1.0, 2.5]),
            swiglu_limit=st.sampled_from([0.3, 7.0]),
            hc_sinkhorn_iters=st.integers(1, 4),
            hc_eps=st.sampled_from([1e-6, 1e-3]),
            compress_rope_theta=THETAS,
        )
    )


def _drawn(draw: Draw, kinds: list[str], count: int) -> list[str]:
    return draw(st.lists(st.sampled_from(kinds), min_size=count, max_size=count))


def kimi_k25(draw: Draw) -> Values:
    text = deepseek_v3(draw)
    return multimodal(draw, draw(st.sampled_from(["kimi_k2", "deepseek_v3"])), text, KIMI_VISION) | {
        "projection_hidden_size": 16
    }


def cohere2(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    if "rms_norm_eps" in values:
        values["layer_norm_eps"] = values.pop("rms_norm_eps")
    return (
        values
        | rope(draw, width(values))
        | {"sliding_window": draw(st.sampled_from([2, 5, 4096]))}
        | draw(st.sampled_from([{}, {"sliding_window_pattern": 2}, {"sliding_window_pattern": 3}]))
        | maybe(
            draw,
            attention_bias=BOTH,
            hidden_act=ACTIVATIONS,
            logit_scale=st.sampled_from([0.25, 2.0]),
            layer_types=kinds_of_layers(values),
        )
    )


def exaone4(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    values |= rope(draw, width(values)) | {"sliding_window": draw(WINDOWS)} | maybe(draw, hidden_act=ACTIVATIONS)
    if values["sliding_window"] is None:
        # Left out, transformers divides by the pattern, zero.
        return values | {"layer_types": ["full_attention"] * values["num_hidden_layers"]}
    if draw(BOTH):
        return values | maybe(draw, sliding_window_pattern=st.sampled_from([1, 2, 4]))
    return values | {"layer_types": draw(kinds_of_layers(values))} | maybe(draw, sliding_window_pattern=st.just("LLLG"))


def seed_oss(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    if "head_dim" not in values:
        values["head_dim"] = None
    values |= rope(draw, width(values))
    return values | maybe(draw, attention_bias=BOTH, attention_out_bias=BOTH, mlp_bias=BOTH, hidden_act=ACTIVATIONS)


def hunyuan_v1_dense(draw: Draw) -> Values:
    # Without the width of a head, transformers cannot be built.
    values = sizes(draw)
    values |= rope(draw, width(values)) | maybe(draw, attention_bias=BOTH, hidden_act=ACTIVATIONS)
    for found in descriptions(values):
        if "dynamic" in found.values():
            found.update(draw(st.sampled_from([{}, {"alpha": 0.0}, {"alpha": 2.5}, {"alpha": 1e3, "mscale": 1.0}])))
    return values


def arcee(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    activations = st.sampled_from(["relu2", "silu", "gelu"])
    return values | rope(draw, width(values)) | maybe(draw, attention_bias=BOTH, mlp_bias=BOTH, hidden_act=activations)


def apertus(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    activations = st.sampled_from(["xielu", "relu2", "gelu"])
    return values | rope(draw, width(values)) | maybe(draw, attention_bias=BOTH, hidden_act=activations)


def few_experts(draw: Draw, count: str = "num_experts", selected: str = "num_experts_per_tok") -> Values:
    experts = draw(st.integers(1, 5))
    return {count: experts, selected: draw(st.integers(1, experts))}


def olmoe(draw: Draw) -> Values:
    values = sizes(draw, head_dim=False)
    values |= rope(draw, width(values)) | few_experts(draw)
    return values | maybe(
        draw,
        attention_bias=BOTH,
        hidden_act=ACTIVATIONS,
        norm_topk_prob=BOTH,
        clip_qkv=st.sampled_from([None, 0.5, 8.0]),
    )


def qwen2_moe(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    sliding = draw(BOTH)
    values |= {"use_sliding_window": sliding, "sliding_window": 3 if sliding else draw(WINDOWS)}
    if sliding:
        values |= maybe(draw, layer_types=kinds_of_layers(values))
    return (
        values
        | rope(draw, width(values))
        | experts_beside_a_shared_one(draw)
        | maybe(
            draw,
            qkv_bias=BOTH,
            hidden_act=ACTIVATIONS,
            norm_topk_prob=BOTH,
            max_window_layers=st.integers(0, 5),
            decoder_sparse_step=st.integers(1, 3),
            mlp_only_layers=st.lists(st.integers(0, 4), max_size=3),
        )
    )


def minimax_m2(draw: Draw) -> Values:
    values = sizes(draw) | few_experts(draw, "num_local_experts") | maybe(draw, hidden_act=ACTIVATIONS)
    if draw(BOTH):
        return values | partial(draw, values["head_dim"], 1.0)
    rotated = draw(st.sampled_from([4, values["head_dim"]]))
    return values | rope(draw, rotated) | {"rotary_dim": rotated}


def ernie4_5(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    if "head_dim" not in values:
        values["head_dim"] = None
    return values | rope(draw, width(values)) | maybe(draw, use_bias=BOTH, hidden_act=ACTIVATIONS)


def ernie4_5_moe(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH))
    values |= rope(draw, width(values)) | few_experts(draw, "moe_num_experts", "moe_k") | {"moe_intermediate_size": 12}
    return values | maybe(
        draw,
        use_bias=BOTH,
        hidden_act=ACTIVATIONS,
        moe_num_shared_experts=st.integers(0, 2),
        moe_layer_start_index=st.integers(0, 3),
        moe_layer_end_index=st.integers(-1, 4),
        moe_layer_interval=st.integers(1, 3),
        moe_norm_min=st.sampled_from([1e-12, 0.7]),
    )


def phimoe(draw: Draw) -> Values:
    values = sizes(draw, head_dim=draw(BOTH)) | {"sliding_window": draw(WINDOWS)}
    values |= {"num_local_experts": draw(st.integers(2, 5)), "num_experts_per_tok": 2}
    values |= rope(draw, width(values), "default longrope")
    for found in descriptions(values):
        if "longrope" in found.values():
            # Beyond the original length, transformers forgets the long factors.
            found |= {"original_max_position_embeddings": 64, "short_mscale": 1.2, "long_mscale": 0.7}
    return values | maybe(
        draw,
        attention_bias=BOTH,
        lm_head_bias=BOTH,
        hidden_act=ACTIVATIONS,
        router_jitter_noise=st.sampled_from([0.0, 0.01, 0.3]),
    )


KINDS = (
    llama,
    llama4_text,
    mistral,
    ministral3,
    mistral3,
    mixtral,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_next,
    qwen3_5_text,
    qwen3_5_moe_text,
    qwen3_5,
    qwen3_5_moe,
    qwen3_vl,
    qwen3_vl_moe,
    gemma,
    gemma2,
    gemma3_text,
    gemma3,
    gemma3n_text,
    gemma4_text,
    gemma4_unified_text,
    gemma4,
    gemma4_unified,
    phi3,
    olmo2,
    olmo3,
    smollm3,
    granite,
    granitemoehybrid,
    nemotron_h,
    glm4,
    glm4_moe,
    gpt_oss,
    deepseek_v2,
    deepseek_v3,
    deepseek_v32,
    glm_moe_dsa,
    deepseek_v4,
    kimi_k25,
    cohere2,
    exaone4,
    seed_oss,
    hunyuan_v1_dense,
    arcee,
    apertus,
    olmoe,
    qwen2_moe,
    minimax_m2,
    ernie4_5,
    ernie4_5_moe,
    phimoe,
)


def whole_numbers(values: Any) -> Any:
    """The same with integers in place of floats where that is the same number, as other programs write JSON."""
    if isinstance(values, Mapping):
        return {name: whole_numbers(value) for name, value in values.items()}
    if isinstance(values, list):
        return [whole_numbers(value) for value in values]
    return int(values) if isinstance(values, float) and values.is_integer() else values


def build(kind: str, values: Values) -> Any:
    """transformers' model with weights that make every part of it count."""
    config = transformers.AutoConfig.for_model(kind, **json.loads(json.dumps(values)))
    whole = "text_config" in values
    auto = transformers.AutoModelForImageTextToText if whole else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="eager", experts_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(0)
    stored = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for name, tensor in stored:
            if "norm" in name:
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.5 - 0.25)
            elif name.endswith(("bias", "sinks")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif name.endswith(("layer_scalar", "router.scale", "per_expert_scale", "alpha_p", "alpha_n", ".beta")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.endswith("tid2eid"):
                count = model.config.n_routed_experts
                drawn = torch.stack([torch.randperm(count, generator=generator) for _ in range(len(tensor))])
                tensor.copy_(drawn[:, : tensor.shape[1]])
            elif name.endswith((".fn", "hc_fn")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1.3 / tensor.shape[-1] ** 0.5)
            elif name.endswith((".base", "hc_base")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
            elif name.endswith(("_hc.scale", "hc_scale")):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif name.endswith(".eps"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * -0.5)
            elif name.endswith(("weight", "_proj")):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 1.3 / tensor.shape[-1] ** 0.5)
    return model


def reference(model: Any, tokens: np.ndarray, way: str) -> np.ndarray:
    """transformers' logits of whole sequences, or of their tokens one by one."""
    with torch.no_grad():
        inputs = torch.from_numpy(tokens).long()
        if way == "whole":
            return np.asarray(model(input_ids=inputs, use_cache=False).logits)
        steps, cache = [], None
        for number in range(tokens.shape[1]):
            step = model(input_ids=inputs[:, number : number + 1], cache=cache, use_cache=True)
            steps.append(step.logits)
            cache = step.cache
    return np.asarray(torch.cat(steps, dim=1))


def save_kimi(model: Any, folder: str) -> None:
    """Saves the text model of a Kimi K2.5 as the hub has it; transformers takes some of its names for the tower's."""
    text = transformers.DeepseekV3ForCausalLM(model.config.text_config)
    text.model, text.lm_head = model.model.language_model, model.lm_head
    text.save_pretrained(folder)
    tensors = load_file(Path(folder) / "model.safetensors")
    save_file(
        {f"language_model.{name}": tensor for name, tensor in tensors.items()}, Path(folder) / "model.safetensors"
    )
    model.config.save_pretrained(folder)


@contextlib.contextmanager
def saved(model: Any, kind: str, values: Values, form: str) -> Iterator[Path]:
    """A folder with the model, and with `config.json` as transformers saved it or as it was drawn."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "kimi_k25":
            save_kimi(model, folder)
        else:
            model.save_pretrained(folder)
        if form != "as saved":
            drawn = {"model_type": kind, **(whole_numbers(values) if form == "whole numbers" else values)}
            (Path(folder) / "config.json").write_text(json.dumps(drawn))
        yield Path(folder)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", ["whole", "token by token"])
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="LAZYLOAD_EXAMPLES" not in os.environ,
    database=None,
    # An example takes seconds; making it smaller would take minutes.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_logits_are_those_of_transformers(way: str, kind: Callable[[Draw], Values], data: st.DataObject) -> None:
    # The first example is the simplest of each strategy, whichever it is: nothing that is drawn.
    assume(data.draw(st.booleans()))
    values = kind(data.draw)
    form = data.draw(st.sampled_from(["as drawn", "as saved", "whole numbers"]))
    note(f"{kind.__name__} {form}: {json.dumps(values)}")
    text = values.get("text_config", values)
    tokens = np.random.default_rng(1).integers(3, text["vocab_size"], (2, LENGTH)).astype(np.int32)
    model = build(kind.__name__, values)
    expected = reference(model, tokens, way)
    mesh = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    with saved(model, kind.__name__, values, form) as folder, jax.default_matmul_precision("highest"):
        loaded = lazyload.from_pretrained(folder, mesh=mesh, dtype="float32", cache_dir=folder / "cache")
        if way == "whole":
            found = run(loaded, jnp.asarray(tokens))[0]
        else:
            found = decode_scanned(loaded, jnp.asarray(tokens), cache_size=LENGTH)
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [kind.__name__ for kind in KINDS])
def test_a_missing_field_means_what_transformers_takes_it_for(kind: str) -> None:
    values = config_of(kind)
    text = values.get("text_config")
    if text is None:
        assert missing(kind, values, read) <= NEEDED
        return
    # What the whole file says of it counts.
    text.pop("tie_word_embeddings", None)
    assert not missing(kind, values, read)
    own = text["model_type"].replace("kimi_k2", "deepseek_v3")
    assert missing(own, text, lambda changed: read({**values, "text_config": changed})) <= NEEDED


def missing(kind: str, values: Values, read: Callable[[Values], Any]) -> set[str]:
    """Takes fields away that transformers has a default for, one by one; those that we cannot do without."""
    needed = set()
    for field in dataclasses.fields(type(transformers.AutoConfig.for_model(kind))):
        if field.default is dataclasses.MISSING or field.default is None:
            continue
        found = read({name: value for name, value in values.items() if name != field.name})
        if f"lacks the field {field.name!r}" in str(found):
            needed.add(field.name)
        else:
            assert found == read({**values, field.name: field.default}), field.name
    return needed


def read(values: Values) -> Any:
    """The decoder that a `config.json` describes, or what is wrong with it: a default need not fit the other fields."""
    try:
        return families.find(values).config(values)
    except ConfigError as error:
        return str(error)


NEEDED = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_k",
    "moe_num_experts",
    "moe_intermediate_size",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
}


def config_of(kind: str) -> Values:
    if kind in ("qwen3_5_moe_text", "gemma4_unified_text"):
        return config_of(kind.removesuffix("_text"))["text_config"]
    name = {"llama": "llama3", "gemma4": "gemma4_e2b", "gemma4_text": "gemma4_text_e2b"}.get(kind, kind)
    return json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text())["config"]
