"""Every golden checkpoint, loaded as a user loads it, says what transformers says of the same bytes.

On one device and on eight, whole and token by token: of these four programs every eighth case runs all, and the others
two: which ones, `LAZYLOAD_SEED` decides, a number. `LAZYLOAD_TESTS=whole` runs all four of every case.
"""

import math
import os
from collections.abc import Mapping
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
ALL, WHOLE, STEPS = tuple(LOGITS), ("whole",), ("token by token",)


def programs(name: str) -> Mapping[tuple[int, int], tuple[str, ...]]:
    """What a case runs on meshes of one device and of eight."""
    number = checkpoints.NAMES.index(name) + int(os.environ.get("LAZYLOAD_SEED", "0"))
    if os.environ.get("LAZYLOAD_TESTS") == "whole" or number % 8 == 7:
        return {(1, 1): ALL, (4, 2): ALL}
    alone, sharded = (STEPS, WHOLE) if number % 2 else (WHOLE, STEPS)
    return {(1, 1): alone, (4, 2): sharded}


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
    for sizes, kinds in programs(name).items():
        mesh = jax.make_mesh(sizes, ("fsdp", "tp"), devices=jax.devices()[: math.prod(sizes)])
        loaded = lazyload.from_pretrained(model, mesh=mesh, dtype="float32", cache_dir=folder / "cache")
        for kind in kinds:
            found = LOGITS[kind](loaded, jnp.asarray(tokens))
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=f"{kind}, {mesh.shape}")
    assert lazyload.last_report().hit
