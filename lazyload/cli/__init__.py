"""The `lazyload` command: convert, plan, and look after the cache.

JAX is imported by none of it, and TensorStore only by what moves weights, so that `lazyload cache ls` answers at once.
"""

import io
import sys
from importlib import metadata
from typing import Annotated

import typer

from lazyload.cli import cache, models
from lazyload.errors import LazyLoadError

app = typer.Typer(
    help="Pretrained Hugging Face models in JAX: converted once, cached.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(
    help="Look after the cache of converted checkpoints.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cache_app, name="cache")


def main() -> None:
    """Runs the command; errors a user can meet are printed without a traceback."""
    # Names of models and files can hold what a terminal cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except LazyLoadError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        print(f"lazyload {metadata.version('lazyload')}")
        raise typer.Exit


for command in (models.convert, models.plan):
    app.command()(command)
for command in (cache.ls, cache.rm, cache.prune, cache.verify):
    cache_app.command()(command)
