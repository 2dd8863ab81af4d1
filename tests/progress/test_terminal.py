"""What is shown on a terminal, where nobody is looking, and in the log: whole programs, at a terminal or a pipe."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import checkpoints
from support.hub import Hub

import lazyload

MODEL = "org/qwen"
SLOWLY = "import support.slow\n"
LOAD = """
import logging, sys, lazyload
lazyload.from_pretrained(sys.argv[1], cache_dir=sys.argv[2])
"""
SENTENCE = r"{}: 189,120 parameters, 378.2 kB of bfloat16, {} in (\d+ ms|\d+\.\d s)"
DEVICES = r"8 devices \(cpu\)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("qwen3", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def warm(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the folder; tests only read it."""
    root = tmp_path_factory.mktemp("warm")
    lazyload.convert(folder, cache_dir=root)
    return root


def environment(**values: str) -> dict[str, str]:
    places = [Path(lazyload.__file__).parents[1], Path(__file__).parents[1]]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), **values}


def piped(code: str, *arguments: object, **values: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment(**values), capture_output=True, text=True, check=True, timeout=120)


class Terminal:
    """A program at a pseudo terminal."""

    def __init__(self, code: str, *arguments: object):
        ours, its = pty.openpty()
        termios.tcsetwinsize(its, (24, 100))
        command = [sys.executable, "-c", code, *map(str, arguments)]
        self.process = subprocess.Popen(command, env=environment(), stdin=its, stdout=its, stderr=its)
        os.close(its)
        self.written = ""
        self._descriptor = ours

    def read(self, until: str = "") -> list[str]:
        """The screens that were seen, until a pattern is on one of them, or the program ends."""
        seen = []
        while not (until and re.search(until, self.written)):
            try:
                piece = os.read(self._descriptor, 1 << 16).decode()
            except OSError:
                break
            if not piece:
                break
            self.written += piece
            seen.append(screen(self.written))
        return seen

    def end(self) -> Sequence[str]:
        """What stays on the screen."""
        self.read()
        self.process.wait(60)
        os.close(self._descriptor)
        return [line for line in screen(self.written).splitlines() if line]


def screen(written: str) -> str:
    """What a terminal shows of what was written to it: lines that are overwritten, and moves up and down."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[A|\r|\n|[^\x1b\r\n]+|\x1b\[[0-9;]*m", written):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[A":
            row = max(0, row - 1)
        elif not token.startswith("\x1b"):
            line = lines[row].ljust(column)
            lines[row] = line[:column] + token + line[column + len(token) :]
            column += len(token)
    return "\n".join(line.rstrip() for line in lines)


def test_one_line_becomes_each_stage_and_ends_as_a_sentence(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.add(MODEL, folder)
    hub.faults.append((r"GET .*\.safetensors$", lambda handler: time.sleep(1)))  # type: ignore[func-returns-value]
    terminal = Terminal(SLOWLY + LOAD, MODEL, tmp_path / "cache")
    seen = terminal.read()
    (last,) = terminal.end()
    for doing in ("downloading", "converting"):
        lines = [shown for shown in seen if shown.startswith(f"{doing} {MODEL}: ")]
        assert any(re.search(r"\d+%\|.*\| \d+(\.\d+)?k?/\d+k \[00:0\d<.*B/s\]$", line) for line in lines), seen
        assert max(map(len, lines)) <= 100
    assert {len(shown.splitlines()) for shown in seen} <= {0, 1, 2}
    assert re.fullmatch(SENTENCE.format(MODEL, f"converted, and restored onto {DEVICES}"), last)


def test_what_takes_no_time_shows_no_bar(folder: Path, warm: Path) -> None:
    terminal = Terminal("import lazyload, sys; lazyload.convert(sys.argv[1], cache_dir=sys.argv[2])", folder, warm)
    (last,) = terminal.end()
    assert re.fullmatch(SENTENCE.format(folder, "in the cache already, looked up"), last)
    assert "%" not in terminal.written
    assert "\x1b" not in terminal.written


def test_silence_is_silent(folder: Path, tmp_path: Path) -> None:
    code = SLOWLY + LOAD.replace("cache_dir=", "progress=False, cache_dir=")
    assert Terminal(code, folder, tmp_path).end() == []


def test_a_traceback_is_not_mixed_with_the_line(folder: Path, tmp_path: Path) -> None:
    terminal = Terminal(SLOWLY + LOAD, folder, tmp_path)
    terminal.read(until=r"converting .*\d+%\|.*B/s\]")
    terminal.process.send_signal(signal.SIGINT)
    lines = terminal.end()
    assert re.fullmatch(r"converting \S+: stopped at \d+%", lines[0]), lines
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyboardInterrupt"
    assert not any("B/s" in line for line in lines)


def test_what_is_logged_has_a_line_of_its_own(folder: Path, tmp_path: Path) -> None:
    code = SLOWLY + LOAD.replace(
        "lazyload.from",
        """
import threading
threading.Timer(1.0, logging.getLogger("lazyload").warning, ["the house is on fire"]).start()
lazyload.from""",
    )
    logged, *_, last = Terminal(code, folder, tmp_path).end()
    assert logged == "the house is on fire"
    assert re.fullmatch(SENTENCE.format(folder, f"converted, and restored onto {DEVICES}"), last)


def test_loads_of_several_threads_have_a_line_each(folder: Path, tmp_path: Path) -> None:
    code = (
        SLOWLY
        + """
import sys, threading, lazyload
_, model, cache = sys.argv
threads = [
    threading.Thread(target=lazyload.from_pretrained, args=[model], kwargs={"dtype": dtype, "cache_dir": cache})
    for dtype in ("float32", "float16", "bfloat16")
]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    )
    terminal = Terminal(code, folder, tmp_path)
    seen = terminal.read()
    assert max(shown.count("B/s]") for shown in seen) == 3
    lines = terminal.end()
    assert sorted(re.findall(r"of (\w+), converted", "\n".join(lines))) == ["bfloat16", "float16", "float32"]
    assert len(lines) == 3
    assert all(line.startswith(f"{folder}: ") for line in lines), (lines, terminal.written[-3000:])


def test_where_nobody_is_looking_nothing_is_shown_unless_asked_for(folder: Path, tmp_path: Path) -> None:
    result = piped(SLOWLY + LOAD, folder, tmp_path / "one")
    assert (result.stdout, result.stderr) == ("", "")
    result = piped(SLOWLY + LOAD.replace("cache_dir=", "progress=True, cache_dir="), folder, tmp_path / "two")
    *lines, last = result.stderr.splitlines()
    assert re.fullmatch(SENTENCE.format(folder, f"converted, and restored onto {DEVICES}"), last)
    assert 1 <= len(lines) < 10
    assert all(re.match(r"\w+ing .*%\|.*B/s\]$", line) for line in lines)
    assert "\r" not in result.stderr


@pytest.mark.parametrize("level", ["debug", "INFO", "warning"])
def test_the_log_is_shown_where_the_environment_asks_for_it(folder: Path, warm: Path, level: str) -> None:
    result = piped(LOAD, folder, warm, LAZYLOAD_LOG=level)
    lines = result.stderr.splitlines()
    if level == "warning":
        assert lines == []
        return
    assert all(re.match(r"\d{4}-\d\d-\d\d [\d:,]+ (DEBUG|INFO) lazyload: ", line) for line in lines)
    assert re.search(rf"INFO lazyload: restoring {folder}: 0\.00 GB in \d", result.stderr)
    assert re.search(rf"INFO lazyload: {folder}: hit ", result.stderr)
    assert ("DEBUG" in result.stderr) == (level == "debug")


def test_the_log_leaves_the_program_s_own_as_it_is(folder: Path, warm: Path) -> None:
    own = "import logging\nlogging.basicConfig(format='own %(message)s', level=logging.WARNING)\n"
    quiet = piped(own + LOAD, folder, warm)
    assert quiet.stderr == ""
    shown = piped(own + LOAD + "print(logging.getLogger().level)", folder, warm, LAZYLOAD_LOG="info")
    lines = shown.stderr.splitlines()
    assert len([line for line in lines if "hit" in line]) == 1
    assert all(line.startswith("own ") for line in lines)
    assert shown.stdout.strip() == "30"


def test_a_level_that_there_is_not_is_told() -> None:
    result = piped("import lazyload", LAZYLOAD_LOG="loud")
    assert result.stderr == "LAZYLOAD_LOG='loud' is ignored: give debug, info, warning or error\n"
