"""The commands that take a model: `convert` and `plan`."""

import json
import sys
from typing import Annotated

import typer

from lazyload.cli import text
from lazyload.cli.options import Json, ModelOptions, with_model_options


@with_model_options
def convert(
    options: ModelOptions,
    force: Annotated[bool, typer.Option(help="Convert again although the checkpoint is there.")] = False,
) -> None:
    """Convert a checkpoint into the cache, if it is not there, and print where it is."""
    import lazyload

    converted = lazyload.convert(**options.arguments(), force_convert=force)
    print(lazyload.last_report(), file=sys.stderr)
    print(converted.path)


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
