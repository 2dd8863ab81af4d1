"""Every golden checkpoint, loaded as a user loads it, says what transformers says of the same bytes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import checkpoints
from support.decoders import decode_scanned, run

import lazyload

TOLERANCE = 2e-4
# The query and the key of one row's first token are almost orthogonal, and the norm of their product undoes that it is
# small: rounding counts a thousandfold there, whose order is the compiler's choice.
TOLERANCES = {"qwen3_next_8": 4e-4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def test_all_cases_are_here() -> None:
    assert len(checkpoints.NAMES) == 85


@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_logits(name: str, folder: Path) -> None:
    model = checkpoints.make(name, folder)
    tokens, expected = checkpoints.reference(name)
    tolerance = TOLERANCES.get(name, TOLERANCE)
    meshes = {
        "one device": jax.make_mesh((1,), ("fsdp",), devices=jax.devices()[:1]),
        "fsdp=4,tp=2": jax.make_mesh((4, 2), ("fsdp", "tp")),
    }
    for place, mesh in meshes.items():
        loaded = lazyload.from_pretrained(model, mesh=mesh, dtype="float32", cache_dir=folder / "cache")
        whole, _ = run(loaded, jnp.asarray(tokens))
        np.testing.assert_allclose(whole, expected, rtol=0, atol=tolerance, err_msg=place)
        steps = decode_scanned(loaded, jnp.asarray(tokens), cache_size=tokens.shape[1])
        np.testing.assert_allclose(steps, expected, rtol=0, atol=tolerance, err_msg=f"{place}, token by token")
    assert lazyload.last_report().hit
