"""What is printed as a cell's last line is short, whatever the model."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import checkpoints, decoders

import lazyload
from lazyload import families
from lazyload.architecture import DecoderConfig
from lazyload.formats.nnx import layout as nnx_layout
from lazyload.models.arrays import arrays_of
from lazyload.models.decoder import Decoder

SHORT = 2400
"""Bytes of a repr at most."""


def golden_config(name: str) -> DecoderConfig:
    values = json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text())["config"]
    return families.find(values).read(values)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3_moe", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_models_and_configs_of_every_type(name: str) -> None:
    config = golden_config(name)
    model = Decoder(config, rngs=None)
    family = families.find(json.loads((checkpoints.GOLDEN / "specs" / f"{name}.json").read_text())["config"])
    assert len(repr(config)) < SHORT, repr(config)
    assert len(repr(model).splitlines()) == 5
    assert repr(model) == str(model)
    assert len(repr(model)) < 400
    assert f"{config.num_layers} layers" in repr(model)
    assert family.name in repr(model)
    assert len(model._repr_html_()) < 6000
    for value in (family, nnx_layout(config), family.stored(config), *nnx_layout(config).tables):
        assert len(repr(value)) < SHORT, repr(value)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "families" / "hub_configs").glob("*.json")), ids=str
)
def test_configs_of_full_size(path: Path) -> None:
    values = json.loads(path.read_text())["config"]
    try:
        config = families.find(values).read(values)
    except lazyload.errors.ConfigError:
        pytest.skip("one that is refused")
    assert len(repr(config)) < SHORT, repr(config)


def test_a_config_says_what_differs_from_the_defaults_and_equal_layers_once() -> None:
    window = replace(decoders.ATTENTION, window=4)
    config = decoders.config(decoders.layer(window), decoders.layer(), decoders.layer(window), decoders.layer())
    local = "Layer(mixer=Attention(num_heads=4, num_kv_heads=2, head_dim=8, rope=Rope(theta=10000.0, dim=8), window=4)"
    assert f"layers=(0, 2: 2 x {local}" in repr(config)
    assert "; 1, 3: 2 x Layer(mixer=" in repr(config)
    assert eval(repr(config.layers[0]), vars(lazyload.architecture)) == config.layers[0]
    assert len(repr(nnx.graphdef(Decoder(config, rngs=None)))) < 80_000


def test_the_family_is_no_part_of_what_a_config_is() -> None:
    config = golden_config("qwen3_moe")
    other = replace(config, family="")
    assert (config.family, config, hash(config)) == ("qwen3_moe", other, hash(other))
    ours, theirs = (nnx.graphdef(Decoder(made, rngs=None)) for made in (config, other))
    assert (ours, hash(ours)) == (theirs, hash(theirs))


def test_what_calls_return(model_folder: Path, cache: Path) -> None:
    converted = lazyload.convert(model_folder, cache_dir=cache, force_convert=True)
    plan = lazyload.plan(model_folder, cache_dir=cache)
    (entry,) = lazyload.Cache(cache).entries()
    (verification,) = lazyload.verify(cache_dir=cache)
    (removal,) = lazyload.Cache(cache).remove(entry.key, dry_run=True)
    target = lazyload.Target(nnx_layout(golden_config("qwen3_moe")), build=lambda config, arrays: arrays)
    values: list[Any] = [converted, plan, entry, entry.manifest, verification, removal, target, lazyload.Storage()]
    for value in [*values, lazyload.last_report(), lazyload.Cache(cache)]:
        assert len(repr(value)) < SHORT, repr(value)
        assert repr(value).startswith(type(value).__name__)
    for value in (plan, entry, entry.manifest, converted):
        assert "824.7 kB" in repr(value)
        assert str(model_folder) in repr(value)
    assert entry.key in repr(entry)
    # Seconds of a stage are for reading: no more digits than anybody needs.
    assert re.search(r", miss in (\d+ ms|\d+\.\d s), key=", repr(lazyload.last_report()))


def test_a_loaded_model_says_where_it_lies(model_folder: Path, cache: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"))
    model = lazyload.from_pretrained(model_folder, mesh=mesh, cache_dir=cache)
    assert repr(model).splitlines() == [
        "Decoder(",
        "  qwen3_moe: 4 layers (4 x attn + moe), embed_dim 64, vocab_size 512",
        "  412,352 parameters, 824.7 kB, bfloat16",
        "  fsdp=4, tp=2: 104.8 kB on each of 8 devices",
        ")",
    ]
    one = lazyload.from_pretrained(model_folder, mesh=jax.make_mesh((1,), ("fsdp",)), cache_dir=cache)
    assert "fsdp=1: 824.7 kB on one device" in repr(one)


def test_a_model_is_printed_wherever_it_is() -> None:
    empty = Decoder(decoders.config(), dtype=jnp.float32, rngs=None)
    model = lazyload.fill(empty, {path: jnp.zeros(array.shape) for path, array in arrays_of(empty).items()})
    assert "on one device" in repr(model)
    printed = []

    def traced(model: Decoder) -> jax.Array:
        printed.append(repr(model))
        return model(jnp.ones((1, 2), jnp.int32))[0]

    nnx.eval_shape(traced, model)
    assert "19,616 parameters, 78.5 kB, float32" in printed[0]
    nnx.update(model, jax.tree.map(np.asarray, nnx.state(model)))
    assert "19,616 parameters" in repr(model)
    model.layers[0].attn.q_proj = nnx.LoRA(32, 2, 32, base_module=model.layers[0].attn.q_proj, rngs=nnx.Rngs(1))
    assert "19,744 parameters" in repr(model)
    assert "Decoder" in repr(nnx.Dict(model=model))


@pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")
def test_treescope_shows_the_config_in_short() -> None:
    treescope = pytest.importorskip("treescope")
    model = Decoder(decoders.config(*[decoders.layer()] * 30), rngs=None)
    assert repr(model.config) in treescope.render_to_text(model)
