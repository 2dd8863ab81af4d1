"""The command, run in this process as its script runs it."""

import contextlib
import gc
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import lazyload
from lazyload.cli import main


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    stdout: str
    stderr: str
    code: int


def command(*words: object, cache: Path, code: int = 0, typed: str = "") -> Ended:
    """Runs `lazyload WORDS...` with a cache of its own, no terminal, and what is typed as its input."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["lazyload", *map(str, words)]),
        mock.patch.object(sys, "stdin", io.StringIO(typed)),
        mock.patch.dict(os.environ, LAZYLOAD_CACHE=str(cache)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        thresholds = gc.get_threshold()
        try:
            main()
        except SystemExit as end:
            ended = Ended(out.getvalue(), err.getvalue(), int(end.code or 0))
        finally:
            gc.set_threshold(*thresholds)
    assert ended.code == code, (ended.code, ended.stdout, ended.stderr)
    return ended


def environment(cache: Path) -> dict[str, str]:
    """The environment of a process that is to run this package's command."""
    return os.environ | {"PYTHONPATH": str(Path(lazyload.__file__).parents[1]), "LAZYLOAD_CACHE": str(cache)}
