"""`lazyload env`: all that a bug report should say, whatever is missing, and no secrets."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.command import command
from support.entries import publish

import lazyload


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    publish(tmp_path / "cache")
    return tmp_path / "cache"


def env(cache: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(command("env", "--json", *options, cache=cache).stdout)
    return found


def test_what_it_says(cache: Path) -> None:
    found = env(cache)
    assert {"python", "lazyload", "jax", "flax", "tensorstore", "orbax-checkpoint"} <= found["versions"].keys()
    assert found["versions"]["lazyload"] == lazyload.__version__
    assert found["devices"] == {"backend": "cpu", "devices": ["8 x cpu"], "processes": 1}
    assert found["cache"] | {"free": "", "file system": ""} == {
        "root": str(cache),
        "shared": [],
        "exists": True,
        "writable": True,
        "file system": "",
        "locks": "yes",
        "free": "",
        "entries": 1,
        "unusable": 0,
        "size": found["cache"]["size"],
    }
    assert found["cache"]["file system"]
    assert found["hub"]["endpoint"].startswith("http://127.0.0.1")
    assert found["environment"]["LAZYLOAD_CACHE"] == str(cache)


def test_a_block_to_paste(cache: Path) -> None:
    said = command("env", "--timeout", "0", cache=cache).stdout
    assert f"\n  lazyload: {lazyload.__version__}\n" in said
    assert "\ndevices:\n  error: not asked\n" in said
    assert f"\n  root: {cache}\n" in said


def test_secrets_are_not_shown(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("HF_API_KEY", "hf_verysecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:verysecret@proxy:8080")
    monkeypatch.setenv("LAZYLOAD_CACHE", "s3://me:verysecret@bucket/cache")
    said = command("env", "--timeout", "0", cache=cache).stdout + json.dumps(env(cache, "--timeout", "0"))
    assert "verysecret" not in said
    found = env(cache, "--timeout", "0")
    assert (found["environment"]["HF_TOKEN"], found["hub"]["token"]) == ("set", "set")
    assert found["environment"]["HTTPS_PROXY"] == "http://proxy:8080"


def test_nothing_that_is_missing_keeps_it_from_answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: 1 / 0)
    found = env(tmp_path / "none")
    assert "abacus" in found["devices"]["error"]
    assert found["hub"] == {"error": "ZeroDivisionError: division by zero"}
    assert found["cache"]["exists"] is False
    assert found["cache"]["locks"].startswith("not tried")
    assert not (tmp_path / "none").exists()


def test_a_cache_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "error" in env(Path("https://host/cache"), "--timeout", "0")["cache"]
    assert env(tmp_path / "file", "--timeout", "0")["cache"]


def test_devices_that_do_not_answer_are_not_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def never(*arguments: Any, timeout: float | None = None, **options: Any) -> Any:
        if timeout is None:
            # Python's own question, once in a process, what machine this is.
            return run(*arguments, **options)
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess, "run", never)
    said = env(cache, "--timeout", "0.5")["devices"]["error"]
    assert said == "JAX did not find its devices in 0.5 s; another process may hold them"
