"""`layout=lazyload.Tunix()`: what Tunix's own loaders make of the same folder, and what its classes do otherwise."""

import functools
import importlib
import importlib.util
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support import checkpoints, stored

import lazyload
from lazyload.errors import ConfigError, LayoutError, ShardingError, TensorMismatchError
from lazyload.formats.tunix import CLASSES, module_of
from lazyload.models.tunix.differences import differences

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
needs_tunix = pytest.mark.skipif(importlib.util.find_spec("tunix") is None, reason="Tunix is not installed")

RIGHT = ["gemma2", "gemma3", "gemma4_e2b_10", "qwen2"]
"""What the classes compute as `config.json` means it."""
OTHERWISE = {
    "gemma4_a4b": "the experts' router sees the residual stream",
    "llama3_tied": "mixer.rope is Rope(theta=500000.0, dim=16, kind='llama3', factor=8.0, original_max_position=64), "
    "Tunix's Llama3 computes Rope(theta=1000000.0, dim=16)",
    "qwen3": "mixer.rope is Rope(theta=10000.0, dim=16), Tunix's Qwen3 computes Rope(theta=1000000.0, dim=16)",
    "qwen3_moe": "mixer.rope is Rope(theta=10000.0, dim=16)",
}
"""And what they do not, with what is said of it."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tunix")


def mesh(shape: tuple[int, int] = (4, 2), names: tuple[str, str] = ("fsdp", "tp")) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * 2)


def load(name: str, work: Path, layout: Any = None, **options: Any) -> Any:
    folder = work / name if (work / name).exists() else checkpoints.make(name, work)
    options = {"mesh": mesh(), "dtype": "float32", "cache_dir": work / "cache", "progress": False} | options
    return lazyload.from_pretrained(folder, layout=layout or lazyload.Tunix(), **options)


def arrays_of(model: Any) -> dict[str, jax.Array]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): value.get_value() for path, value in flat}


@functools.cache
def tunix_model(family: str) -> Any:
    return importlib.import_module(f"tunix.models.{module_of(family)}.model")


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    batch, length = tokens.shape
    positions = np.broadcast_to(np.arange(length), (batch, length))
    mask = np.broadcast_to(np.tril(np.ones((length, length), bool)), (batch, length, length))
    with jax.default_matmul_precision("highest"):
        return np.asarray(nnx.jit(lambda model: model(tokens, positions, None, mask)[0])(model))


@needs_tunix
def test_what_tunix_saves_of_its_class_is_exported(work: Path, tmp_path: Path) -> None:
    import optax
    from tunix.sft import checkpoint_manager

    model = load("qwen3", work)
    manager = checkpoint_manager.CheckpointManager(root_directory=str(tmp_path / "run"))
    manager.save(1, model, nnx.Optimizer(model, optax.adamw(1e-3), wrt=nnx.Param), force=True)
    manager.close()
    before = stored.tensors(work / "qwen3")
    after = stored.tensors(lazyload.export(tmp_path / "run" / "1", tmp_path / "out", like=work / "qwen3"))
    assert after.keys() == before.keys()
    for key, values in after.items():
        np.testing.assert_array_equal(values, before[key].astype(np.float32), err_msg=key)


@needs_tunix
@pytest.mark.parametrize("name", [*RIGHT, *OTHERWISE])
def test_the_class_is_filled_as_its_own_loader_fills_it(
    name: str, work: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Tunix splits heads evenly or not at all.
    on = mesh((8, 1)) if name == "gemma4_a4b" else mesh()
    with caplog.at_level(logging.WARNING, "lazyload"):
        model = load(name, work, mesh=on)
    config = lazyload.config(work / name)
    assert type(model) is getattr(tunix_model(config.family), CLASSES[module_of(config.family)])
    told = [record.message for record in caplog.records if "computes something else" in record.message]
    assert len(told) == (name in OTHERWISE)
    assert OTHERWISE.get(name, "") in "".join(told)
    if name in RIGHT:
        tokens, expected = checkpoints.reference(name)
        assert np.abs(logits_of(model, tokens) - expected).max() < 2e-4
    kind = "params_safetensors" if config.family.startswith("gemma") else "params"
    loader = importlib.import_module(f"tunix.models.{module_of(config.family)}.{kind}")
    theirs = arrays_of(loader.create_model_from_safe_tensors(str(work / name), model.config, on, jax.numpy.float32))
    ours = arrays_of(model)
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        np.testing.assert_array_equal(ours[path], array)
        assert ours[path].sharding.is_equivalent_to(array.sharding, array.ndim), path
    assert nnx.get_partition_spec(nnx.state(model, nnx.Param)) is not None


@needs_tunix
def test_a_class_is_saved_as_the_hub_has_it(work: Path, tmp_path: Path) -> None:
    layout = lazyload.Tunix()
    saved = lazyload.save_pretrained(
        load("qwen3", work, dtype="auto"), tmp_path / "out", like=work / "qwen3", layout=layout
    )
    found, before = stored.tensors(saved), stored.tensors(work / "qwen3")
    assert found.keys() == before.keys()
    assert all(found[key].tobytes() == before[key].tobytes() for key in found)


@needs_tunix
def test_a_second_call_is_a_hit_and_takes_what_the_config_leaves_open(work: Path) -> None:
    load("qwen2", work)
    model = load("qwen2", work, lazyload.Tunix({"dtype": jax.numpy.bfloat16}))
    assert lazyload.last_report().hit
    assert model.config.dtype == jax.numpy.bfloat16
    whole = load("qwen2", work, lazyload.Tunix(model.config))
    assert whole.config == model.config
    rules = {"embed": None, "head": None, "kv_head": None, "mlp": None, "vocab": None}
    assert all(array.sharding.is_fully_replicated for array in arrays_of(load("qwen2", work, rules=rules)).values())


@needs_tunix
def test_a_config_of_tunix_is_set_right(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load("qwen2", work).config
    config.rope_theta, config.norm_eps = 123, 1e-3
    with caplog.at_level(logging.WARNING, "lazyload"):
        model = load("qwen2", work, lazyload.Tunix(config))
    assert "taken from config.json" in caplog.text
    assert "not 123" in caplog.text
    tokens, expected = checkpoints.reference("qwen2")
    assert np.abs(logits_of(model, tokens) - expected).max() < 2e-4


@needs_tunix
def test_what_is_the_same_in_other_words_is_not_told(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load("gemma4_e2b_10", work).config
    assert len(config.attention_pattern) == 10
    config.attention_pattern = config.attention_pattern[:5]
    config.num_global_kv_heads = None
    with caplog.at_level(logging.WARNING, "lazyload"):
        load("gemma4_e2b_10", work, lazyload.Tunix(config))
    assert caplog.text == ""


@needs_tunix
def test_an_axis_that_the_mesh_lacks_splits_nothing(work: Path) -> None:
    for given in (jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)), None):
        model = load("gemma2", work, mesh=given)
        assert model.config.shd_config.q_weight_ndh == (None, "fsdp", None)
        assert tuple(arrays_of(model)["layers.0.attn.q_einsum.w"].sharding.spec) == (None, "fsdp", None)


@needs_tunix
def test_explicit_axes_become_automatic_ones(work: Path) -> None:
    model = load("qwen2", work, mesh=jax.make_mesh((4, 2), ("fsdp", "tp")))
    tokens, expected = checkpoints.reference("qwen2")
    assert np.abs(logits_of(model, tokens) - expected).max() < 2e-4


@needs_tunix
def test_what_tunix_itself_cannot_read_is_read(work: Path) -> None:
    model = load("gemma", work)
    norm = checkpoints.tensors("gemma")["model.layers.1.post_attention_layernorm.weight"]
    np.testing.assert_array_equal(arrays_of(model)["layers.1.pre_ffw_norm.scale"], norm.astype(np.float32))
    text = load("gemma4_text_31b", work)
    assert arrays_of(text)["layers.5.attn.k_einsum.w"].ndim == 3


@needs_tunix
def test_what_does_not_fit_is_told_before_anything_is_converted(work: Path, tmp_path: Path) -> None:
    config = load("qwen2", work).config
    config.num_layers += 1
    qwen3 = tunix_model("qwen3").ModelConfig.qwen3_0p6b()
    wrong: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (lazyload.Tunix(config), {}, ConfigError, "num_layers is 5, config.json means 4"),
        (lazyload.Tunix(qwen3), {}, LayoutError, "this model is a Qwen2 of Tunix"),
        (lazyload.Tunix({"rope_theta": 5}), {}, LayoutError, "config.json says what rope_theta is"),
        (lazyload.Tunix({"remat": 5}), {}, LayoutError, "no field remat; it has .*remat_config"),
        (None, {"mesh": mesh(names=("data", "model"))}, ShardingError, "over the mesh's axis data, model.*fsdp, tp"),
    ]
    for layout, options, kind, text in wrong:
        with pytest.raises(kind, match=text):
            load("qwen2", work, layout, **options, cache_dir=tmp_path / "cache")
    with pytest.raises(LayoutError, match=r"Tunix's Gemma4 cannot be this model.*layer 6 attends to"):
        load("gemma4_e2b", work, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("models--*"))


@needs_tunix
def test_some_layers_are_a_model_of_their_own(work: Path) -> None:
    model = load("gemma2", work, layers=range(2, 4))
    assert model.config.num_layers == len(model.layers) == 2
    whole, part = arrays_of(load("gemma2", work)), arrays_of(model)
    np.testing.assert_array_equal(part["layers.1.attn.kv_einsum.w"], whole["layers.3.attn.kv_einsum.w"])


@needs_tunix
def test_a_tensor_that_is_missing_is_an_error(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints.make("qwen2", tmp_path / "whole"), folder)
    file = next(folder.glob("*.safetensors"))
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, file)
    for index in folder.glob("*.index.json"):
        index.unlink()
    with pytest.raises(TensorMismatchError, match=r"model.layers.1.self_attn.k_proj.weight: missing"):
        lazyload.from_pretrained(folder, layout=lazyload.Tunix(), mesh=mesh(), cache_dir=tmp_path / "c", progress=False)


@needs_tunix
def test_another_inside_is_told(work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    tunix = tunix_model("qwen2")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.1")
    with caplog.at_level(logging.WARNING, "lazyload"):
        load("qwen2", work)
    assert "Tunix 9.1 is none of the versions known here, 0.1.7" in caplog.text

    class Strange(tunix.Qwen2):  # type: ignore[misc, name-defined]
        def __init__(self, config: Any, *, rngs: Any):
            super().__init__(config, rngs=rngs)
            self.further = nnx.Param(jax.numpy.zeros(3))

    monkeypatch.setattr(tunix, "Qwen2", Strange)
    with pytest.raises(TensorMismatchError, match=r"further is missing"):
        load("qwen2", work)
    monkeypatch.setattr(tunix, "Qwen2", lambda config: None)
    with pytest.raises(LayoutError, match=r"Qwen2 cannot be made.*this is Tunix 9.1, and known are 0.1.7"):
        load("qwen2", work)


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma4_e2b_10", "qwen2"])
def test_the_arrays_are_those_of_the_tables_without_tunix(name: str, work: Path) -> None:
    folder = checkpoints.make(name, work)
    config = lazyload.config(folder)
    layout = lazyload.Tunix().layout(config.family, config)
    loaded = lazyload.from_pretrained(folder, layout=layout, dtype="float32", cache_dir=work / "cache", progress=False)
    stored = {
        key.split("language_model.")[-1].removeprefix("model."): value
        for key, value in checkpoints.tensors(name).items()
    }
    heads, width = config.num_heads, config.head_dim

    def projection(kind: str, heads: int) -> np.ndarray:
        weight = stored[f"layers.0.self_attn.{kind}_proj.weight"].astype(np.float32)
        return weight.reshape(heads, width, -1).transpose(0, 2, 1)

    keys_and_values = [projection(kind, config.num_kv_heads) for kind in "kv"]
    attention = loaded["layers"]["0"]["attn"]
    if name == "qwen2":
        np.testing.assert_array_equal(attention["k_proj"]["w"], keys_and_values[0].transpose(1, 0, 2))
    elif heads == config.num_kv_heads:
        np.testing.assert_array_equal(attention["qkv_einsum"]["w"], [projection("q", heads), *keys_and_values])
    else:
        np.testing.assert_array_equal(attention["kv_einsum"]["w"], keys_and_values)
    if name == "gemma4_e2b_10":
        inputs = stored["embed_tokens_per_layer.weight"].astype(np.float32)
        found = loaded["embedder"]["per_layer_input_embedding"]
        np.testing.assert_array_equal(found, inputs.reshape(len(inputs), config.num_layers, -1))


def test_converting_needs_no_tunix_and_loading_says_that_it_does(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "tunix"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tunix", None)
    folder = checkpoints.make("qwen2", work / "other")
    converted = lazyload.convert(folder, layout=lazyload.Tunix(), cache_dir=work / "cache", progress=False)
    assert "layers.0.attn.q_proj.w" in converted.manifest.arrays
    with pytest.raises(LayoutError, match=r"needs Tunix .pip install google-tunix.*tunix.models.qwen2.model"):
        lazyload.from_pretrained(folder, layout=lazyload.Tunix(), cache_dir=work / "cache", progress=False)


@pytest.mark.parametrize("name", ["phi3", "mistral", "qwen3_next"])
def test_a_family_that_tunix_has_no_class_for_is_refused(name: str, work: Path) -> None:
    folder = checkpoints.make(name, work)
    with pytest.raises(LayoutError, match=r"has no class in Tunix; these have one: gemma, gemma2, .*qwen3_moe"):
        lazyload.plan(folder, layout=lazyload.Tunix(), cache_dir=work / "cache")


def test_parameters_that_the_class_has_no_place_for_are_refused(work: Path) -> None:
    folder = checkpoints.make("llama3", work)
    with pytest.raises(LayoutError, match=r"Tunix's Llama3 has no place for attn.k.bias, attn.o.bias, attn.q.bias"):
        lazyload.plan(folder, layout=lazyload.Tunix(), config={"attention_bias": True})
    sparse = checkpoints.make("qwen3_moe", work)
    dense = json.loads((sparse / "config.json").read_text())["num_hidden_layers"] - 1
    with pytest.raises(LayoutError, match=r"experts in every layer, or in none"):
        lazyload.plan(sparse, layout=lazyload.Tunix(), config={"mlp_only_layers": [dense]})


def test_differences_name_the_layers_that_have_them(work: Path) -> None:
    config = lazyload.config(checkpoints.make("gemma2", work))
    assert differences(config, config, "X") == []
    every = lazyload.config(work / "gemma2", config={"sliding_window": 5, "final_logit_softcapping": None})
    found = differences(every, config, "X")
    assert found[0].startswith("final_softcap is None, X computes")
    assert "mixer.window is 5 in layers 0, 2" in found[1]
