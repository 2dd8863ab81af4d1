"""`lazyload plan`: a summary, every array, and what a mesh would hold; as text and as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from jax.sharding import AbstractMesh
from support import checkpoints

import lazyload
from lazyload.cli import values


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("gemma2", tmp_path_factory.mktemp("models"))


def plan(*words: object, code: int = 0) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1]), "COLUMNS": "200"}
    line = [sys.executable, "-c", "from lazyload.cli import main; main()", "plan", *map(str, words)]
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    return result.stderr if code else result.stdout


def test_a_summary(model: Path) -> None:
    lines = plan(model).splitlines()
    assert lines[0].endswith("gemma2: family gemma2, layout nnx, 156,736 parameters in 46 arrays, 313.5 kB")
    (row,) = (line for line in lines if line.startswith("layers.*.attn.q_proj.kernel"))
    assert row.split()[1:] == ["4", "64", "x", "4", "x", "16", "bfloat16", "8.2", "kB", "32.8", "kB"]
    assert "mlp 147.5 kB (47.0%), attn 98.3 kB (31.4%), embed 65.5 kB (20.9%), norms 2.2 kB (0.7%)" in lines
    assert "not in the cache:" in lines
    assert len(lines) < 30


def test_every_array(model: Path) -> None:
    lines = plan(model, "--full").splitlines()
    (row,) = (line for line in lines if line.startswith("layers.3.attn.q_proj.kernel"))
    assert row.split()[1:] == ["64x4x16", "bfloat16", "8.2", "kB", "model.layers.3.self_attn.q_proj.weight"]
    assert sum(line.startswith("layers.") for line in lines) == 44


def test_a_mesh(model: Path) -> None:
    wanted = lazyload.plan(model, mesh=AbstractMesh((4, 2), ("fsdp", "tp")))
    said = plan(model, "--mesh", "fsdp=4,tp=2")
    assert str(lazyload.show_sharding(wanted)) in said
    assert "mesh fsdp=4, tp=2: 41.1 kB on each of 8 devices, 313.5 kB in all" in said
    assert "embed:64/fsdp head:4/tp head_dim:16" in said
    assert "  one dimension: final_norm.scale, " in said
    assert "family gemma2, layout nnx, 46 arrays, 313.5 kB, 41.1 kB on each device" in said
    full = plan(model, "--full", "--mesh", "fsdp=4, tp=2")
    assert "layers.0.attn.o_proj.kernel" in full
    assert "tp,-,fsdp" in full
    fields = json.loads(plan(model, "--json", "--mesh", "fsdp=4,tp=2"))
    assert (fields["mesh"], fields["bytes_per_device"]) == ({"fsdp": 4, "tp": 2}, wanted.bytes_per_device)
    assert fields["parameters"]["layers.0.attn.o_proj.kernel"]["spec"] == ["tp", None, "fsdp"]
    assert "spec" not in json.loads(plan(model, "--json"))["parameters"]["embed.embedding"]


@pytest.mark.parametrize("typed", ["8", "fsdp", "fsdp=0", "fsdp=4,fsdp=2", "fsdp=4,", "fsdp=four", ""])
def test_meshes_that_are_none(typed: str) -> None:
    with pytest.raises(click.BadParameter, match="give each axis once, with its size: fsdp=4,tp=2"):
        values.mesh(typed)
