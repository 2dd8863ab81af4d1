"""Every golden checkpoint, loaded as a user loads it, says what transformers says of the same bytes.

On one device and on eight, whole and token by token.
"""

import math
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
LOGITS = {
    "whole": lambda model, tokens: run(model, tokens)[0],
    "token by token": lambda model, tokens: decode_scanned(model, tokens, cache_size=tokens.shape[1]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(autouse=True)
def _exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def test_all_cases_are_here() -> None:
    assert len(checkpoints.NAMES) == 85


# In this order, and as the number of names is odd, every fourth case is one of each checkpoint.
@pytest.mark.parametrize("name", checkpoints.NAMES)
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("sizes", [(1, 1), (4, 2)], ids=str)
def test_logits(name: str, kind: str, sizes: tuple[int, int], folder: Path) -> None:
    model = checkpoints.make(name, folder)
    tokens, expected = checkpoints.reference(name)
    tolerance = TOLERANCES.get(name, TOLERANCE)
    mesh = jax.make_mesh(sizes, ("fsdp", "tp"), devices=jax.devices()[: math.prod(sizes)])
    loaded = lazyload.from_pretrained(model, mesh=mesh, dtype="float32", cache_dir=folder / "cache")
    found = LOGITS[kind](loaded, jnp.asarray(tokens))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
