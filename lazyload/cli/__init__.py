"""The `lazyload` command: convert, plan, explain, export, and look after the cache.

JAX is imported by none of it, and TensorStore only by what moves weights, so that `lazyload cache ls` answers at once.
"""

import atexit
import contextlib
import gc
import io
import os
import sys

import click

from lazyload import __version__
from lazyload.cli import completion
from lazyload.cli.command import INTERRUPTED, SETTINGS, Group
from lazyload.errors import LazyLoadError

_EXIT_CODES = """Exit codes:

\b
0    done, and all is well
1    an error; or something differs, stays damaged, is kept because
     somebody uses it, or was answered with no
2    wrong usage: an option or argument that there is not
130  interrupted with Ctrl-C"""

_OBJECTS = 100_000
"""So many more are there at the next look for circles of garbage among them."""


@click.group(
    "cache",
    cls=Group,
    places={
        "ls": "lazyload.cli.listing:ls",
        "rm": "lazyload.cli.removing:rm",
        "prune": "lazyload.cli.removing:prune",
        "verify": "lazyload.cli.verifying:verify",
        "info": "lazyload.cli.information:info",
        "dir": "lazyload.cli.information:directory",
    },
    epilog=_EXIT_CODES,
    context_settings=SETTINGS,
)
def cache_app() -> None:
    """Look after the cache of converted checkpoints."""


@click.group(
    cls=Group,
    places={
        "convert": "lazyload.cli.models:convert",
        "plan": "lazyload.cli.models:plan",
        "explain": "lazyload.cli.explain:explain",
        "export": "lazyload.cli.exporting:export",
        "env": "lazyload.cli.environment:env",
        "cache": "lazyload.cli:cache_app",
    },
    epilog=_EXIT_CODES,
    context_settings=SETTINGS,
)
@click.version_option(__version__, message="lazyload %(version)s", help="Print the version.")
@click.option(
    "--show-completion",
    type=click.Choice(completion.SHELLS),
    is_eager=True,
    expose_value=False,
    callback=completion.show,
    help="Print what has a shell complete commands, options, models and keys.",
)
def app() -> None:
    """Pretrained Hugging Face models in JAX: converted once, cached."""


def main() -> None:
    """Runs the command; errors a user can meet are printed without a traceback."""
    # NumPy's threads for matrices spin when they begin, and work is in threads already.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Names of models and files can hold what a terminal cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    _collect_seldom()
    try:
        sys.exit(_run())
    except BrokenPipeError:
        # Nobody reads any more.
        _drop_output()
        sys.exit(1)


def _drop_output() -> None:
    """Has what is still to be printed go nowhere, so that the interpreter does not fail to write it when it ends."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _collect_seldom() -> None:
    """Spares most looks for circles of garbage, which take as long as reading a thousand manifests; also at the end."""
    # It stays so: with the usual threshold, all that there is by now would be looked at once more.
    gc.set_threshold(_OBJECTS)
    atexit.register(gc.freeze)


def _run() -> int | str | None:
    """The exit code; what was printed is written."""
    try:
        code = _called()
        # A daemon may have none.
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # One of a file has its name.
        if isinstance(error, BrokenPipeError) or error.filename is not None:
            raise
        print(f"error: what is printed cannot be written: {error.strerror}", file=sys.stderr)
        _drop_output()
        return 1
    return code


def _called() -> int | str | None:
    """The exit code of what the command line asks for."""
    code: int | str | None = 0
    try:
        app(prog_name="lazyload")
    except LazyLoadError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as end:
        code = end.code
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code
