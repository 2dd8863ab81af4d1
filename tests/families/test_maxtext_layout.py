"""MaxText's layouts against what MaxText's own converter saved for the same bytes, and where they must refuse."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support import checkpoints
from support.in_memory import Arrays

from lazyload import families
from lazyload.architecture import MLP, DecoderConfig, Experts
from lazyload.errors import LayoutError
from lazyload.families.family import Family
from lazyload.formats.maxtext import MaxText
from lazyload.layouts.conversion import Conversion, axes_of, resolve
from lazyload.layouts.layout import Layout
from lazyload.layouts.lazy import LazyTensor
from lazyload.layouts.unroll import unroll_tree
from lazyload.sources import ModelReference, open_source

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted((GOLDEN / "maxtext").glob("*.json"))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LINEAR, SLIDING, FULL = "linear_attention", "sliding_attention", "full_attention"


def spec(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / "specs" / f"{name}.json").read_text())["config"]


def read(config: Mapping[str, Any], **changes: Any) -> tuple[Family, DecoderConfig]:
    """The family and the meaning of a golden `config.json`, with some fields changed."""
    text = config.get("text_config")
    config = {**config, "text_config": {**text, **changes}} if text else {**config, **changes}
    family = families.find(config)
    return family, family.config(config)


def shapes(layout: Layout, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    prefix = "params.params."
    return {path.removeprefix(prefix): shape for path, (shape, _) in axes_of(unroll_tree(layout, config)).items()}


def whole(lazy: LazyTensor) -> np.ndarray:
    return lazy[tuple(slice(None) for _ in lazy.shape)]


def convert(model: Path, layout: MaxText, dtype: np.dtype) -> Conversion:
    source = open_source(ModelReference(model))
    family = families.find(source.config)
    config = family.config(source.config)
    return resolve(source, family.huggingface(config), layout.layout(family.name, config), config, dtype)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_there_are_cases() -> None:
    assert len(CASES) == 50


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_every_leaf_is_the_one_that_maxtext_saved(case: Path, models: Path) -> None:
    name, scan = case.stem.split("-scan_")
    expected = json.loads(case.read_text())
    overrides = dict(override.split("=") for override in expected["overrides"])
    model = models / name if (models / name).exists() else checkpoints.make(name, models)
    layout = MaxText(scan_layers=scan == "true", vocab_size=int(overrides["vocab_size"]))
    dtype = np.dtype(np.float32) if name == "qwen3_f32" else BFLOAT16
    found = {}
    for path, lazy in convert(model, layout, dtype).tensors.items():
        sha256 = hashlib.sha256(whole(lazy).tobytes()).hexdigest()
        found[path.replace(".", "/")] = {"shape": list(lazy.shape), "dtype": lazy.dtype.name, "sha256": sha256}
    step = expected["leaves"].pop("step")
    assert step == {"value": 0.0}
    assert found == expected["leaves"]


def unpacked_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    codes = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    numbers = np.where(codes & 8, -1, 1).astype(np.float32) * values[codes & 7]
    numbers *= np.exp2(scales.astype(np.float32) - 127)[..., None]
    return numbers.reshape(*blocks.shape[:2], -1).transpose(0, 2, 1)


def unpacked_fp8(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    rows, columns = (np.arange(size) // 128 for size in weight.shape)
    return weight.astype(np.float32) * scale[rows][:, columns]


def unpacked(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a packed checkpoint in float32, by the formulas of the formats."""
    plain = {}
    for name, array in stored.items():
        if name.endswith("_blocks"):
            plain[name.removesuffix("_blocks")] = unpacked_mxfp4(array, stored[name.replace("_blocks", "_scales")])
        elif f"{name}_scale_inv" in stored:
            plain[name] = unpacked_fp8(array, stored[f"{name}_scale_inv"])
        elif not name.endswith(("_scales", "_scale_inv")):
            plain[name] = array
    return plain


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("name", ["gpt_oss_mxfp4", "deepseek_v3_fp8"])
def test_packed_weights_convert_as_their_unpacked_values_do(name: str, scan_layers: bool, tmp_path: Path) -> None:
    model = checkpoints.make(name, tmp_path)
    plain = Arrays(unpacked(checkpoints.tensors(name)))
    family, config = read(spec(name))
    layout = MaxText(scan_layers).layout(family.name, config)
    expected = resolve(plain, family.huggingface(config), layout, config, BFLOAT16).tensors
    found = convert(model, MaxText(scan_layers), BFLOAT16).tensors
    assert found.keys() == expected.keys()
    for path, lazy in found.items():
        assert whole(lazy).tobytes() == whole(expected[path]).tobytes(), path


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_packed_checkpoint_has_the_tree_of_a_plain_one(scan_layers: bool) -> None:
    (family, plain), (_, packed) = read(spec("gpt_oss")), read(spec("gpt_oss_mxfp4"))
    layouts = [MaxText(scan_layers).layout(family.name, config) for config in (plain, packed)]
    assert shapes(layouts[0], plain) == shapes(layouts[1], packed)


def test_gemma_3_leaves_what_is_no_whole_cycle_unscanned() -> None:
    family, config = read(spec("gemma3"), num_hidden_layers=13)
    found = shapes(MaxText(True).layout(family.name, config), config)
    assert found["decoder.layers.layers_5.mlp.wo.kernel"] == (96, 2, 64)
    assert found["decoder.layers_remainder.layers_0.mlp.wo.kernel"] == (96, 64)
    assert "decoder.layers_remainder.layers_1.mlp.wo.kernel" not in found


def test_gemma_3_of_less_than_a_cycle_has_a_remainder_only() -> None:
    family, config = read(spec("gemma3"), num_hidden_layers=4)
    paths = {path.split(".")[1] for path in shapes(MaxText(True).layout(family.name, config), config)}
    assert paths == {"decoder_norm", "embedding", "layers_remainder"}


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize(("dense", "absent"), [(0, "dense_layers"), (5, "moe_layers")])
def test_deepseek_with_one_kind_of_layers(scan_layers: bool, dense: int, absent: str) -> None:
    family, config = read(spec("deepseek_v3"), first_k_dense_replace=dense)
    paths = list(shapes(MaxText(scan_layers).layout(family.name, config), config))
    assert not any(absent in path for path in paths)
    assert any(path.startswith("decoder.moe_layers" if dense == 0 else "decoder.dense_layers") for path in paths)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama3"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_models_have_no_output_projection(name: str, tied: bool) -> None:
    family, config = read(spec(name), tie_word_embeddings=tied)
    found = shapes(MaxText(True).layout(family.name, config), config)
    assert ("decoder.logits_dense.kernel" in found) == (not tied)


def test_both_ends_are_padded_to_maxtext_s_vocabulary(models: Path) -> None:
    model = models / "llama3" if (models / "llama3").exists() else checkpoints.make("llama3", models)
    plain, padded = (convert(model, MaxText(vocab_size=size), BFLOAT16).tensors for size in (None, 520))
    for path, axis in (("token_embedder.embedding", 0), ("decoder.logits_dense.kernel", 1)):
        rows, filled = whole(plain[f"params.params.{path}"]), whole(padded[f"params.params.{path}"])
        kept, zeros = np.split(filled, [512], axis=axis)
        assert kept.tobytes() == rows.tobytes()
        assert zeros.shape[axis] == 8
        assert not zeros.any()


def test_a_checkpoint_says_how_it_is_scanned() -> None:
    family, config = read(spec("qwen3"))
    for scan_layers in (True, False):
        target = MaxText(scan_layers).target(family.name, config)
        assert target.metadata == {"scan_layers": scan_layers}
        assert target.scalars == {"step": 0}
        assert target.item == "items"


@pytest.mark.parametrize(
    ("name", "layers", "works", "message"),
    [
        ("gemma2", 3, (), "3 layers are not a multiple of 2"),
        ("gpt_oss", 3, (False,), "3 layers are not a multiple of 2.*scan_layers=False"),
        ("olmo3", 6, (False,), "6 layers are not a multiple of 4.*scan_layers=False"),
        ("qwen3_next_8", 6, (False,), "6 layers are not a multiple of 4.*scan_layers=False"),
        ("qwen3_5_moe_8", 6, (False,), "6 layers are not a multiple of 4.*scan_layers=False"),
        ("llama4_8", 6, (False,), "6 layers are not a multiple of 4.*scan_layers=False"),
        ("qwen3_next_8", 3, (False,), "3 layers are not a multiple of 4.*scan_layers=False"),
    ],
)
def test_layers_that_do_not_fill_cycles(name: str, layers: int, works: tuple[bool, ...], message: str) -> None:
    family, config = read(spec(name))
    config = dataclasses.replace(config, layers=(config.layers * 2)[:layers])
    for scan_layers in (True, False):
        if scan_layers in works:
            assert shapes(MaxText(scan_layers).layout(family.name, config), config)
        else:
            with pytest.raises(LayoutError, match=message):
                MaxText(scan_layers).layout(family.name, config)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_dense_and_sparse_layers_by_turns_are_refused(name: str) -> None:
    family, config = read(spec(name))
    feed_forwards = (config.first(Experts), config.first(MLP) or MLP(mlp_dim=32))
    turns = [
        dataclasses.replace(layer, feed_forward=feed_forwards[number % 2]) for number, layer in enumerate(config.layers)
    ]
    config = dataclasses.replace(config, layers=tuple(turns))
    with pytest.raises(LayoutError, match="MaxText's"):
        MaxText().layout(family.name, config)


@pytest.mark.parametrize("name", ["qwen3_next_8", "qwen3_5_moe_8"])
@pytest.mark.parametrize("cycle", [2, 4, 8])
def test_attention_after_any_number_of_delta_nets(name: str, cycle: int) -> None:
    types = [LINEAR] * (cycle - 1) + [FULL]
    family, config = read(spec(name), layer_types=types * (8 // cycle))
    scanned, numbered = (shapes(MaxText(scan).layout(family.name, config), config) for scan in (True, False))
    assert f"decoder.layers_{cycle - 1}.attention.attention.query.kernel" in numbered
    if name == "qwen3_next_8":
        assert scanned["decoder.layers.local_layers.attention.A_log"] == (4, 8 // cycle, cycle - 1)
        assert scanned["decoder.layers.global_layer.attention.attention.key_norm.scale"] == (32, 8 // cycle)
    else:
        assert scanned["decoder.layers.layer_0.attention.A_log"] == (4, 8 // cycle)
        assert scanned[f"decoder.layers.layer_{cycle - 1}.attention.attention.key_norm.scale"] == (32, 8 // cycle)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama4_8", {"attention_bias": True}, "no biases .attention_bias"),
        ("qwen3_next_8", {"mlp_only_layers": [1]}, "an MLP in some .mlp_only_layers"),
        ("qwen3_next_8", {"decoder_sparse_step": 2}, "an MLP in some .mlp_only_layers, decoder_sparse_step"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "has both .mlp_only_layers"),
        ("qwen3_next_8", {"attention_bias": True}, "no biases .attention_bias"),
        ("qwen3_5_moe_8", {"attention_bias": True}, "no biases .attention_bias"),
        ("qwen3_next_8", {"shared_expert_intermediate_size": 48}, "shared_expert_intermediate_size = 48 and moe_inter"),
        ("qwen3_5_moe_8", {"shared_expert_intermediate_size": 48}, "shared_expert_intermediate_size = 48 and moe_inte"),
        ("qwen3_next_8", {"layer_types": [FULL] + [LINEAR] * 7}, r"has it in layers \[0\]"),
        (
            "qwen3_5_moe_8",
            {"layer_types": [LINEAR, FULL] * 3 + [FULL] * 2},
            r"has it in layers \[1, 3, 5, 6, 7\]",
        ),
        ("qwen3_next_8", {"layer_types": [LINEAR] * 8}, r"has it in layers \[\]"),
    ],
)
def test_what_maxtext_s_layers_cannot_express(name: str, changes: Mapping[str, Any], message: str) -> None:
    family, config = read(spec(name), **changes)
    for scan_layers in (True, False):
        with pytest.raises(LayoutError, match=message):
            MaxText(scan_layers).layout(family.name, config)


def test_experts_of_llama_4_that_do_not_come_in_cycles_are_not_scanned() -> None:
    family, config = read(spec("llama4_8"), moe_layers=[1, 3, 5])
    with pytest.raises(LayoutError, match=r"moe_layers.*Use scan_layers=False"):
        MaxText().layout(family.name, config)
    assert "decoder.layers_7.mlp.wo.kernel" in shapes(MaxText(False).layout(family.name, config), config)


@pytest.mark.parametrize("name", ["gemma4_e2b_10", "gemma4_text_e2b_10"])
def test_small_gemma_4s_are_not_scanned(name: str) -> None:
    family, config = read(spec(name))
    with pytest.raises(LayoutError, match=r"hidden_size_per_layer_input.*num_kv_shared_layers.*use scan_layers=False"):
        MaxText().layout(family.name, config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma4_text_31b_12", {"attention_bias": True}, "no biases .attention_bias"),
        ("gemma4_text_31b_12", {"layer_types": [SLIDING, FULL] * 6}, r"every 6th layer.*layers \[1, 3, .* of 12"),
        ("gemma4_text_e2b_10", {"layer_types": [SLIDING, FULL] * 5}, r"every 5th or 6th layer.*layers \[1, 3"),
        ("gemma4_text_e2b_10", {"attention_k_eq_v": True}, "attention_k_eq_v"),
        (
            "gemma4_text_e2b_10",
            {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24},
            "no experts .enable_moe_block",
        ),
    ],
)
def test_what_maxtext_s_gemma_4_cannot_express(name: str, changes: Mapping[str, Any], message: str) -> None:
    family, config = read(spec(name), **changes)
    with pytest.raises(LayoutError, match=message):
        MaxText(scan_layers=False).layout(family.name, config)


def test_experts_of_a_multimodal_qwen_3_are_not_scanned() -> None:
    family, config = read(spec("qwen3_vl_moe"))
    with pytest.raises(LayoutError, match="use scan_layers=False"):
        MaxText().layout(family.name, config)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_bias_is_never_rounded_and_the_rest_is_what_was_asked_for(scan_layers: bool, models: Path) -> None:
    model = models / "kimi_k2" if (models / "kimi_k2").exists() else checkpoints.make("kimi_k2", models)
    for dtype in (np.dtype(np.float16), np.dtype(np.float32)):
        for path, lazy in convert(model, MaxText(scan_layers), dtype).tensors.items():
            assert lazy.dtype == (np.float32 if path.endswith("gate.bias") else dtype)


@pytest.mark.parametrize("name", ["llama3", "qwen3", "deepseek_v3"])
def test_biases_that_maxtext_s_model_does_not_have(name: str) -> None:
    family, config = read(spec(name), attention_bias=True)
    with pytest.raises(LayoutError, match=r"MaxText's .* no bias"):
        MaxText().layout(family.name, config)


def test_no_row_of_the_embedding_can_be_left_out() -> None:
    family, config = read(spec("qwen3"))
    with pytest.raises(LayoutError, match=r"vocab_size=511.*512 rows"):
        MaxText(vocab_size=511).layout(family.name, config)


@pytest.mark.parametrize("name", ["phi3", "qwen3_5", "ministral3"])
def test_a_family_that_maxtext_does_not_convert(name: str) -> None:
    family, config = read(spec(name))
    with pytest.raises(LayoutError, match=rf"'{family.name}' has no MaxText layout; these have one: .*llama") as caught:
        MaxText().layout(family.name, config)
    assert family.name not in str(caught.value).partition("these have one: ")[2].split(", ")


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_layer_types": ["moe", *["hash_moe"] * 3, *["moe"] * 3]}, "in its first layers"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"compress_rates": {"compressed_sparse_attention": 8, "heavily_compressed_attention": 128}}, "rates say 8"),
    ],
)
def test_what_maxtext_s_deepseek_v4_has_not(changes: dict[str, Any], message: str, scan_layers: bool) -> None:
    family, config = read(spec("deepseek_v4_7"), **changes)
    with pytest.raises(LayoutError, match=message):
        MaxText(scan_layers).layout(family.name, config)


def test_deepseek_v4_is_scanned_in_pairs_of_fixed_windows() -> None:
    family, config = read(spec("deepseek_v4"))
    assert "decoder.layers_3.self_attention.hca_compressor.position_bias" in shapes(
        MaxText(scan_layers=False).layout(family.name, config), config
    )
    with pytest.raises(LayoutError, match=r"128 and 4 tokens.*from 2 on are of 4, 8, 4, 8. Use scan_layers=False"):
        MaxText().layout(family.name, config)
