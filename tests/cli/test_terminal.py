"""What a terminal shows, captured by tmux: columns that fit, colours, and nothing that is garbage."""

import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support import checkpoints
from support.command import environment
from support.entries import COMMITS, publish

import lazyload
from lazyload.cache.cache import Cache

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

SECONDS = 60
LONG = "some-organisation/A-Model-Of-A-Name-That-Is-Longer-Than-A-Column-Should-Be-8B-Instruct"

Capture = Callable[..., str]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    root = tmp_path / "cache"
    publish(root, LONG, nbytes=5000, used=90)
    publish(root, LONG, nbytes=6000, used=30, commit=COMMITS[1])
    publish(root, "org/model", nbytes=7000, used=3 * 86400 + 60, layout="maxtext")
    return root


@pytest.fixture
def capture(cache: Path, tmp_path: Path) -> Iterator[Capture]:
    """What a terminal shows when a command has ended; with `colours` with the signs that make them."""
    server = ["tmux", "-L", f"lazyload-{uuid.uuid4().hex}", "-f", "/dev/null"]

    def captured(
        *words: str, width: int, colours: bool = False, asked: str = "", keys: Sequence[str] = (), **variables: str
    ) -> str:
        done = tmp_path / uuid.uuid4().hex
        command = shlex.join([sys.executable, "-m", "lazyload", *words])
        ending = f"echo exit code $? > {shlex.quote(str(done))}; sleep {SECONDS}"
        # Ctrl-C is for the command alone.
        line = f"trap : INT; {command}; {ending}"
        size = ["-x", str(width), "-y", "50"]
        named = environment(cache) | {"TERM": "xterm-256color"} | variables
        # Who runs the tests has a terminal of another size.
        named = {name: value for name, value in named.items() if name not in ("COLUMNS", "LINES")}
        # The server has the environment of the first call.
        settings = [part for name, value in variables.items() for part in ("-e", f"{name}={value}")]
        session = ["new-session", "-d", "-s", done.name, *settings, *size, "sh", "-c", line]
        subprocess.run([*server, *session], env=named, check=True)

        def shown() -> str:
            pane = ["capture-pane", "-p", "-t", done.name, *(["-e"] if colours else [])]
            return subprocess.run([*server, *pane], capture_output=True, text=True, check=True).stdout.rstrip()

        if keys:
            wait_for(lambda: asked in shown())
            subprocess.run([*server, "send-keys", "-t", done.name, *keys], check=True)
        wait_for(lambda: done.exists() and done.read_text().endswith("\n"))
        return shown() + (f"\n{done.read_text().strip()}" if keys else "")

    yield captured
    subprocess.run([*server, "kill-server"], check=False, capture_output=True)


def wait_for(condition: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < SECONDS
        time.sleep(0.1)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_list_fits(width: int, capture: Capture, cache: Path) -> None:
    lines = capture("cache", "ls", width=width).splitlines()
    entries = Cache(cache).entries()
    table = lines[: 1 + len(entries)]
    assert table[0].split()[:2] == ["key", "model"]
    for line, entry in zip(table[1:], entries, strict=True):
        assert line.startswith(f"{entry.key[:8]}  ")
        model = line.split()[1]
        start, _, end = model.partition("…")
        assert entry.model.startswith(start)
        assert entry.model.endswith(end)
    assert [line.rstrip().endswith("superseded") for line in table] == [False, False, True, False]
    assert f"3 in {cache}, 18.0 kB" in "".join(lines)
    assert "lazyload cache prune --superseded" in "".join(lines)
    if width == 200:
        assert LONG in table[2]
        shown = f"{entries[0].key[:8]} org/model main@1111111 maxtext bfloat16 ocdbt+zarr3 7.0 kB 3 days ago"
        assert " ".join(table[1].split()) == shown


def test_a_terminal_has_colours_unless_they_are_not_wanted(capture: Capture) -> None:
    cyan, green, yellow = "\x1b[36m", "\x1b[32m", "\x1b[33m"
    shown = capture("cache", "ls", width=100, colours=True)
    assert all(colour in shown for colour in (cyan, green, yellow))
    plain = capture("cache", "ls", width=100, colours=True, NO_COLOR="1")
    assert not any(colour in plain for colour in (cyan, green, yellow))
    assert "org/model" in plain


@pytest.mark.parametrize(
    ("keys", "ending", "left"),
    [
        (["y", "Enter"], "freed 5.2 kB\nexit code 0", 2),
        (["n", "Enter"], "Aborted!\nexit code 1", 3),
        (["C-c"], "interrupted\nexit code 130", 3),
    ],
)
def test_a_question_takes_an_answer(keys: list[str], ending: str, left: int, capture: Capture, cache: Path) -> None:
    key = Cache(cache).entries()[1].key
    shown = capture("cache", "rm", key, width=80, asked="Remove 1 and free", keys=keys)
    assert "kB? [y/N]: " in shown
    assert re.sub(r"\d\.\d kB\n", "5.2 kB\n", shown).endswith(ending)
    assert len(Cache(cache).entries()) == left


def test_what_would_be_removed_fits(capture: Capture) -> None:
    shown = capture("cache", "rm", LONG, "--dry-run", width=80)
    assert "would free" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_the_help_fits(capture: Capture) -> None:
    shown = capture("cache", "prune", "-h", width=80)
    assert shown.startswith("Usage: lazyload cache prune [OPTIONS]")
    assert "$ lazyload cache prune --superseded --keep-last 2" in shown
    assert "│" not in shown


def test_an_error_is_a_line_or_two(capture: Capture) -> None:
    shown = capture("cache", "rm", "org/modle", width=200)
    assert shown.startswith("error: 'org/modle' is neither a model nor the start of a key in ")
    assert shown.endswith("is 'org/model' meant?")
    assert "Traceback" not in shown


@pytest.mark.parametrize("end", ["converted into the cache in", "in the cache already, looked up in"])
def test_convert_ends_as_one_sentence_and_a_path(
    end: str, capture: Capture, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = checkpoints.make("llama3_tied", tmp_path_factory.mktemp("m"))
    if "already" in end:
        lazyload.convert(model, cache_dir=cache)
    sentence, path = capture("convert", str(model), width=300).splitlines()
    assert end in sentence
    assert path.startswith(str(cache))
