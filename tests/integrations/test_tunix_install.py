"""`lazyload.integrations.tunix.install()`: Tunix's own entry points go through the cache, and are put back."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from support import checkpoints
from support.hub import Hub

import lazyload
from lazyload.errors import AccessDeniedError, ArgumentError, ConfigError, IntegrationError
from lazyload.integrations.run import install_named

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("tunix") is None, reason="Tunix is not installed"),
    # Tunix's own, and qwix's.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MODEL = "Qwen/Qwen3-0.6B"
ROOT = Path(__file__).parents[2]
SIZES = {"num_layers": 4, "vocab_size": 512, "embed_dim": 64, "hidden_dim": 96, "num_heads": 4, "head_dim": 16}


@pytest.fixture
def folder(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Qwen 3 under the id of a published one; Tunix knows models by id, and takes their sizes from a table."""
    folder = checkpoints.make("qwen3", tmp_path)
    hub.add(MODEL, folder)
    monkeypatch.setenv("LAZYLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked for a token"))
    monkeypatch.setattr(model_config(), "qwen3_0p6b", classmethod(small))
    return folder


def model_config() -> Any:
    from tunix.models.qwen3.model import ModelConfig

    return ModelConfig


def small(cls: Any) -> Any:
    return cls(**SIZES, num_kv_heads=2, rope_theta=1_000_000, norm_eps=1e-6)


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(value.get_value()) for path, value in flat}


def replaced() -> list[Any]:
    from tunix.models import automodel, safetensors_loader

    return [safetensors_loader.load_and_create_model, automodel.download_model]


def test_auto_model_goes_through_the_cache_until_undone(folder: Path, hub: Hub) -> None:
    from tunix.models import automodel
    from tunix.models.qwen3 import params

    from lazyload.integrations import tunix

    originals = replaced()
    with tunix.install(progress=False) as installed:
        for hit in (False, True):
            model, path = automodel.AutoModel.from_pretrained(MODEL, mesh(), remat_config=2)
            assert (type(model).__name__, path, model.config.remat_config) == ("Qwen3", MODEL, 2)
            assert lazyload.last_report().hit is hit
        assert hub.told == []
        other = params.create_model_from_safe_tensors(str(folder), small(model_config()), dtype=jax.numpy.float32)
        assert arrays_of(other)["final_norm.w"].dtype == np.float32
        assert len(other.final_norm.w.get_value().sharding.device_set) == 1
        config = small(model_config())
        config.num_heads = 8
        with pytest.raises(ConfigError, match=r"num_heads is 8, config.json means 4"):
            params.create_model_from_safe_tensors(str(folder), config, mesh())
    assert replaced() == originals
    installed.undo()
    theirs = params.create_model_from_safe_tensors(str(folder), small(model_config()), mesh())
    ours = arrays_of(model)
    for name, array in arrays_of(theirs).items():
        np.testing.assert_array_equal(ours[name], array)


def test_the_model_source_of_tunix_s_command_line(folder: Path) -> None:
    from tunix.cli.utils import model as cli

    from lazyload.integrations import tunix

    config = {
        "model_name": "qwen3-0.6b",
        "model_id": MODEL,
        "model_source": "huggingface",
        "model_download_path": "/nowhere",
        "model_display": False,
    }
    with tunix.install(progress=False):
        model, tokenizer = cli.create_model(config, {"tokenizer_path": MODEL}, mesh())
    assert (type(model).__name__, tokenizer) == ("Qwen3", MODEL)
    assert not lazyload.last_report().hit


def test_a_gated_model_without_a_token_is_our_error(folder: Path, hub: Hub) -> None:
    from tunix.models import automodel

    from lazyload.integrations import tunix

    hub.gated.add(MODEL)
    with tunix.install(progress=False), pytest.raises(AccessDeniedError):
        automodel.AutoModel.from_pretrained(MODEL, mesh())


def test_what_is_none_of_the_hub_s_stays_tunix_s(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tunix.models import automodel, safetensors_loader
    from tunix.models.qwen3 import model as qwen3
    from tunix.models.qwen3 import params

    from lazyload.integrations import tunix

    class Mine(qwen3.Qwen3):  # type: ignore[misc]
        pass

    with tunix.install(progress=False):
        assert automodel.download_model("gs://there", None, automodel.ModelSource.GCS) == "gs://there"
        mapping, stack = params._get_key_and_transform_mapping, params._stack_experts
        mine = safetensors_loader.load_and_create_model(
            str(folder), Mine, small(model_config()), mapping, mesh(), stack
        )
    assert type(mine) is Mine
    assert "Mine is no class of Tunix: its own loader reads" in caplog.text


def test_another_release_is_an_error_and_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunix.models import automodel

    from lazyload.integrations import tunix

    originals = replaced()
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.2.0")
    with pytest.raises(IntegrationError, match=r"Tunix 0.2.0 is installed, whose inside is not known; known are 0.1.7"):
        tunix.install()
    monkeypatch.undo()
    monkeypatch.setattr(automodel, "download_model", lambda model_id: model_id)
    with pytest.raises(IntegrationError, match=r"download_model has parameters model_id, not .*versions 0.1.7"):
        tunix.install()
    assert replaced()[0] is originals[0]
    monkeypatch.delattr(automodel, "download_model")
    with pytest.raises(IntegrationError, match=r"tunix.models.automodel has no function download_model"):
        tunix.install()
    monkeypatch.undo()
    assert replaced() == originals


def test_what_was_replaced_later_is_undone_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from lazyload.integrations import tunix

    originals = replaced()
    first = tunix.install()
    second = tunix.install()
    with pytest.raises(IntegrationError, match=r"load_and_create_model has been replaced again; undo that first"):
        first.undo()
    second.undo()
    first.undo()
    first.undo()
    assert replaced() == originals


def test_the_variable_installs_for_a_program_that_is_not_changed(folder: Path, hub: Hub, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import sys, jax\n"
        "from tunix.models import automodel, safetensors_loader\n"
        "from tunix.models.qwen3.model import ModelConfig\n"
        f"sizes = {SIZES}\n"
        "ModelConfig.qwen3_0p6b = classmethod(lambda cls: cls(**sizes, num_kv_heads=2, rope_theta=1, norm_eps=1e-6))\n"
        "mesh = jax.make_mesh((4, 2), ('fsdp', 'tp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)\n"
        "model, path = automodel.AutoModel.from_pretrained(sys.argv[1], mesh)\n"
        "print(__name__, sys.argv, type(model).__name__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAZYLOAD_INSTALL": "tunix", "LAZYLOAD_LOG": "info"}
    command = [sys.executable, "-m", "lazyload.integrations.run", str(program), MODEL]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"__main__ {[str(program), MODEL]} Qwen3"
    assert f"{MODEL}: " in done.stderr


def test_a_variable_that_names_nothing_known_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"LAZYLOAD_INSTALL=tunix,trl: there is no trl; there are maxtext, tunix"):
        install_named("tunix,trl")
    with pytest.raises(ArgumentError, match=r"set LAZYLOAD_INSTALL to"):
        install_named(" , ")
