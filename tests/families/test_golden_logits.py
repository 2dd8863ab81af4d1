"""Every golden checkpoint, loaded as a user loads it, says what transformers says of the same bytes.

On one device and on eight, whole and token by token: of these four programs every eighth case runs all, and the others
one: which one, `LAZYLOAD_SEED` decides, a number. `LAZYLOAD_TESTS=whole` runs all four of every case.
"""

import itertools
import math
import os
from collections.abc import Sequence
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
PROGRAMS = tuple(itertools.product([(1, 1), (4, 2)], LOGITS))


def programs(name: str) -> Sequence[tuple[tuple[int, int], str]]:
    """What a case runs: the sizes of a mesh, and how tokens are given."""
    number = checkpoints.NAMES.index(name) + int(os.environ.get("LAZYLOAD_SEED", "0"))
    if os.environ.get("LAZYLOAD_TESTS") == "whole" or number % 8 == 7:
        return PROGRAMS
    return PROGRAMS[number % 4 : number % 4 + 1]


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
    for sizes, kind in programs(name):
        mesh = jax.make_mesh(sizes, ("fsdp", "tp"), devices=jax.devices()[: math.prod(sizes)])
        loaded = lazyload.from_pretrained(model, mesh=mesh, dtype="float32", cache_dir=folder / "cache")
        found = LOGITS[kind](loaded, jnp.asarray(tokens))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=f"{kind}, {mesh.shape}")
