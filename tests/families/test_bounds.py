"""Sizes in `config.json` are held against what is stored before anything is made of that size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import checkpoints

import lazyload
from lazyload import errors

HUGE: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
    ("gemma3", {"num_hidden_layers": 10**9}, "text_config: num_hidden_layers"),
    ("llama3", {"num_hidden_layers": 4000}, "do not belong together"),
    ("qwen3", {"vocab_size": 10**8}, "do not belong together"),
    ("qwen3_moe", {"num_experts": 10**5}, "num_experts = 100000"),
    ("gemma4_a4b", {"num_experts": 16_000}, "do not belong together"),
    ("gemma4_e2b", {"hidden_size_per_layer_input": 10**8}, "do not belong together"),
    ("gemma4_e2b", {"vocab_size_per_layer_input": 10**8}, "do not belong together"),
    ("mixtral", {"num_local_experts": 16_000}, "do not belong together"),
    ("deepseek_v3", {"n_routed_experts": 16_000}, "do not belong together"),
    ("qwen3_moe", {"num_experts": 16_000, "num_hidden_layers": 4000}, "64000000 experts"),
    ("llama3", {"intermediate_size": 2**31 - 1}, "do not belong together"),
]

LIMITS: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3", {"rope_theta": 0, "rope_parameters": None}, "rope_theta = 0.0 must be positive"),
    ("llama3", {"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor = 0 must be positive"),
    ("phi3", {"partial_rotary_factor": 0}, "partial_rotary_factor = 0.0 makes 0 of 16"),
    ("qwen3", {"rms_norm_eps": -1}, "rms_norm_eps = -1.0 must be positive"),
    ("granite", {"logits_scaling": 0}, "logits_scaling = 0.0 must be positive"),
    ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar = -1.0 must be positive"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9, but num_experts = 8"),
    ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9, but num_local_experts"),
    ("gpt_oss", {"num_experts_per_tok": 99}, "num_experts_per_tok = 99, but num_local_experts"),
    ("deepseek_v2", {"num_experts_per_tok": 99}, "num_experts_per_tok = 99, but n_routed_experts"),
    ("qwen3", {"quantization_config": "fp8"}, "quantization_config = 'fp8' is no object"),
]

PATHS = (Path(lazyload.__file__).parents[1], Path(__file__).parents[1])


def with_fields(kind: str, folder: Path, changes: dict[str, Any]) -> Path:
    made = checkpoints.make(kind, folder)
    values = json.loads((made / "config.json").read_text())
    values.get("text_config", values).update(changes)
    (made / "config.json").write_text(json.dumps(values))
    return made


@pytest.mark.parametrize(("kind", "changes", "message"), LIMITS, ids=str)
def test_a_number_out_of_its_limits_is_named(kind: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        lazyload.plan(with_fields(kind, tmp_path, changes), cache_dir=tmp_path / "cache")
    assert message in str(caught.value)
    assert "config.json: " in str(caught.value)


@pytest.mark.parametrize(("kind", "changes", "message"), HUGE, ids=str)
def test_huge_sizes_are_refused_in_little_memory(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = with_fields(kind, tmp_path, changes)
    code = (
        "import resource, sys, time\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "import lazyload\n"
        "started = time.process_time()\n"
        "try:\n    lazyload.plan(sys.argv[1], cache_dir=sys.argv[2])\n"
        "except lazyload.errors.ConfigError as error:\n    print(error)\n"
        "seconds = time.process_time() - started\n"
        "from support.memory import peak_megabytes\n"
        "print(seconds, peak_megabytes(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert message in result.stdout
    seconds, megabytes = map(float, result.stderr.split()[-2:])
    assert megabytes < 300
    assert seconds < 10


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_name_that_stands_twice_in_an_object(name: str, tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    text = (folder / name).read_text().rstrip()
    first = json.dumps(next(iter(json.loads(text))))
    (folder / name).write_text(f"{text[:-1]}, {first}: 1}}")
    with pytest.raises(errors.CorruptSourceError, match=f"{name} is not JSON .*stands in it twice"):
        lazyload.plan(folder, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
def test_what_is_no_number(number: str, tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    text = (folder / "config.json").read_text().rstrip()
    (folder / "config.json").write_text(f'{text[:-1]}, "initializer_range_2": {number}}}')
    with pytest.raises(errors.CorruptSourceError, match="is no number"):
        lazyload.plan(folder, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_only_regular_files_are_opened(name: str, tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(errors.SourceNotFoundError, match=f"{name} is not a regular file"):
        lazyload.plan(folder, cache_dir=tmp_path / "cache")


def test_files_of_json_are_not_read_whatever_their_size(tmp_path: Path) -> None:
    folder = checkpoints.make("qwen3", tmp_path)
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(errors.CorruptSourceError, match=r"config\.json has 1099511627776 bytes"):
        lazyload.plan(folder, cache_dir=tmp_path / "cache")


def test_messages_are_of_a_length_that_can_be_read(tmp_path: Path) -> None:
    folder = with_fields("qwen3", tmp_path, {"model_type": "x" * 1_000_000})
    with pytest.raises(errors.UnknownArchitectureError) as caught:
        lazyload.plan(folder, cache_dir=tmp_path / "cache")
    assert len(str(caught.value)) < 10_000
