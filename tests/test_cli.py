"""The `lazyload` command as typed: what it prints, its exit codes, and how little it imports."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints

import lazyload
from lazyload.cli.values import config_fields


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def command(*words: object, cache: Path, code: int = 0, typed: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1]), "LAZYLOAD_CACHE": str(cache)}
    line = [sys.executable, "-c", "from lazyload.cli import main; main()", *map(str, words)]
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, input=typed)
    assert result.returncode == code, result.stderr
    return result


def test_a_model_s_life(model: Path, cache: Path) -> None:
    plan = command("plan", model, cache=cache).stdout
    assert "layers.*.attn.q_proj.kernel" in plan
    assert "not in the cache" in plan
    assert "has not been converted" in plan
    path = command("convert", model, cache=cache).stdout.strip()
    assert (Path(path) / "_METADATA").exists()
    assert "in the cache" in command("plan", model, cache=cache).stdout.splitlines()[-1]
    listed = command("cache", "ls", cache=cache).stdout
    assert str(model) in listed
    assert "ocdbt+zarr3" in listed
    (entry,) = json.loads(command("cache", "ls", "--json", cache=cache).stdout)
    assert entry["path"] == path
    assert command("cache", "ls", "-q", cache=cache).stdout.strip() == entry["key"]
    assert command("cache", "verify", cache=cache).stdout.endswith("ok\n")
    assert "would free" in command("cache", "rm", model, "--dry-run", cache=cache).stdout
    assert command("cache", "rm", entry["key"][:6], cache=cache, code=1, typed="n\n")
    assert Path(path).exists()
    assert "freed" in command("cache", "rm", model, "-y", cache=cache).stdout
    assert "nothing in" in command("cache", "ls", cache=cache).stdout


def test_a_relative_path_names_the_folder_s_entries(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    command("convert", f"./{model.name}", cache=cache)
    assert "freed" in command("cache", "rm", f"./{model.name}", "-y", cache=cache).stdout


def test_flags_reach_the_checkpoint(model: Path, cache: Path) -> None:
    flags = ["--no-ocdbt", "--no-zarr3", "--dtype", "float32", "--layout", "maxtext-unscanned", "--vocab-size", "640"]
    path = Path(command("convert", model, *flags, cache=cache).stdout.strip())
    embedding = path / "params.params.token_embedder.embedding" / ".zarray"
    assert json.loads(embedding.read_text())["shape"] == [640, 64]
    assert json.loads(embedding.read_text())["dtype"] == "<f4"


def test_a_plan_as_json(model: Path, cache: Path) -> None:
    plan = json.loads(command("plan", model, "--json", cache=cache).stdout)
    assert plan["hit"] is False
    assert plan["parameters"]["embed.embedding"]["axes"] == ["vocab", "embed"]


def test_convert_and_plan_take_what_python_takes(model: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "all" / "text")
    (tmp_path / "all" / "text" / "model.safetensors").rename(tmp_path / "all" / "text" / "model.fp16.safetensors")
    options = ["--subfolder", "text", "--variant", "fp16", "--dtype", "auto", "--strict"]
    options += ["--config", "note=remark", "--config", "note=null", "--config", '{"rope_theta": 1e5}']
    plan = json.loads(command("plan", tmp_path / "all", *options, "--json", cache=cache).stdout)
    called = lazyload.plan(
        tmp_path / "all",
        subfolder="text",
        variant="fp16",
        dtype="auto",
        strict=True,
        config={"note": None, "rope_theta": 1e5},
        cache_dir=cache,
    )
    assert plan["key"] == called.key
    command("convert", tmp_path / "all", *options, cache=cache)
    assert lazyload.Cache(cache).entries()[0].key == called.key


def test_dtypes_by_pattern(model: Path, cache: Path) -> None:
    options = ["--dtype", "float16", "--dtype", "*norm*=float32"]
    plan = json.loads(command("plan", model, *options, "--json", cache=cache).stdout)
    dtypes = {path: parameter["dtype"] for path, parameter in plan["parameters"].items()}
    assert (dtypes["final_norm.scale"], dtypes["embed.embedding"]) == ("float32", "float16")
    assert plan["key"] == lazyload.plan(model, cache_dir=cache, dtype={"*norm*": "float32", "*": "float16"}).key
    command("convert", model, *options, cache=cache)
    assert "*norm*=float32 *=float16" in command("cache", "ls", cache=cache).stdout


def test_some_layers(model: Path, cache: Path) -> None:
    plan = json.loads(command("plan", model, "--layers", "1:2", "--json", cache=cache).stdout)
    assert plan["key"] == lazyload.plan(model, cache_dir=cache, layers=range(1, 2)).key
    assert plan["other_layers"]
    assert "skipped, of other layers: " in command("plan", model, "--layers", ":1", cache=cache).stdout
    command("convert", model, "--layers", "1:2", cache=cache)
    assert lazyload.Cache(cache).entries()[0].key == plan["key"]


def test_a_field_of_a_part_is_reached_by_dots() -> None:
    typed = ["a.b=1", "a.c.d=[2, {}]", "a.b=gelu_tanh", 'e="1"', "f=true"]
    assert config_fields(typed) == {"a": {"b": "gelu_tanh", "c": {"d": [2, {}]}}, "e": "1", "f": True}
    assert config_fields([]) is None


def test_what_strict_refuses_is_named_by_the_plan_otherwise(cache: Path, tmp_path: Path) -> None:
    model = checkpoints.make("llama3_tied", tmp_path)
    (file,) = model.glob("*.safetensors")
    save_file({**load_file(file), "v_head.summary.bias": np.zeros(1, np.float32)}, file)
    assert "left aside: 1 tensors" in command("plan", model, cache=cache).stdout
    assert json.loads(command("plan", model, "--json", cache=cache).stdout)["unread"] == ["v_head.summary.bias"]
    assert "v_head.summary.bias" in command("plan", model, "--strict", cache=cache, code=1).stderr


def test_verify_finds_damage_and_says_so_with_its_exit_code(model: Path, cache: Path) -> None:
    path = Path(command("convert", model, "--no-ocdbt", "--no-zarr3", cache=cache).stdout.strip())
    chunk = path / "embed.embedding" / "0.0"
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert "embed.embedding: is crc32:" in command("cache", "verify", cache=cache, code=1).stdout
    (problems,) = json.loads(command("cache", "verify", "--json", cache=cache, code=1).stdout)
    assert problems["problems"]


def test_pruning_takes_what_is_old(model: Path, cache: Path) -> None:
    command("convert", model, cache=cache)
    assert "nothing to remove" in command("cache", "prune", "-y", cache=cache).stdout
    assert "nothing to remove" in command("cache", "prune", "--older-than", "30d", "-y", cache=cache).stdout
    assert "used longest ago" in command("cache", "prune", "--max-size", "1KB", "--dry-run", cache=cache).stdout
    assert "freed" in command("cache", "prune", "--max-size", "1KB", "-y", cache=cache).stdout


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["convert", "/nowhere/model"], 1, "error: /nowhere/model is not a folder"),
        (["cache", "rm", "org/nothing", "-y"], 1, "error: 'org/nothing' is neither a model nor the start of a key"),
        (["cache", "verify", "org/nothing"], 1, "error: 'org/nothing'"),
        (["convert", "x", "--layout", "flax"], 1, "error: layout 'flax' is not known"),
        (["convert", "x", "--layout", "maxtext2"], 2, "maxtext2"),
        (["convert", "x", "--vocab-size", "7"], 2, "maxtext"),
        (["convert", "x", "--dtype", "int8"], 1, "error: dtype 'int8': parameters can be bfloat16"),
        (["convert", "x", "--dtype", "float16", "--dtype", "float32"], 2, "give one DTYPE for all"),
        (["convert", "x", "--dtype", "*=float16", "--dtype", "float32"], 2, "give one DTYPE for all"),
        (["convert", "x", "--dtype", "norm=float16", "--dtype", "norm=float32"], 2, "each pattern once"),
        (["convert", "x", "--dtype", "rooter=float32"], 1, "error: dtype: pattern 'rooter' matches nothing"),
        (["convert", "x", "--dtype", "*norm*=int8"], 1, "error: dtype 'int8'"),
        (["convert", "x", "--dtype", "=float32"], 1, "error: dtype: '' is no pattern"),
        (["plan", "x", "--layers", "2"], 2, "give the first layer and the one behind the last, 0:8"),
        (["plan", "x", "--layers", "0:"], 2, "give the first layer"),
        (["plan", "x", "--layers", "-1:2"], 2, "give the first layer"),
        (["plan", "x", "--layers", "2:2"], 1, "error: layers=range(2, 2): give layers that follow each other"),
        (["plan", "x", "--layers", "0:99"], 1, "error: layers=range(0, 99): the model has"),
        (["convert", "x", "--subfolder", "nowhere"], 1, "nowhere"),
        (["plan", "x", "--variant", "fp16"], 1, "error: "),
        (["plan", "x", "--config", "rope_theta"], 2, "give FIELD=JSON"),
        (["plan", "x", "--config", "a..b=1"], 2, "give FIELD=JSON"),
        (["plan", "x", "--config", "=1"], 2, "give FIELD=JSON"),
        (["plan", "x", "--config", "rope_theta=1e"], 2, "is no JSON"),
        (["plan", "x", "--config", "{'note': None}"], 2, "is no JSON"),
        (["plan", "x", "--config", "note=None"], 2, "is null meant?"),
        (["plan", "x", "--config", "rope_theta=1e999"], 1, "error: config: its values must be those of JSON"),
        (["plan", "x", "--config", "quantization_config=null"], 1, "error: config: quantization_config says"),
        (["plan", "x", "--config", "hidden_size=wide"], 1, "hidden_size"),
        (["cache", "prune", "--older-than", "soon"], 2, "soon"),
        (["cache", "prune", "--max-size", "1.2.3GB"], 2, "1.2.3GB"),
        ([], 2, ""),
    ],
)
def test_mistakes_are_one_message_without_a_traceback(
    words: list[str], code: int, complaint: str, cache: Path, model: Path
) -> None:
    words = [str(model) if word == "x" else word for word in words]
    result = command(*words, cache=cache, code=code)
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr
    assert not cache.exists()


def test_version_and_help(cache: Path) -> None:
    assert command("--version", cache=cache).stdout == f"lazyload {lazyload.__version__}\n"
    assert "convert" in command("--help", cache=cache).stdout


@pytest.mark.parametrize("words", [["cache", "ls"], ["cache", "prune", "-y"], ["plan", "MODEL"]])
def test_looking_imports_neither_jax_nor_tensorstore(words: list[str], model: Path, cache: Path) -> None:
    code = (
        "import sys; from lazyload.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print([name for name in ('jax', 'flax', 'tensorstore', 'orbax', 'huggingface_hub') if name in sys.modules])"
    )
    words = [str(model) if word == "MODEL" else word for word in words]
    environment = os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1]), "LAZYLOAD_CACHE": str(cache)}
    line = [sys.executable, "-c", code, *words]
    result = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
