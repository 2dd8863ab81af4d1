"""The commands that take a model: `convert` and `plan`."""

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from lazyload.cli import options, text, values
from lazyload.cli.command import command

if TYPE_CHECKING:
    from lazyload.results import Plan


@command(
    "lazyload convert Qwen/Qwen3-8B",
    "lazyload convert meta-llama/Llama-3.2-1B --layout maxtext --dtype float32",
    "lazyload convert ./my-model --layers 0:8 --dry-run",
)
@options.of_a_model
@click.option("--force/--no-force", default=False, help="Convert again although the checkpoint is there.")
@options.keep_source
@options.dry_run
@options.as_json
@click.option("--quiet", "-q", is_flag=True, help="Print only the path.")
@options.verbose
def convert(
    arguments: dict[str, Any],
    force: bool,
    keep_source: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Convert a checkpoint into the cache.

    If it is there, nothing is done. Either way its path is printed.
    """
    import lazyload

    if dry_run:
        _say_what_convert_would_do(lazyload.plan(**arguments), force, as_json, quiet)
        return
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    shown: dict[str, Any] = {"progress": False} if quiet or as_json else {}
    converted = lazyload.convert(**arguments, force_convert=force, keep_source=keep_source, **shown)
    if as_json:
        fields = {"path": str(converted.path), "key": converted.key, "converted": converted.converted}
        print(json.dumps({**fields, "nbytes": converted.manifest.nbytes}, indent=1))
        return
    # On a terminal the line of progress has ended as a sentence, and the log has one in any case.
    is_said = verbose or sys.stderr.isatty()
    if not quiet and not is_said:
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


@command("lazyload plan Qwen/Qwen3-8B", "lazyload plan ./my-model --layout maxtext --json")
@options.of_a_model
@options.as_json
@click.option("--full", is_flag=True, help="Every array in a line of its own.")
@click.option(
    "--mesh",
    metavar="AXIS=SIZE,...",
    help="A mesh to ask about, such as fsdp=4,tp=2: what each of its devices would hold. It needs no devices.",
)
@click.option(
    "--hosts",
    type=int,
    metavar="COUNT",
    help="So many hosts share the devices of --mesh: what they would read of the checkpoint.",
)
def plan(arguments: dict[str, Any], as_json: bool, full: bool, mesh: str | None, hosts: int | None) -> None:
    """Say what a conversion would do, reading nothing but headers."""
    import lazyload

    made = lazyload.plan(**arguments, mesh=values.mesh(mesh))
    reads = None if hosts is None else made.bytes_read(hosts)
    if as_json:
        print(json.dumps(_plan_fields(made) | ({} if reads is None else {"bytes_read": reads._asdict()}), indent=1))
        return
    if full:
        _print_arrays(made)
    else:
        print(made.show() if mesh is None else lazyload.show_sharding(made))
    if full or mesh is not None:
        each = "" if made.bytes_per_device is None else f", {text.size(made.bytes_per_device)} on each device"
        count = f"{len(made.parameters)} arrays, {text.size(made.nbytes)}"
        print(f"\n{text.printable(made.model)}: family {made.family}, layout {made.layout}, {count}{each}")
    if reads is not None and hosts is not None:
        ratios = [f"{text.size(nbytes)} ({nbytes / made.nbytes:.2f} times all arrays)" for nbytes in reads]
        print(f"{hosts} hosts together read {ratios[1]} of the converted checkpoint; each for itself {ratios[0]}")
    if made.other_layers:
        print(f"skipped, of other layers: {len(made.other_layers)} tensors, such as {made.other_layers[0]}")
    if skipped := sorted({*made.skipped}.difference(made.other_layers)):
        print(f"knowingly skipped: {len(skipped)} tensors, such as {skipped[0]}")
    if made.unread:
        print(f"left aside: {len(made.unread)} tensors that no model of this kind reads, such as {made.unread[0]}")
    print(f"key {made.key}: in the cache" if made.hit else "not in the cache:")
    for reason in made.reasons:
        print(f"  {reason}")


def _print_arrays(made: "Plan") -> None:
    """Every array in a line, with its `PartitionSpec` if there is a mesh."""
    places = made.shardings or {}
    rows = [
        (
            path,
            "x".join(map(str, p.shape)),
            p.dtype,
            text.size(p.nbytes),
            *((text.spec(tuple(places[path].spec), len(p.shape)),) if places else ()),
            text.sources(p.sources),
        )
        for path, p in made.parameters.items()
    ]
    text.table(("parameter", "shape", "dtype", "size", *(("split over",) if places else ()), "made of"), rows)


def _plan_fields(made: "Plan") -> dict[str, Any]:
    """A plan as JSON values; what is of a mesh only if there is one."""
    places = made.shardings
    parameters = {
        path: {"shape": p.shape, "dtype": p.dtype, "axes": p.axes, "nbytes": p.nbytes, "sources": p.sources}
        | ({} if places is None else {"spec": list(places[path].spec)})
        for path, p in made.parameters.items()
    }
    names = ("model", "family", "layout", "nbytes", "key", "hit", "reasons", "skipped", "other_layers", "unread")
    fields = {name: getattr(made, name) for name in names}
    if made.mesh is not None:
        fields |= {"mesh": dict(made.mesh.shape), "bytes_per_device": made.bytes_per_device}
    return {**fields, "parameters": parameters}
