"""`lazyload cache verify`, with and without `--repair`: what it says of damage, and its exit codes."""

import json
import shutil
from pathlib import Path

import pytest
from support import checkpoints
from support.command import command

FILES = ["--no-ocdbt", "--no-zarr3"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.make("llama3_tied", tmp_path / "models")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def damaged(model: Path, cache: Path) -> Path:
    """The folder of a damaged entry, beside a sound one."""
    command("convert", model, "--dtype", "float32", cache=cache)
    path = Path(command("convert", model, *FILES, "-q", cache=cache).stdout.strip())
    chunk = path / "embed.embedding" / "0.0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    return path.parent


def test_all_is_well(model: Path, cache: Path) -> None:
    command("convert", model, cache=cache)
    key = command("cache", "ls", "-q", cache=cache).stdout.strip()
    for options in ([], ["--repair"], ["--repair", "--dry-run"]):
        assert command("cache", "verify", *options, cache=cache).stdout == f"{key[:8]}  {model}: ok\n"
    assert command("cache", "verify", "-q", cache=cache).stdout == ""
    assert str(cache) in command("cache", "verify", "-v", cache=cache).stdout
    (found,) = json.loads(command("cache", "verify", key, "--json", cache=cache).stdout)
    assert Path(found.pop("folder")).name == key
    assert found == {"key": key, "model": str(model), "problems": []}


def test_damage_is_named_and_makes_the_exit_code_1(damaged: Path, cache: Path) -> None:
    said = command("cache", "verify", cache=cache, code=1).stdout
    assert "embed.embedding: is crc32c:" in said
    assert ": ok\n" in said
    found = json.loads(command("cache", "verify", "--json", cache=cache, code=1).stdout)
    assert sorted(bool(each["problems"]) for each in found) == [False, True]
    assert command("cache", "verify", "-q", cache=cache, code=1).stdout == f"{damaged.name}\n"
    assert command("cache", "verify", damaged.name[:8], cache=cache, code=1).stdout.count("\n") == 1


def test_repair_converts_again(damaged: Path, cache: Path) -> None:
    planned = command("cache", "verify", "--repair", "--dry-run", cache=cache, code=1).stdout
    assert "would be converted again" in planned
    assert "converted again" in command("cache", "verify", "--repair", cache=cache).stdout
    assert command("cache", "verify", cache=cache).stdout.count(": ok\n") == 2


def test_repair_removes_what_cannot_be_converted_again(damaged: Path, cache: Path) -> None:
    manifest = damaged / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-200])
    repaired = json.loads(command("cache", "verify", damaged.name, "--repair", "--json", cache=cache).stdout)
    (found,) = repaired
    assert (found["key"], found["outcome"]) == (damaged.name, "removed")
    assert "its manifest does not say what it was made of" in found["reason"]
    assert not damaged.exists()


def test_what_stays_damaged_makes_the_exit_code_1(damaged: Path, model: Path, cache: Path) -> None:
    shutil.rmtree(model)
    said = command("cache", "verify", "--repair", cache=cache, code=1).stdout
    assert f"kept: {model} is not a folder" in said
    assert damaged.exists()


def test_a_dry_run_is_for_repairing(cache: Path) -> None:
    assert "--dry-run" in command("cache", "verify", "--dry-run", cache=cache, code=2).stderr
