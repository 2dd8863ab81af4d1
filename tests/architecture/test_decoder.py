"""What layouts learn of a decoder, and what a decoder refuses to be."""

from dataclasses import replace
from typing import Any

import pytest
from support.decoders import ATTENTION, CONFIGS, DENSE, EXPERTS, INDEXER, LATENT, MAMBA, ROPE, config, layer

from lazyload.architecture import (
    MLP,
    AltUp,
    AltUpStreams,
    Attention,
    DecoderConfig,
    Experts,
    GatedDeltaNet,
    LatentAttention,
    Laurel,
    LayerNorm,
    Norm,
    PerLayerEmbedding,
    PerLayerInput,
    Rope,
)
from lazyload.errors import ConfigError, LayoutError
from lazyload.formats.nnx import layout
from lazyload.layouts.conversion import axes_of
from lazyload.layouts.layout import Layout
from lazyload.layouts.unroll import unroll_tree


def test_layers_that_have_a_role_in_the_same_sizes_are_a_group() -> None:
    wide = replace(ATTENTION, num_kv_heads=4, head_dim=16)
    mixed = config(layer(), layer(wide), layer(feed_forward=EXPERTS), layer(replace(ATTENTION, num_kv_heads=4)))
    assert [group.layers for group in mixed.groups("attn.q")] == [(0, 2, 3), (1,)]
    assert [group.sizes["head_dim"] for group in mixed.groups("attn.q")] == [8, 16]
    assert [group.layers for group in mixed.groups("attn.k")] == [(0, 2), (1,), (3,)]
    assert [group.layers for group in mixed.groups("attn_norm")] == [(0, 1, 2, 3)]
    assert [group.layers for group in mixed.groups("mlp.in")] == [(0, 1, 3)]
    assert [group.layers for group in mixed.groups("router")] == [(2,)]
    assert [group.layers for group in mixed.groups("embed")] == [()]
    assert mixed.groups("attn.sinks") == ()


def test_arrays_have_the_sizes_of_their_layers() -> None:
    mixed = config(layer(), layer(replace(ATTENTION, num_kv_heads=4, head_dim=16)))
    shapes = {path: shape for path, (shape, _) in axes_of(unroll_tree(layout(mixed), mixed)).items()}
    assert shapes["layers.0.attn.k_proj.kernel"] == (32, 2, 8)
    assert shapes["layers.1.attn.k_proj.kernel"] == (32, 4, 16)
    stacked = Layout({"q": "attn.q : embed layer head head_dim"})
    with pytest.raises(LayoutError, match="head_dim"):
        unroll_tree(stacked, mixed)


def test_a_layer_that_shares_keys_and_values_has_no_roles_and_no_cache_for_them() -> None:
    gemma4 = CONFIGS["gemma4"]
    assert [group.layers for group in gemma4.groups("attn.k")] == [(0,), (1,)]
    assert [group.layers for group in gemma4.groups("attn.v")] == [(0,)]
    assert [group.layers for group in gemma4.groups("attn.q")] == [(0, 2), (1, 3)]
    assert [bool(layer.mixer.cache) for layer in gemma4.layers] == [True, True, False, False]
    assert [gemma4.kv_layer(number) for number in range(4)] == [0, 1, 0, 1]
    assert gemma4.shared_kv_layers == {0, 1}


def test_experts_may_stand_beside_an_mlp() -> None:
    gemma4 = CONFIGS["gemma4"]
    assert (gemma4.layers_with(MLP), gemma4.layers_with(Experts)) == ((0, 1, 2, 3), (0,))
    assert [group.layers for group in gemma4.groups("post_dense_norm")] == [(0,)]
    assert [group.sizes["mlp"] for group in gemma4.groups("mlp.in")] == [48, 96]


def test_blocks_are_found_by_their_class() -> None:
    gpt_oss = CONFIGS["gpt_oss"]
    assert gpt_oss.layers_with(Experts) == (1,)
    assert gpt_oss.first(Experts) is gpt_oss.layers[1].feed_forward
    assert gpt_oss.first(LatentAttention) is None
    assert (CONFIGS["qwen3_next"].num_heads, CONFIGS["qwen3_next"].head_dim) == (4, 8)


DELTA: dict[str, Any] = {"num_key_heads": 2, "num_value_heads": 4, "key_dim": 8, "value_dim": 6, "conv_width": 4}
SHARING = layer(replace(ATTENTION, kv_layer=0))


@pytest.mark.parametrize(
    ("value", "changes", "complaint"),
    [
        (ATTENTION, {"num_kv_heads": 3}, "Attention: num_heads = 4 is no multiple of num_kv_heads = 3"),
        (ATTENTION, {"num_heads": 0}, "Attention: num_heads = 0 must be a positive whole number"),
        (ATTENTION, {"head_dim": 8.0}, "Attention: head_dim = 8.0 must be a positive whole number"),
        (ATTENTION, {"head_dim": 4}, "Attention: rope rotates 8 of 4 dimensions"),
        (
            ATTENTION,
            {"qk_norm": "heads"},
            "Attention: qk_norm = 'heads' is not known; there are head, full, bare, None",
        ),
        (ATTENTION, {"window": 0}, "Attention: window = 0"),
        (ATTENTION, {"qkv_clip": 0.0}, "Attention: qkv_clip = 0.0 must be positive"),
        (
            replace(ATTENTION, rope=replace(ROPE, interleaved=True)),
            {"norm_after_rope": True},
            "Attention: norm_after_rope needs a rope that is not interleaved",
        ),
        (ATTENTION, {"chunk": 0}, "Attention: chunk = 0"),
        (ATTENTION, {"softcap": -1.0}, "Attention: softcap = -1.0 must be positive"),
        (
            DENSE,
            {"activation": "swish"},
            "MLP: activation = 'swish' is not known; there are silu, gelu, gelu_tanh, relu",
        ),
        (DENSE, {"activation": "xielu"}, "MLP: activation = 'xielu' is not known"),
        (EXPERTS, {"activation": "xielu"}, "Experts: activation = 'xielu' is not known"),
        (DENSE, {"mlp_dim": True}, "MLP: mlp_dim = True must be a positive whole number"),
        (EXPERTS, {"num_selected": 9}, "Experts: num_selected = 9, but a token can use 8"),
        (EXPERTS, {"num_groups": 3}, "Experts: num_groups = 3 does not fit num_experts = 8"),
        (EXPERTS, {"scores": "tanh"}, "Experts: scores = 'tanh' is not known"),
        (EXPERTS, {"scores": "sparsemixer", "num_selected": 3}, "Experts: sparsemixer selects two"),
        (EXPERTS, {"shared_gate": True}, "Experts: there is no shared expert"),
        (LATENT, {"rope": ROPE}, "LatentAttention: rope rotates 8 of 4 dimensions"),
        (LATENT, {"q_rank": 0}, "LatentAttention: q_rank = 0"),
        (LATENT, {"q_rank": None, "indexer": INDEXER}, "LatentAttention: an indexer works on the compressed query"),
        (LATENT, {"indexer": INDEXER, "shares_selection": True}, "LatentAttention: an indexer of its own, and"),
        (INDEXER, {"head_dim": 2}, "Indexer: rope rotates 4 of 2 dimensions"),
        (INDEXER, {"num_selected": 0}, "Indexer: num_selected = 0"),
        (GatedDeltaNet(**DELTA), {"num_value_heads": 3}, "GatedDeltaNet: num_value_heads = 3 is no multiple"),
        (GatedDeltaNet(**DELTA), {"conv_width": 1}, "GatedDeltaNet: conv_width = 1"),
        (MAMBA, {"num_groups": 3}, "Mamba2: num_heads = 4 is no multiple of num_groups = 3"),
        (MAMBA, {"conv_width": 1}, "Mamba2: conv_width = 1"),
        (MAMBA, {"least_step": 2.0, "longest_step": 1.0}, "Mamba2: least_step = 2.0 and longest_step = 1.0"),
        (ROPE, {"dim": 7}, "Rope: dim = 7 must be even"),
        (ROPE, {"kind": "ntk"}, "Rope: kind = 'ntk' is not known"),
        (ROPE, {"theta": 0.0}, "Rope: theta = 0.0 must be positive"),
        (ROPE, {"long_attention_factor": 1.2}, "Rope: long_attention_factor is for longrope"),
        (ROPE, {"kind": "yarn"}, "Rope: kind 'yarn' needs original_max_position"),
        (
            Rope(theta=1e4, dim=4, kind="longrope", original_max_position=8, short_factor=(1, 1), long_factor=(1, 1)),
            {"long_factor": (1,)},
            "Rope: long_factor has 1 values for 2 rotated pairs",
        ),
        (ROPE, {"kind": "proportional", "turning_pairs": 5}, "Rope: turning_pairs = 5 of 4 pairs"),
        (Norm(), {"eps": 0.0}, "Norm: eps = 0.0 must be positive"),
        (LayerNorm(), {"eps": -1.0}, "LayerNorm: eps = -1.0 must be positive"),
        (layer(experts=EXPERTS), {"parallel": True}, "Layer: where blocks are parallel"),
        (layer(), {"mixer": None, "feed_forward": None}, "Layer: there is neither mixer nor feed-forward"),
        (layer(experts=EXPERTS), {"feed_forward": None}, "Layer: there are experts beside no feed-forward"),
        (MLP(mlp_dim=8), {"sparsity": 1.0}, "MLP: sparsity = 1.0 must be at least 0, and less than 1"),
        (MLP(mlp_dim=8, gated=False), {"sparsity": 0.5}, "MLP: there are no gates"),
        (EXPERTS, {"latent_dim": 0}, "Experts: latent_dim = 0"),
        (EXPERTS, {"latent_bias": True}, "Experts: there are no projections around the experts"),
        (EXPERTS, {"gated": False, "bias": True}, "Experts: experts without gates have no biases"),
        (Laurel(rank=5), {"rank": 0}, "Laurel: rank = 0"),
        (AltUp(num_streams=3), {"active": 3}, "AltUp: active = 3 is none of 3 streams"),
        (AltUpStreams(num_streams=3, embed_dim=8), {"num_streams": 1}, "AltUpStreams: one stream"),
        (CONFIGS["gemma3n"], {"streams": None}, "DecoderConfig: streams = None does not fit"),
        (CONFIGS["gemma3n"], {"streams": AltUpStreams(num_streams=3, embed_dim=8)}, "DecoderConfig: streams = "),
        (PerLayerInput(dim=6), {"dim": 0}, "PerLayerInput: dim = 0"),
        (layer(feed_forward=EXPERTS), {"experts": EXPERTS}, "Layer: there are experts beside experts"),
        (CONFIGS["plain"], {"layers": (SHARING,)}, "DecoderConfig: layer 0 attends to the keys and values of layer 0"),
        (
            CONFIGS["plain"],
            {"layers": (layer(), SHARING, layer(replace(ATTENTION, kv_layer=1)))},
            "DecoderConfig: layer 2",
        ),
        (CONFIGS["plain"], {"layers": (layer(replace(ATTENTION, num_kv_heads=4)), SHARING)}, "DecoderConfig: layer 1"),
        (CONFIGS["plain"], {"layers": (layer(GatedDeltaNet(**DELTA)), SHARING)}, "DecoderConfig: layer 1"),
        (
            CONFIGS["plain"],
            {"layers": (layer(LATENT), layer(replace(LATENT, shares_selection=True)))},
            "DecoderConfig: layer 1 attends to what an earlier layer's indexer selects, and there is none",
        ),
        (CONFIGS["plain"], {"layers": (layer(per_layer_input=PerLayerInput(dim=6)),)}, "DecoderConfig: per_layer_emb"),
        (
            CONFIGS["gemma4"],
            {"per_layer_embedding": PerLayerEmbedding(vocab_size=62, num_layers=3, dim=6)},
            "DecoderConfig: per_layer_embedding = ",
        ),
        (CONFIGS["plain"], {"vocab_size": 0}, "DecoderConfig: vocab_size = 0"),
        (CONFIGS["plain"], {"layers": ()}, "DecoderConfig: there are no layers"),
        (CONFIGS["plain"], {"final_softcap": 0.0}, "DecoderConfig: final_softcap = 0.0 must be positive"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_written(value: Any, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        replace(value, **changes)
    assert str(error.value).startswith(complaint)


def test_values_compare_and_hash_by_what_they_say() -> None:
    same = replace(ATTENTION)
    assert same == ATTENTION
    assert hash(same) == hash(ATTENTION)
    assert replace(ATTENTION, window=5) != ATTENTION
    assert isinstance(CONFIGS["plain"], DecoderConfig)
    assert Attention(num_heads=1, num_kv_heads=1, head_dim=4).scale == 0.5
