"""Runs a trainer's own program with `LAZYLOAD_INSTALL` in effect, without a change to it.

    LAZYLOAD_INSTALL=tunix,maxtext python -m lazyload.integrations.run tunix.cli.grpo_main base_config.yaml ...

takes the place of `python -m tunix.cli.grpo_main base_config.yaml ...`; a file, `train.py`, will do for a module.
"""

import importlib
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from lazyload.errors import ArgumentError

LIBRARIES = ("maxtext", "tunix")
"""What the variable may name: modules here with an `install`."""


def install_named(names: str) -> None:
    """Installs what is to load through this library, for good.

    Args:
        names: Of `LIBRARIES`, with commas between them.

    Raises:
        ArgumentError: One is none of them.
        IntegrationError: One is not installed, of a version that is not known, or has another inside.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in LIBRARIES]:
        raise ArgumentError(
            f"LAZYLOAD_INSTALL={names}: there is no {', '.join(unknown)}; there are {', '.join(LIBRARIES)}"
        )
    if not wanted:
        raise ArgumentError(
            f"set LAZYLOAD_INSTALL to what is to load through lazyload: {','.join(LIBRARIES)}, or one of them"
        )
    for name in dict.fromkeys(wanted):
        importlib.import_module(f"lazyload.integrations.{name}").install()


def main(arguments: Sequence[str]) -> None:
    """Installs, then runs a program as if it had been started itself.

    Args:
        arguments: A module or a file, and what it is called with.

    Raises:
        ArgumentError: Nothing is to be run, or installed.
        IntegrationError: See `install_named`.
    """
    if not arguments:
        raise ArgumentError("LAZYLOAD_INSTALL=tunix python -m lazyload.integrations.run MODULE_OR_FILE [ARGUMENTS]")
    install_named(os.environ.get("LAZYLOAD_INSTALL", ""))
    program, sys.argv = arguments[0], list(arguments)
    if program.endswith(".py"):
        sys.path[0] = str(Path(program).resolve().parent)
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
