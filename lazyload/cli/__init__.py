"""The `lazyload` command: convert, plan, explain, export, and look after the cache.

JAX is imported by none of it, and TensorStore only by what moves weights, so that `lazyload cache ls` answers at once.
"""

import contextlib
import io
import os
import sys
from typing import Annotated

import typer

from lazyload import __version__
from lazyload.cli import environment, explain, exporting, information, listing, models, removing, verifying
from lazyload.cli.command import HELP, add
from lazyload.errors import LazyLoadError

INTERRUPTED = 130

_EXIT_CODES = """Exit codes:

\b
0    done, and all is well
1    an error; or something differs, stays damaged, is kept because
     somebody uses it, or was answered with no
2    wrong usage: an option or argument that there is not
130  interrupted with Ctrl-C"""

app = typer.Typer(
    help="Pretrained Hugging Face models in JAX: converted once, cached.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP,
)
cache_app = typer.Typer(
    help="Look after the cache of converted checkpoints.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=HELP,
)
app.add_typer(cache_app, name="cache")


def main() -> None:
    """Runs the command; errors a user can meet are printed without a traceback."""
    # Names of models and files can hold what a terminal cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        sys.exit(_run())
    except BrokenPipeError:
        # Nobody reads any more; and the interpreter is not to find that out again when it ends.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run() -> int | str | None:
    """The exit code; what was printed is written."""
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
    sys.stdout.flush()
    return code


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"lazyload {__version__}")
        raise typer.Exit


add(
    app,
    models.convert,
    "lazyload convert Qwen/Qwen3-8B",
    "lazyload convert meta-llama/Llama-3.2-1B --layout maxtext --dtype float32",
    "lazyload convert ./my-model --layers 0:8 --dry-run",
)
add(app, models.plan, "lazyload plan Qwen/Qwen3-8B", "lazyload plan ./my-model --layout maxtext --json")
add(app, explain.explain, "lazyload explain Qwen/Qwen3-8B", "lazyload explain ./my-model --dtype float32 --layers 0:8")
add(
    app,
    exporting.export,
    "lazyload export run/checkpoints/100 --to trained --like Qwen/Qwen3-8B",
    "lazyload export maxtext/0/items --to trained --like google/gemma-2-2b",
)
add(app, environment.env, "lazyload env", "lazyload env --json --timeout 0")

add(
    cache_app,
    listing.ls,
    "lazyload cache ls",
    "lazyload cache ls --filter 'size>1GB' --sort accessed --limit 20",
    "lazyload cache ls --format json",
)
add(
    cache_app,
    removing.rm,
    "lazyload cache rm Qwen/Qwen3-8B",
    "lazyload cache rm 1a2b3c4d --dry-run",
    "lazyload cache rm --filter 'accessed>30d' --yes",
)
add(
    cache_app,
    removing.prune,
    "lazyload cache prune",
    "lazyload cache prune --superseded --keep-last 2",
    "lazyload cache prune --older-than 2w --max-size 100GiB --dry-run",
)
add(
    cache_app,
    verifying.verify,
    "lazyload cache verify",
    "lazyload cache verify Qwen/Qwen3-8B --repair",
)
add(cache_app, information.info, "lazyload cache info 1a2b3c4d", "lazyload cache info Qwen/Qwen3-8B --json")
add(cache_app, information.directory, "lazyload cache dir", name="dir")
