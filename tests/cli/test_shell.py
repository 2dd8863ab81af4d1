"""The command as a shell sees it: help, completion, exit codes, pipes, signals, and how little it imports."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import checkpoints
from support.command import command, environment
from support.entries import publish

import lazyload
from lazyload.cache.cache import Cache
from lazyload.cli import app, cache_app, completion

COMMANDS = [
    ["convert"],
    ["plan"],
    ["explain"],
    ["export"],
    ["env"],
    ["cache", "ls"],
    ["cache", "rm"],
    ["cache", "prune"],
    ["cache", "verify"],
    ["cache", "info"],
    ["cache", "dir"],
]
MODULE = [sys.executable, "-m", "lazyload"]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    root = tmp_path / "cache"
    publish(root, "org/model")
    publish(root, "org/model", dtype="float32")
    publish(root, "Qwen/Qwen3-8B")
    return root


def test_version(cache: Path) -> None:
    assert command("--version", cache=cache).stdout == f"lazyload {lazyload.__version__}\n"


@pytest.mark.parametrize("words", [[], ["cache"], *COMMANDS], ids=" ".join)
def test_help(words: list[str], cache: Path) -> None:
    said = command(*words, "-h", cache=cache).stdout
    assert command(*words, "--help", cache=cache).stdout == said
    assert f"Usage: lazyload {' '.join(words)}".rstrip() in said
    assert "{" not in said.split("\n")[0]
    assert max(map(len, said.splitlines())) <= 80
    if words in COMMANDS:
        assert f"Examples:\n\n  $ lazyload {' '.join(words)}" in said
    else:
        assert "Exit codes:" in said
        assert not re.search(r"\.\.\.$", said.partition("Commands:")[2], re.MULTILINE), "summaries are one line"


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["cache", "rm"], "cache rm [OPTIONS] [TARGET]..."),
        (["cache", "info"], "cache info [OPTIONS] TARGET..."),
        (["convert"], "convert [OPTIONS] MODEL"),
        (["cache", "ls"], "cache ls [OPTIONS]"),
    ],
)
def test_usage_names_arguments_as_people_write_them(words: list[str], usage: str, cache: Path) -> None:
    assert command(*words, "-h", cache=cache).stdout.splitlines()[0] == f"Usage: lazyload {usage}"


def test_every_command_is_in_the_list() -> None:
    found = [[name] for name in app.places if name != "cache"]
    assert [*found, *(["cache", name] for name in cache_app.places)] == COMMANDS


@pytest.mark.parametrize("words", [[], ["cache"]])
def test_no_command_is_wrong_usage_with_help(words: list[str], cache: Path) -> None:
    ended = command(*words, cache=cache, code=2)
    assert "Usage:" in ended.stdout + ended.stderr


def completed(line: str, cache: Path) -> list[str]:
    """What bash would offer for the last word of a line."""
    words = line.split(" ")
    variables = {"_LAZYLOAD_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = "import sys; sys.argv = ['lazyload']; from lazyload.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment(cache) | variables, capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    return [line.partition(",")[2] for line in ended.stdout.splitlines()]


def test_bash_completes_commands_options_models_and_keys(cache: Path) -> None:
    key = Cache(cache).entries()[0].key
    assert completed("lazyload cache ver", cache) == ["verify"]
    assert completed("lazyload cache prune --sup", cache) == ["--superseded"]
    assert completed("lazyload cache rm ", cache) == ["Qwen/Qwen3-8B", "org/model"]
    assert completed("lazyload convert Qw", cache) == ["Qwen/Qwen3-8B"]
    assert key in completed(f"lazyload cache info {key[:2]}", cache)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_what_a_shell_needs_to_complete_is_printed(shell: str, cache: Path) -> None:
    said = command("--show-completion", shell, cache=cache).stdout
    assert f"_LAZYLOAD_COMPLETE={shell}_complete" in said


def test_completion_offers_models_and_what_a_key_begins_with(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYLOAD_CACHE", str(cache))
    keys = [entry.key for entry in Cache(cache).entries()]
    assert completion.targets("") == completion.models("") == ["Qwen/Qwen3-8B", "org/model"]
    assert completion.targets("org") == ["org/model"]
    assert completion.targets(keys[1][:8]) == [keys[1]]
    assert completion.models(keys[1][:8]) == []
    assert completion.filters("s") == ["size=", "superseded="]


@pytest.mark.parametrize("where", ["s3://bucket/cache", "/nowhere"])
def test_completion_says_nothing_where_there_is_nothing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYLOAD_CACHE", where)
    assert completion.targets("") == completion.models("x") == []


def test_as_a_module(cache: Path) -> None:
    ended = subprocess.run(
        [*MODULE, "cache", "ls", "-q"], env=environment(cache), capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == [entry.key for entry in Cache(cache).entries()]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["cache", "ls"], 0),
        (["cache", "rm", "org/model"], 1),
        (["cache", "verify", "org/nothing"], 1),
        (["cache", "rm"], 2),
        (["nothing"], 2),
    ],
)
def test_exit_codes_of_processes(words: list[str], code: int, cache: Path) -> None:
    ended = subprocess.run(
        [*MODULE, *words], env=environment(cache), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("option", ["--json", "-q"], ids=["more than a buffer holds", "less"])
def test_a_pipe_that_closes_is_no_traceback(option: str, unbuffered: str, tmp_path: Path) -> None:
    for commit in range(1, 10):
        publish(tmp_path, "org/" + "m" * 90, commit=str(commit) * 40)
    with subprocess.Popen(
        [*MODULE, "cache", "ls", option],
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
def test_output_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "lazyload", "cache", "ls"],
            env=environment(tmp_path),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert ended.stderr.startswith("error: what is printed cannot be written: No space left")


def test_a_process_without_an_output_is_no_error(tmp_path: Path) -> None:
    words = f"exec {shlex.quote(sys.executable)} -m lazyload cache ls >&-"
    ended = subprocess.run(["sh", "-c", words], env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    model = checkpoints.make("llama3_tied", tmp_path)
    code = (
        "import signal, sys, time, lazyload; from lazyload.cli import main\n"
        # What is started in the background may begin without it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(*_, **__): print('waiting', flush=True); time.sleep(60)\n"
        "lazyload.convert = wait; sys.argv = ['lazyload', 'convert', sys.argv[1]]; main()"
    )
    line = [sys.executable, "-c", code, str(model)]
    with subprocess.Popen(
        line, env=environment(tmp_path / "cache"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130


def test_what_is_not_for_a_terminal_has_no_colours_and_loses_nothing(tmp_path: Path) -> None:
    name = "org/" + "long-" * 60 + "name"
    publish(tmp_path, name)
    said = subprocess.run(
        [*MODULE, "cache", "ls"],
        env=environment(tmp_path) | {"COLUMNS": "40", "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert name in said
    assert "\x1b" not in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["cache", "ls"],
        ["cache", "prune", "-y"],
        ["cache", "info", "org/model"],
        ["plan", "MODEL"],
        ["explain", "MODEL"],
    ],
    ids=" ".join,
)
def test_looking_imports_neither_jax_nor_tensorstore(words: list[str], cache: Path, tmp_path: Path) -> None:
    heavy = ("jax", "flax", "tensorstore", "orbax", "huggingface_hub")
    code = (
        "import sys; from lazyload.cli import app; app(sys.argv[1:], standalone_mode=False); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    model = checkpoints.make("llama3_tied", tmp_path) if "MODEL" in words else None
    line = [sys.executable, "-c", code, *(str(model) if word == "MODEL" else word for word in words)]
    ended = subprocess.run(line, env=environment(cache), capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
