"""The commands that take a model: `convert` and `plan`."""

import json
import logging
import sys
from typing import Annotated, Any

import typer

from lazyload.cli import text
from lazyload.cli.options import DryRun, Json, ModelOptions, Verbose, with_model_options


@with_model_options
def convert(
    options: ModelOptions,
    force: Annotated[bool, typer.Option(help="Convert again although the checkpoint is there.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the path.")] = False,
    verbose: Verbose = False,
) -> None:
    """Convert a checkpoint into the cache.

    If it is there, nothing is done. Either way its path is printed.
    """
    import lazyload

    if dry_run:
        _say_what_convert_would_do(lazyload.plan(**options.arguments()), force, as_json, quiet)
        return
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    shown: dict[str, Any] = {"progress": False} if quiet or as_json else {}
    converted = lazyload.convert(**options.arguments(), force_convert=force, **shown)
    if as_json:
        fields = {"path": str(converted.path), "key": converted.key, "converted": converted.converted}
        print(json.dumps({**fields, "nbytes": converted.manifest.nbytes}, indent=1))
        return
    if not quiet:
        print(lazyload.last_report(), file=sys.stderr)
    print(converted.path)


def _say_what_convert_would_do(made: Any, force: bool, as_json: bool, quiet: bool) -> None:
    is_needed = force or not made.hit
    if as_json:
        print(json.dumps({"key": made.key, "converted": is_needed, "nbytes": made.nbytes}, indent=1))
    elif quiet:
        print(made.key)
    else:
        print(f"would convert {made.model}: {text.size(made.nbytes)}" if is_needed else f"{made.model} is in the cache")


@with_model_options
def plan(options: ModelOptions, as_json: Json = False) -> None:
    """Say what a conversion would do, reading nothing but headers."""
    import lazyload

    made = lazyload.plan(**options.arguments())
    if as_json:
        parameters = {
            path: {"shape": p.shape, "dtype": p.dtype, "axes": p.axes, "nbytes": p.nbytes, "sources": p.sources}
            for path, p in made.parameters.items()
        }
        fields = ("model", "family", "layout", "nbytes", "key", "hit", "reasons", "skipped", "other_layers", "unread")
        print(json.dumps({**{name: getattr(made, name) for name in fields}, "parameters": parameters}, indent=1))
        return
    rows = [
        (path, "x".join(map(str, p.shape)), p.dtype, text.size(p.nbytes), text.sources(p.sources))
        for path, p in made.parameters.items()
    ]
    text.table(("parameter", "shape", "dtype", "size", "made of"), rows)
    print(f"\n{made.model}: family {made.family}, layout {made.layout}, {len(rows)} arrays, {text.size(made.nbytes)}")
    if made.other_layers:
        print(f"skipped, of other layers: {len(made.other_layers)} tensors, such as {made.other_layers[0]}")
    if skipped := sorted({*made.skipped}.difference(made.other_layers)):
        print(f"knowingly skipped: {len(skipped)} tensors, such as {skipped[0]}")
    if made.unread:
        print(f"left aside: {len(made.unread)} tensors that no model of this kind reads, such as {made.unread[0]}")
    print(f"key {made.key}: in the cache" if made.hit else "not in the cache:")
    for reason in made.reasons:
        print(f"  {reason}")
