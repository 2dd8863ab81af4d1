"""What the fields of a Nemotron H mean that other families do not have."""

import json
from typing import Any

import pytest
from support import checkpoints

from lazyload import families
from lazyload.architecture import DecoderConfig

GOLDEN = json.loads((checkpoints.GOLDEN / "specs" / "nemotron_h.json").read_text())["config"]
LISTED = ["linear_attention", "mlp", "linear_attention", "full_attention", "mlp", "linear_attention", "mlp"]


def read(**changes: Any) -> DecoderConfig:
    config: DecoderConfig = families.find(GOLDEN).config({**GOLDEN, **changes})
    return config


def test_each_layer_is_one_block() -> None:
    names = [[block.name for block in layer.blocks] for layer in read(hybrid_override_pattern="M*E-").layers]
    assert names == [["mamba"], ["attn"], ["moe"], ["mlp"]]


@pytest.mark.parametrize("name", ["layers_block_type", "layer_types"])
@pytest.mark.parametrize("mamba", ["linear_attention", "mamba"])
def test_layers_in_words_are_those_in_letters_and_count_before_them(name: str, mamba: str) -> None:
    kinds = [mamba if kind == "linear_attention" else kind for kind in LISTED]
    assert read(**{name: kinds}, hybrid_override_pattern="E") == read()


def test_layers_need_not_be_counted() -> None:
    assert read(num_hidden_layers=None) == read()


@pytest.mark.parametrize(
    ("former", "now", "value"),
    [
        ("mamba_n_groups", "n_groups", 4),
        ("mamba_d_conv", "conv_kernel", 3),
        ("mamba_dt_min", "time_step_min", 0.5),
        ("mamba_conv_bias", "use_conv_bias", False),
    ],
)
def test_former_names_of_fields(former: str, now: str, value: Any) -> None:
    assert read(**{former: value}) == read(**{now: value}) != read()


def test_what_published_files_say_without_effect() -> None:
    copies = {"norm_eps": 1e-5, "mamba_num_groups": 2, "mamba_state_dim": 12, "attention_head_dim": 16}
    unused = {
        "partial_rotary_factor": 1.0,
        "rope_theta": 10_000,
        "num_logits_to_keep": 1,
        "time_step_limit": [0.1, 1.0],
    }
    assert read(**copies, **unused) == read()


def test_the_least_time_step_is_the_shortest_and_there_is_no_longest() -> None:
    steps = {(layer.mixer.least_step, layer.mixer.longest_step) for layer in read(hybrid_override_pattern="M").layers}
    assert steps == {(0.001, float("inf"))}


def test_experts_work_in_a_latent_space_or_on_the_tokens() -> None:
    plain = read(hybrid_override_pattern="E").layers[0]
    latent = read(hybrid_override_pattern="E", moe_latent_size=12, mlp_bias=True).layers[0]
    assert plain.parameters["moe.up_proj.kernel"] == "experts.up : expert embed expert_mlp"
    assert latent.parameters["moe.up_proj.kernel"] == "experts.up : expert expert_latent expert_mlp"
    assert "moe.latent_in_proj.bias" in latent.parameters
