"""The commands that take a model, as typed: `convert`, `plan` and `explain`."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import checkpoints, large
from support.command import command

import lazyload
from lazyload.cli.values import config_fields


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llama3_tied", tmp_path_factory.mktemp("models"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


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
    assert command("cache", "ls", cache=cache).stdout == f"nothing in {cache}\n"


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


def test_the_layout_of_tunix_s_classes(model: Path, cache: Path) -> None:
    plan = json.loads(command("plan", model, "--layout", "tunix", "--json", cache=cache).stdout)
    assert plan["parameters"]["layers.0.attn.q_proj.w"]["axes"] == ["embed", "head", "head_dim"]


def test_a_plan_says_what_hosts_read(model: Path, cache: Path) -> None:
    asked = ("plan", model, "--mesh", "fsdp=4", "--hosts")
    size = json.loads(command("plan", model, "--json", cache=cache).stdout)["nbytes"]
    assert "2 hosts together read" in command(*asked, "2", cache=cache).stdout
    reads = json.loads(command(*asked, "4", "--json", cache=cache).stdout)["bytes_read"]
    assert size <= reads["together"] <= reads["apart"] <= 4 * size
    assert "a mesh of 4 devices" in command(*asked, "3", cache=cache, code=1).stderr


@pytest.mark.parametrize("name", ["Llama-3.3-70B-Instruct", "DeepSeek-V3"])
def test_a_large_fleet_reads_a_large_model_about_once(name: str, tmp_path: Path) -> None:
    published = json.loads((Path(__file__).parents[1] / "families" / "hub_configs" / f"{name}.json").read_text())
    # All layers are of the same few shapes, and those of experts have the most arrays.
    config = {**published["config"], "num_hidden_layers": 4, "quantization_config": None}
    model = large.write_headers(tmp_path, config)
    told = command("plan", model, "--mesh", "fsdp=256", "--hosts", "64", cache=tmp_path / "cache").stdout
    together, apart = (float(times) for times in re.findall(r"\(([\d.]+) times all arrays\)", told))
    assert 1.0 <= together < 1.2 < apart


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


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["convert", "/nowhere/model"], 1, "error: /nowhere/model is not a folder"),
        (["convert", "x", "--layout", "flax"], 1, "error: layout 'flax' is not known"),
        (["convert", "x", "--layout", "maxtext2"], 2, "maxtext2"),
        (["convert", "x", "--vocab-size", "7"], 2, "maxtext"),
        (["export", "x", "--to", "y", "--like", "x", "--vocab-size", "7"], 2, "maxtext"),
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
        (["explain", "x", "--layers", "2"], 2, "give the first layer"),
        (["explain", "x", "--dtype", "int8"], 1, "error: dtype 'int8'"),
        (["explain", "/nowhere/model"], 1, "error: /nowhere/model is not a folder"),
        (["convert"], 2, "Missing argument"),
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


def test_convert_says_what_it_is_asked_to(model: Path, cache: Path) -> None:
    assert command("convert", model, "--dry-run", cache=cache).stdout == f"would convert {model}: 312.4 kB\n"
    key = command("convert", model, "--dry-run", "-q", cache=cache).stdout.strip()
    planned = json.loads(command("convert", model, "--dry-run", "--json", cache=cache).stdout)
    assert planned == {"key": key, "converted": True, "nbytes": 312448}
    assert not cache.exists()
    made = command("convert", model, "-q", cache=cache)
    assert (Path(made.stdout.strip()).is_dir(), made.stderr) == (True, "")
    assert command("convert", model, "--dry-run", cache=cache).stdout == f"{model} is in the cache\n"
    again = json.loads(command("convert", model, "--json", cache=cache).stdout)
    assert again == {"path": made.stdout.strip(), "key": key, "converted": False, "nbytes": 312448}
    assert "hit" in command("convert", model, cache=cache).stderr
    assert "would convert" in command("convert", model, "--dry-run", "--force", cache=cache).stdout
    assert json.loads(command("convert", model, "--force", "--json", cache=cache).stdout)["converted"]


def test_explain_names_the_fields_that_differ(model: Path, cache: Path) -> None:
    assert command("explain", model, cache=cache).stdout == f"miss: {model} has not been converted into {cache}\n"
    path = command("convert", model, "-q", cache=cache).stdout.strip()
    key = Path(path).parent.name
    said = command("explain", model, "--dtype", "float32", cache=cache).stdout
    assert said.startswith("miss: this call needs ")
    assert f"{key[:8]}  nnx, bfloat16, 312.4 kB" in said
    assert re.search(r"dtype +float32 +bfloat16", said)
    assert "mapping" not in said
    assert command("explain", model, "--dtype", "float32", "-q", cache=cache).stdout == ""
    assert command("explain", model, "-q", cache=cache).stdout.strip() == path
    hit = command("explain", model, cache=cache).stdout
    assert hit.startswith(f"hit: this call needs {key[:8]}")
    assert "this call uses it" in hit


def test_explain_says_what_follows_from_other_fields_only_when_asked(model: Path, cache: Path) -> None:
    command("convert", model, cache=cache)
    layout = ["--layout", "maxtext"]
    assert re.search(r"layout +maxtext +nnx", command("explain", model, *layout, cache=cache).stdout)
    assert "mapping" not in command("explain", model, *layout, cache=cache).stdout
    said = command("explain", model, *layout, "-v", cache=cache).stdout
    assert re.search(r"mapping +[0-9a-f]{64} +[0-9a-f]{64} +converted in another way", said)


def test_explain_as_json(model: Path, cache: Path) -> None:
    command("convert", model, cache=cache)
    explained = json.loads(command("explain", model, "--dtype", "float32", "--json", cache=cache).stdout)
    (entry,) = explained["entries"]
    assert (explained["hit"], entry["hit"], entry["damage"]) == (False, False, "")
    assert entry["differences"] == [{"field": "dtype", "wanted": "float32", "found": "bfloat16", "meaning": ""}]
    assert explained["key"] == lazyload.plan(model, dtype="float32", cache_dir=cache).key


def test_explain_names_what_cannot_be_used(model: Path, cache: Path) -> None:
    path = Path(command("convert", model, "-q", cache=cache).stdout.strip())
    (path.parent / "manifest.json").write_text("{}")
    assert "cannot be used: " in command("explain", model, cache=cache).stdout
