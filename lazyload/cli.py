"""The `lazyload` command: convert, plan, and look after the cache.

JAX is imported by none of it, and TensorStore only by what moves weights, so that `lazyload cache ls` answers at once.
"""

import functools
import inspect
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Annotated, Any

import typer

from lazyload import cli_values
from lazyload.errors import LazyLoadError
from lazyload.storage import Storage

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

Targets = Annotated[list[str], typer.Argument(metavar="TARGETS...", help="Names of models, or the starts of keys.")]
CacheDir = Annotated[
    str | None, typer.Option(help="The cache's root.", show_default="$LAZYLOAD_CACHE or ~/.cache/lazyload")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option(help="Say only what would be removed.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Token = Annotated[
    str | None, typer.Option(help="A hub token; public models need none.", envvar="HF_TOKEN", show_envvar=True)
]


@dataclass(frozen=True, repr=False)
class ModelOptions:
    """What `convert` and `plan` have in common, as typed; the fields' metadata are typer's."""

    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, a folder or a URL.")]
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit of a hub model.")] = None
    subfolder: Annotated[str | None, typer.Option(help="The folder in the repository, where the model lies.")] = None
    variant: Annotated[str | None, typer.Option(help="Files of weights of that name: fp16.")] = None
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PATTERN=]DTYPE",
            help="bfloat16, float16, float32, or auto for config.json's. With a pattern of roles or paths, such as "
            "'*norm*=float32', for these. May be repeated; of patterns the first that matches counts.",
            show_default="bfloat16",
        ),
    ] = None
    layout: Annotated[str, typer.Option(help="nnx, maxtext (layers stacked) or maxtext-unscanned.")] = "nnx"
    layers: Annotated[
        str | None, typer.Option(metavar="FIRST:END", help="Only these layers of the decoder, END left out: 0:8.")
    ] = None
    vocab_size: Annotated[
        int | None, typer.Option(help="MaxText's vocab_size, where it is larger than the model's.")
    ] = None
    ocdbt: Annotated[bool | None, typer.Option("--ocdbt/--no-ocdbt", help="Store arrays in one OCDBT database.")] = None
    zarr3: Annotated[bool | None, typer.Option("--zarr3/--no-zarr3", help="Store arrays in zarr's third format.")] = (
        None
    )
    compression: Annotated[str | None, typer.Option(help="none or zstd.")] = None
    chunk_bytes: Annotated[int | None, typer.Option(help="The size of chunks at most.")] = None
    cache_dir: CacheDir = None
    config: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=JSON",
            help="A field of config.json with another value, such as rope_theta=1e6, hidden_act=silu or "
            "text_config.note=null; or an object, '{\"note\": null}'. May be repeated; later ones win.",
        ),
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="Every tensor without use is an error.")] = False
    token: Token = None
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Do not ask the hub.")] = False

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of `lazyload.convert` and `lazyload.plan`."""
        return {
            "model": self.model,
            "revision": self.revision,
            "subfolder": self.subfolder,
            "variant": self.variant,
            "dtype": cli_values.dtypes(self.dtype or ()),
            "layout": cli_values.layout(self.layout, self.vocab_size),
            "layers": cli_values.layers(self.layers),
            "storage": Storage(self.ocdbt, self.zarr3, self.compression, self.chunk_bytes),
            "cache_dir": self.cache_dir,
            "config": cli_values.config_fields(self.config or ()),
            "strict": self.strict,
            "token": self.token,
            "local_files_only": self.local_files_only,
        }


def _with_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose first parameter is `ModelOptions`, with a parameter for each field instead, as typer wants it."""
    fields = inspect.signature(ModelOptions).parameters
    _, *others = inspect.signature(command).parameters.values()

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        command(ModelOptions(**{name: values.pop(name) for name in fields}), **values)

    vars(expanded)["__signature__"] = inspect.Signature([*fields.values(), *others])
    return expanded


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


@app.command()
@_with_model_options
def convert(
    options: ModelOptions,
    force: Annotated[bool, typer.Option(help="Convert again although the checkpoint is there.")] = False,
) -> None:
    """Convert a checkpoint into the cache, if it is not there, and print where it is."""
    import lazyload

    converted = lazyload.convert(**options.arguments(), force_convert=force)
    print(lazyload.last_report(), file=sys.stderr)
    print(converted.path)


@app.command()
@_with_model_options
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
        (path, "x".join(map(str, p.shape)), p.dtype, _size(p.nbytes), _sources(p.sources))
        for path, p in made.parameters.items()
    ]
    _table(("parameter", "shape", "dtype", "size", "made of"), rows)
    print(f"\n{made.model}: family {made.family}, layout {made.layout}, {len(rows)} arrays, {_size(made.nbytes)}")
    if made.other_layers:
        print(f"skipped, of other layers: {len(made.other_layers)} tensors, such as {made.other_layers[0]}")
    if skipped := sorted({*made.skipped}.difference(made.other_layers)):
        print(f"knowingly skipped: {len(skipped)} tensors, such as {skipped[0]}")
    if made.unread:
        print(f"left aside: {len(made.unread)} tensors that no model of this kind reads, such as {made.unread[0]}")
    print(f"key {made.key}: in the cache" if made.hit else "not in the cache:")
    for reason in made.reasons:
        print(f"  {reason}")


@cache_app.command("ls")
def ls(
    cache_dir: CacheDir = None, as_json: Json = False, quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False
) -> None:
    """List the converted checkpoints."""
    from lazyload.cache.cache import Cache

    cache = Cache(cache_dir)
    entries, problems = cache.entries(), cache.problems()
    if as_json:
        damaged = [{"key": folder.name, "path": str(folder), "problem": text} for folder, text in problems.items()]
        print(json.dumps([*(_entry_fields(entry) for entry in entries), *damaged], indent=1))
    elif quiet:
        print(*(entry.key for entry in entries), sep="\n", end="\n" if entries else "")
    elif not entries:
        print(f"nothing in {cache.root}" if not problems else f"nothing in {cache.root} that can be used")
    else:
        rows = [
            (
                entry.key[:8],
                entry.model,
                str(entry.manifest.fields.get("layout", "")),
                _dtypes(entry.manifest.fields.get("dtype", "")),
                _flags(entry.manifest.fields.get("storage")),
                _size(entry.nbytes),
                datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M"),
            )
            for entry in entries
        ]
        _table(("key", "model", "layout", "dtype", "storage", "size", "last used"), rows)
        print(f"\n{len(entries)} in {cache.root}, {_size(sum(entry.nbytes for entry in entries))}")
    if not as_json and not quiet:
        for folder, problem in problems.items():
            print(f"{folder.name[:8]}  {folder.parent.name}: cannot be used: {problem}")


@cache_app.command("rm")
def rm(
    targets: Targets,
    cache_dir: CacheDir = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Remove also what somebody writes or reads.")] = False,
) -> None:
    """Remove converted checkpoints; the exit code is 1 if one is kept because somebody writes or reads it."""
    from lazyload.cache.cache import Cache

    cache = Cache(cache_dir)
    _remove(lambda dry: cache.remove(*targets, dry_run=dry, force=force), yes, dry_run)


@cache_app.command("prune")
def prune(
    cache_dir: CacheDir = None,
    older_than: Annotated[str | None, typer.Option(help="Also what has not been used for so long: 30d, 12h.")] = None,
    max_size: Annotated[str | None, typer.Option(help="Also what was used longest ago, beyond so much: 100GB.")] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
) -> None:
    """Remove what unfinished conversions left behind, and on demand what has not been used for long."""
    from lazyload.cache.cache import Cache

    cache = Cache(cache_dir)
    seconds = cli_values.quantity(older_than, "--older-than", {"d": 86400, "h": 3600, "m": 60, "s": 1})
    limit = cli_values.quantity(max_size, "--max-size", {"TB": 1e12, "GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1})
    nbytes = None if limit is None else int(limit)
    _remove(lambda dry: cache.prune(older_than=seconds, max_bytes=nbytes, dry_run=dry), yes, dry_run)


@cache_app.command("verify")
def verify(
    targets: Annotated[list[str] | None, typer.Argument(metavar="[TARGETS...]")] = None,
    cache_dir: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Compare everything that was written with its checksum; the exit code is 1 if something differs."""
    import lazyload

    verifications = lazyload.verify(*(targets or ()), cache_dir=cache_dir)
    if as_json:
        print(json.dumps([{"key": v.key, "model": v.model, "problems": v.problems} for v in verifications], indent=1))
    else:
        for verification in verifications:
            print(f"{verification.key[:8]}  {verification.model}: {'; '.join(verification.problems) or 'ok'}")
    if any(verification.problems for verification in verifications):
        raise typer.Exit(1)


def _remove(remove: Callable[[bool], Sequence[Any]], yes: bool, dry_run: bool) -> None:
    """Shows what would be removed, asks, and removes it."""
    planned = remove(True)
    for removal in planned:
        print(f"{_size(removal.nbytes):>10}  {removal.path}  ({removal.reason})")
    total = _size(sum(removal.nbytes for removal in planned))
    if not planned:
        print("nothing to remove")
    elif dry_run:
        print(f"would free {total}")
    elif yes or typer.confirm(f"Remove {len(planned)} and free {total}?"):
        removed = remove(False)
        print(f"freed {_size(sum(removal.nbytes for removal in removed))}")
    else:
        raise typer.Exit(1)


def _entry_fields(entry: Any) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "key": entry.key,
        "model": entry.model,
        "path": str(entry.path),
        "nbytes": entry.nbytes,
        "created": manifest.created,
        "last_used": datetime.fromtimestamp(entry.last_used).astimezone().isoformat(timespec="seconds"),
        "seconds": manifest.seconds,
        "source": manifest.source,
        "fields": manifest.fields,
    }


def _dtypes(described: Any) -> str:
    return " ".join(map(str, described)) if isinstance(described, list) else str(described)


def _flags(storage: Any) -> str:
    if not isinstance(storage, dict):
        return "?"
    names = [name for name in ("ocdbt", "zarr3") if storage.get(name)] or ["zarr2"]
    compression = storage.get("compression")
    return "+".join([*names, *([str(compression)] if compression not in (None, "none") else [])])


def _sources(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _size(nbytes: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes:.0f} B"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
