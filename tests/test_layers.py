"""Some layers of a model: the same as a checkpoint that has only these, renumbered by hand."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints
from support.decoders import decode_scanned, run

import lazyload
from lazyload import errors
from lazyload.layouts.layout import Layout

Config = dict[str, Any]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module")
def qwen3(golden: Path) -> Path:
    return checkpoints.make("qwen3", golden)


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def dense_first(config: Config, layers: range) -> Config:
    return {"first_k_dense_replace": max(0, config["first_k_dense_replace"] - layers.start)}


def by_interval(config: Config, layers: range) -> Config:
    every = config["full_attention_interval"]
    return {"layer_types": ["linear_attention" if (n + 1) % every else "full_attention" for n in layers]}


def by_turns(config: Config, layers: range) -> Config:
    return {"layer_types": ["full_attention" if n % 2 else "sliding_attention" for n in layers]}


def listed(config: Config, layers: range) -> Config:
    names = ("layer_types", "no_rope_layers")
    return {name: config[name][layers.start : layers.stop] for name in names if config.get(name)}


def by_number(config: Config, layers: range) -> Config:
    numbered = config["per_layer_config"]
    kept = {str(number - layers.start): numbered[str(number)] for number in layers if str(number) in numbered}
    return {**listed(config, layers), "per_layer_config": kept}


def written_by_hand(model: Path, folder: Path, layers: range, changes: Config) -> Path:
    """A checkpoint of these layers alone."""
    folder.mkdir()
    tensors = {}
    for file in model.glob("*.safetensors"):
        for name, array in load_file(file).items():
            before, layer, after = name.partition("layers.")
            number, dot, rest = after.partition(".")
            if not layer:
                tensors[name] = array
            elif int(number) in layers:
                tensors[f"{before}{layer}{int(number) - layers.start}{dot}{rest}"] = array
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((model / "config.json").read_text())
    part = config.get("text_config", config)
    part |= {"num_hidden_layers": len(layers), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "layers", "changes"),
    [
        ("qwen3", range(1, 3), listed),
        ("llama3_tied", range(0, 1), listed),
        ("qwen3_next", range(2, 5), by_interval),
        ("qwen3_next", range(0, 2), by_interval),
        ("qwen3_5", range(3, 6), listed),
        ("gemma2", range(1, 4), by_turns),
        ("gemma3_text", range(4, 8), listed),
        ("gemma4_text_31b", range(3, 8), listed),
        ("gemma4_text_a4b", range(2, 4), by_number),
        ("deepseek_v3", range(1, 4), dense_first),
        ("deepseek_v3", range(2, 5), dense_first),
        ("kimi_k25", range(0, 3), dense_first),
        ("glm4_moe", range(1, 4), dense_first),
        ("gpt_oss_mxfp4", range(1, 3), listed),
        ("smollm3", range(2, 4), listed),
        ("olmo3", range(3, 4), listed),
    ],
)
def test_logits_are_those_of_a_checkpoint_of_these_layers(
    name: str, layers: range, changes: Any, golden: Path, tmp_path: Path
) -> None:
    model = golden / name if (golden / name).exists() else checkpoints.make(name, golden)
    config = json.loads((model / "config.json").read_text())
    by_hand = written_by_hand(model, tmp_path / "cut", layers, changes(config.get("text_config", config), layers))
    mesh = jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1])
    options: Any = {"mesh": mesh, "dtype": "float32", "cache_dir": tmp_path / "cache"}
    expected = lazyload.from_pretrained(by_hand, **options)
    loaded = lazyload.from_pretrained(model, layers=layers, **options)
    assert loaded.config == expected.config
    assert len(loaded.layers) == len(layers)
    tokens = jnp.asarray(checkpoints.reference(name)[0])
    logits, _ = run(expected, tokens)
    np.testing.assert_allclose(run(loaded, tokens)[0], logits, atol=1e-6)
    np.testing.assert_allclose(decode_scanned(loaded, tokens[:, :6], cache_size=6), logits[:, :6], atol=2e-4)


def test_what_is_of_other_layers_is_named_and_not_read(qwen3: Path, tmp_path: Path) -> None:
    plan = lazyload.plan(qwen3, layers=range(1, 3), cache_dir=tmp_path / "cache")
    assert {name.split(".")[2] for name in plan.other_layers} == {"0", "3"}
    assert set(plan.other_layers) <= set(plan.skipped)
    assert plan.unread == ()
    assert plan.parameters["layers.0.attn.q_proj.kernel"].sources == ("model.layers.1.self_attn.q_proj.weight",)
    assert not any(path.startswith("layers.2.") for path in plan.parameters)
    lazyload.convert(qwen3, layers=range(1, 3), dtype="bfloat16", cache_dir=tmp_path / "cache")
    assert lazyload.last_report().bytes_read == plan.nbytes


def test_a_part_has_a_key_of_its_own_and_the_whole_its_old_one(qwen3: Path, tmp_path: Path) -> None:
    whole = lazyload.plan(qwen3, cache_dir=tmp_path)
    keys = [lazyload.plan(qwen3, layers=layers, cache_dir=tmp_path).key for layers in (range(2), range(1, 3))]
    assert len({whole.key, *keys}) == 3
    assert lazyload.plan(qwen3, layers=range(4), cache_dir=tmp_path).key == whole.key
    assert whole.other_layers == ()
    converted = lazyload.convert(qwen3, layers=range(2), cache_dir=tmp_path)
    assert converted.manifest.fields["layers"] == [0, 2]
    assert not lazyload.convert(qwen3, layers=range(2), cache_dir=tmp_path).converted
    assert "layers" not in lazyload.convert(qwen3, cache_dir=tmp_path).manifest.fields
    reasons = lazyload.plan(qwen3, layers=range(1, 3), cache_dir=tmp_path).reasons
    assert any(reason == "layers: [1, 3] instead of [0, 2]" for reason in reasons)


def test_other_layers_may_be_missing(qwen3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    written_by_hand(qwen3, folder, range(4), {})
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "layers.3." not in n}, folder / "model.safetensors")
    lazyload.convert(folder, layers=range(0, 3), cache_dir=tmp_path / "cache")
    with pytest.raises(errors.TensorMismatchError, match=r"layers\.3\..*missing"):
        lazyload.convert(folder, layers=range(1, 4), cache_dir=tmp_path / "cache")


def test_a_head_of_its_own_that_config_json_does_not_speak_of(golden: Path, tmp_path: Path) -> None:
    folder = checkpoints.make("llama3_tied", tmp_path)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"][::-1].copy()}, file)
    for _ in range(2):
        model = lazyload.from_pretrained(folder, layers=range(1, 2), cache_dir=tmp_path / "cache")
        assert model.lm_head.kernel.shape == tensors["model.embed_tokens.weight"].shape[::-1]
    assert lazyload.last_report().hit


def test_layers_that_need_others_are_no_part(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="no part can be had of layers that have inputs of their own"):
        lazyload.convert(checkpoints.make("gemma4_text_e2b", golden), layers=range(2), cache_dir=tmp_path)


def test_layers_in_a_layout_of_one_s_own(qwen3: Path, tmp_path: Path) -> None:
    layout = Layout({"norms": "attn_norm : layer embed"}, skipped=["*"])
    tree = lazyload.from_pretrained(qwen3, layers=range(1, 3), layout=layout, dtype="float32", cache_dir=tmp_path)
    stored = checkpoints.tensors("qwen3")
    expected = [stored[f"model.layers.{number}.input_layernorm.weight"] for number in (1, 2)]
    np.testing.assert_array_equal(tree["norms"], np.stack(expected).astype(np.float32))


def test_layers_that_share_another_s_selection_need_it(golden: Path, tmp_path: Path) -> None:
    model = checkpoints.make("glm_moe_dsa", golden)
    sharing = {"indexer_types": ["full", "full", "shared", "shared", "full"]}
    with pytest.raises(
        errors.ConfigError, match=r"layer 2 attends to what the indexer of layer 1 selects.*range\(2, 4"
    ):
        lazyload.plan(model, layers=range(2, 4), config=sharing, cache_dir=tmp_path)
    assert lazyload.config(model, config=sharing).part(range(1, 4)).layers[1].mixer.shares_selection


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize(
    ("name", "layers", "changes"),
    [
        ("qwen3", range(1, 3), listed),
        ("gemma3_text", range(0, 7), listed),
        ("gpt_oss", range(2, 4), listed),
        ("deepseek_v3", range(1, 4), dense_first),
    ],
)
def test_layers_in_maxtext_s_layout(
    name: str, layers: range, changes: Any, scan_layers: bool, golden: Path, tmp_path: Path
) -> None:
    model = golden / name if (golden / name).exists() else checkpoints.make(name, golden)
    config = json.loads((model / "config.json").read_text())
    by_hand = written_by_hand(model, tmp_path / "cut", layers, changes(config, layers))
    layout = lazyload.MaxText(scan_layers)
    expected = lazyload.convert(by_hand, layout=layout, cache_dir=tmp_path / "cache")
    loaded = lazyload.convert(model, layers=layers, layout=layout, cache_dir=tmp_path / "cache")
    assert loaded.manifest.arrays == expected.manifest.arrays


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("gemma3_text", range(1, 8), "layer 4 of the part is of another kind than layer 4 of the whole model"),
        ("gpt_oss", range(1, 3), "layer 0 of the part is of another kind"),
        ("gpt_oss", range(0, 3), "not a multiple of 2"),
    ],
)
def test_what_maxtext_cannot_make_of_some_layers(
    name: str, layers: range, message: str, golden: Path, tmp_path: Path
) -> None:
    model = golden / name if (golden / name).exists() else checkpoints.make(name, golden)
    with pytest.raises(errors.LayoutError, match=message):
        lazyload.convert(model, layers=layers, layout=lazyload.MaxText(), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (range(0), "layers that follow each other, such as range"),
        (range(3, 1), "layers that follow each other"),
        (range(0, 4, 2), "layers that follow each other"),
        (range(3, 0, -1), "layers that follow each other"),
        (range(-1, 2), "layers that follow each other"),
        (8, "layers=8: give layers"),
        ([0, 1], "give layers"),
        (slice(0, 2), "give layers"),
        (range(0, 5), "the model has 4 layers"),
        (range(4, 6), "the model has 4 layers"),
    ],
    ids=str,
)
@pytest.mark.parametrize("call", [lazyload.from_pretrained, lazyload.convert, lazyload.plan])
def test_what_layers_cannot_be(call: Any, layers: Any, message: str, qwen3: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        call(qwen3, layers=layers, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_an_architecture_whose_layers_are_not_known(qwen3: Path, tmp_path: Path) -> None:
    bigrams = SimpleNamespace(splits={}, groups=lambda role: ())
    family = lazyload.Family("bigrams", ("bigrams",), lambda values: bigrams, lambda config: Layout({}))  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match=r"lazyload\.DecoderConfig describes, not SimpleNamespace"):
        lazyload.plan(qwen3, family=family, layers=range(1), cache_dir=tmp_path)
