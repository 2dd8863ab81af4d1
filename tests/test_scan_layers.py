"""Models that are loaded with their layers stacked, and with what they compute again: the same ones, from the cache."""

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from support import checkpoints
from support.decoders import TOKENS, run

import lazyload
from lazyload import errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


def test_stacked_layers_are_restored_onto_the_mesh(folder: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tp"), axis_types=(AxisType.Auto,) * 2)
    plain = lazyload.from_pretrained(folder, mesh=mesh, dtype="float32")
    scanned = lazyload.from_pretrained(folder, mesh=mesh, dtype="float32", scan_layers=True, remat="block")
    count = plain.config.num_layers
    assert (scanned.remat, scanned.scan_layers, len(scanned.layers), len(plain.layers)) == ("block", True, 1, count)
    one, many = plain.layers[1].mlp.up_proj.kernel[...], scanned.layers[0].mlp.up_proj.kernel[...]
    np.testing.assert_array_equal(many[1], one)
    assert tuple(many.sharding.spec) == (None, *one.sharding.spec)
    assert scanned.layers[0].mlp_norm.scale[...].sharding.is_fully_replicated
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(run(scanned, TOKENS)[0], run(plain, TOKENS)[0], atol=2e-5)


def test_a_checkpoint_with_stacked_layers_is_one_of_its_own(folder: Path) -> None:
    plain, scanned = (lazyload.plan(folder, layout=layout) for layout in ("nnx", "nnx-scanned"))
    assert plain.key != scanned.key
    assert plain.nbytes == scanned.nbytes
    lazyload.convert(folder, layout="nnx-scanned")
    lazyload.from_pretrained(folder, scan_layers=True)
    assert lazyload.last_report().hit


def test_a_decoder_with_stacked_layers_is_filled(folder: Path) -> None:
    model = lazyload.Decoder(lazyload.config(folder), scan_layers=True, remat="dots", rngs=None)
    assert lazyload.from_pretrained(folder, into=model) is model
    assert model.remat == "dots"
    assert model.attention is None
    loaded = lazyload.from_pretrained(folder, into=model, remat="none", attention="dense")
    assert (loaded.remat, loaded.attention) == ("none", "dense")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scan_layers": True, "layout": lazyload.MaxText()}, "MaxText\\(scan_layers=\\)"),
        ({"scan_layers": "yes"}, "scan_layers='yes'"),
        ({"remat": "full"}, "remat='full': give 'none', 'block' or 'dots'"),
        ({"remat": "block", "layout": lazyload.MaxText()}, "remat='block' is for this library's decoder"),
        ({"attention": "flash"}, "attention='flash': give None, 'dense', 'cudnn', 'splash'"),
        ({"attention": "dense", "layout": lazyload.MaxText()}, "attention='dense' is for this library's decoder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(arguments: dict, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        lazyload.from_pretrained("/nowhere", **arguments)
