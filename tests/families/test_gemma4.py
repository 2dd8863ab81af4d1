"""What the fields of a Gemma 4 mean that other families do not have."""

import json
from typing import Any

import pytest
from support import checkpoints

from lazyload import families
from lazyload.architecture import DecoderConfig


def read(name: str, **changes: Any) -> DecoderConfig:
    """A golden `config.json`, with some fields of its text model changed, or left out where the change is `...`."""
    values = json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text())["config"]
    text = values.get("text_config", values)
    text |= changes
    for field in [field for field, value in changes.items() if value is ...]:
        del text[field]
    config: DecoderConfig = families.find(values).config(values)
    return config


@pytest.mark.parametrize("name", ["gemma4_e2b", "gemma4_a4b", "gemma4_a4b_12", "gemma4_text_31b_12"])
def test_sizes_by_layer_are_those_by_kind_of_layer(name: str) -> None:
    hub = read(name)
    full = [number for number, layer in enumerate(hub.layers) if layer.mixer.window is None]
    sizes = {
        "head_dim": hub.layers[full[0]].mixer.head_dim,
        "num_key_value_heads": hub.layers[full[0]].mixer.num_kv_heads,
    }
    saved = {f"{number:02}": sizes for number in full}
    assert read(name, per_layer_config=saved, global_head_dim=..., num_global_key_value_heads=...) == hub
    # What the file says of the layers counts.
    assert read(name, per_layer_config=saved, global_head_dim=8) == hub
    assert {layer.mixer.head_dim for layer in read(name, per_layer_config={}).layers} == {16}


def test_heads_of_keys_and_values_differ_only_where_they_are_one() -> None:
    assert [layer.mixer.num_kv_heads for layer in read("gemma4_a4b").layers] == [2, 2, 2, 2, 2, 1, 2, 1]
    assert {layer.mixer.num_kv_heads for layer in read("gemma4_a4b", attention_k_eq_v=False).layers} == {2}


def test_layers_share_the_keys_and_values_of_the_last_one_of_their_kind() -> None:
    shared = read("gemma4_text_e2b")
    assert [layer.mixer.kv_layer for layer in shared.layers] == [None, None, None, None, 2, 2, 2, 3]
    assert [layer.feed_forward.mlp_dim for layer in shared.layers] == [96] * 4 + [192] * 4
    narrow = read("gemma4_text_e2b", use_double_wide_mlp=False)
    assert {layer.feed_forward.mlp_dim for layer in narrow.layers} == {96}
    alone = read("gemma4_text_e2b", num_kv_shared_layers=0)
    assert {(layer.mixer.kv_layer, layer.feed_forward.mlp_dim) for layer in alone.layers} == {(None, 96)}


def test_the_last_layer_sees_everything() -> None:
    kinds = ["full_attention"] + ["sliding_attention"] * 7
    windows = [layer.mixer.window for layer in read("gemma4_text_31b", layer_types=kinds).layers]
    assert windows == [None, 8, 8, 8, 8, 8, 8, None]
    windows = [layer.mixer.window for layer in read("gemma4_text_31b", layer_types=...).layers]
    assert windows == [8, 8, 8, 8, 8, None, 8, None]


def test_what_is_switched_off_is_not_there() -> None:
    plain = read("gemma4_text_e2b", hidden_size_per_layer_input=0)
    assert plain.per_layer_embedding is None
    assert {layer.per_layer_input for layer in plain.layers} == {None}
    assert {layer.experts for layer in read("gemma4_a4b", enable_moe_block=False).layers} == {None}


def test_without_a_description_the_rotary_embeddings_are_those_of_the_releases() -> None:
    assert read("gemma4_text_31b", rope_parameters=None) == read("gemma4_text_31b")
