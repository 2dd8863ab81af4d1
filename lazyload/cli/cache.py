"""The commands that look after the cache: `lazyload cache ...`."""

import contextlib
import csv
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lazyload.cache.cache import Cache
from lazyload.cache.entry import Entry, read_entry
from lazyload.cache.filters import filtered
from lazyload.cache.manifest import UnreadableManifestError
from lazyload.cache.order import ordered
from lazyload.cache.quantities import parse_duration, parse_size
from lazyload.cache.removal import Removal, size
from lazyload.cache.superseded import Superseded, find_superseded
from lazyload.cli import text, values
from lazyload.cli.options import CacheDir, DryRun, Filters, Json, Quiet, SomeTargets, Targets, Token, Verbose, Yes
from lazyload.cli.text import Column


class Format(StrEnum):
    """How entries are listed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    QUIET = "quiet"


def ls(
    filters: Filters = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="ORDER",
            help="accessed, modified, name or size, with :asc or :desc; by itself the newest and largest first.",
            show_default="name",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, metavar="N", help="List only the first N.")] = None,
    output: Annotated[Format, typer.Option("--format", help="How they are listed.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only keys; the same as --format quiet.")] = False,
    verbose: Verbose = False,
    cache_dir: CacheDir = None,
) -> None:
    """List converted checkpoints."""
    cache = Cache(cache_dir)
    with _without_collections():
        entries, problems = cache.look()
    superseded = find_superseded(entries)
    chosen = entries
    with values.as_usage("--filter"):
        chosen = filtered(chosen, filters or (), entries)
    with values.as_usage("--sort"):
        chosen = ordered(chosen, sort) if sort else chosen
    chosen = chosen[:limit]
    # What cannot be used fulfils no condition.
    problems = {} if filters or limit is not None else problems
    match Format.JSON if as_json else Format.QUIET if quiet else output:
        case Format.JSON:
            damaged = [{"key": path.name, "path": str(path), "problem": why} for path, why in problems.items()]
            print(json.dumps([*(_fields(entry, superseded) for entry in chosen), *damaged], indent=1))
        case Format.CSV:
            _write_csv(chosen, superseded)
        case Format.QUIET:
            for entry in chosen:
                print(entry.key)
        case Format.TABLE:
            _list(cache, chosen, superseded, problems, filters or (), verbose)


def rm(
    targets: SomeTargets = None,
    filters: Filters = None,
    force: Annotated[bool, typer.Option("--force", help="Remove also what somebody writes or reads.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    cache_dir: CacheDir = None,
) -> None:
    """Remove converted checkpoints.

    What somebody writes or reads stays, and makes the exit code 1, unless --force is given.
    """
    if not targets and not filters:
        raise typer.BadParameter("give models or keys, or conditions with --filter", param_hint="TARGET")
    cache = Cache(cache_dir)
    _require_sound(filters)

    def remove(dry: bool) -> list[Removal]:
        return cache.remove(*(targets or ()), filters=filters or (), dry_run=dry, force=force)

    _remove(cache, remove, yes, dry_run, as_json, quiet, verbose)


def prune(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Also what has not been used for so long: 12h, 30d, 2w.")
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Also what was used longest ago, beyond so much: 100GB, 1GiB."),
    ] = None,
    superseded: Annotated[
        bool,
        typer.Option(
            "--superseded",
            help="Also what a later entry has taken the place of, because the model's commit or files, or the way in "
            "which it is converted, are newer.",
        ),
    ] = False,
    keep_last: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Never the N entries of each model that were used last; without another rule, all the others.",
        ),
    ] = None,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Only what unfinished conversions and removals left behind.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Everything that nobody uses.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    cache_dir: CacheDir = None,
) -> None:
    """Remove what no load can use.

    That is what unfinished conversions left behind, data that a newer conversion replaced, and what is damaged; the
    options add entries that a load could use. What somebody writes or reads stays.
    """
    cache = Cache(cache_dir)
    seconds = values.amount(older_than, "--older-than", parse_duration)
    nbytes = values.amount(max_size, "--max-size", parse_size)

    def remove(dry: bool) -> list[Removal]:
        with values.as_usage("--incomplete"):
            return cache.prune(
                older_than=seconds,
                max_bytes=nbytes,
                superseded=superseded,
                keep_last=keep_last,
                incomplete=incomplete,
                everything=everything,
                dry_run=dry,
            )

    _remove(cache, remove, yes, dry_run, as_json, quiet, verbose)


def verify(
    targets: SomeTargets = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Convert what is damaged again from its source, and remove what cannot be converted."
        ),
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the keys of what is damaged.")] = False,
    verbose: Verbose = False,
    token: Token = None,
    cache_dir: CacheDir = None,
) -> None:
    """Compare what was written with its checksums.

    The exit code is 1 if something differs; with --repair, if something stays damaged.
    """
    import lazyload

    if not repair and dry_run:
        raise typer.BadParameter("is for --repair; without that nothing is changed", param_hint="--dry-run")
    if repair:
        options: dict[str, Any] = {"progress": False} if quiet or as_json else {}
        repairs = lazyload.repair(*(targets or ()), cache_dir=cache_dir, token=token, dry_run=dry_run, **options)
    else:
        found = lazyload.verify(*(targets or ()), cache_dir=cache_dir)
        repairs = [lazyload.Repair(each, "kept" if each.problems else "sound") for each in found]
    if as_json:
        print(json.dumps([_repair_fields(each, told=repair) for each in repairs], indent=1))
    for each in () if as_json else repairs:
        _tell(each, told=repair, quiet=quiet, verbose=verbose, dry_run=dry_run)
    still = {"kept"} if repair and not dry_run else {"kept", "converted", "removed"}
    if any(each.outcome in still for each in repairs):
        raise typer.Exit(1)


def info(
    targets: Targets, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = False, cache_dir: CacheDir = None
) -> None:
    """Show all that is known of a checkpoint.

    With -v, its arrays and files, too; with -q, its path alone.
    """
    cache = Cache(cache_dir)
    superseded = cache.superseded()
    found = [_described(folder, superseded, verbose=verbose) for folder in cache.folders(*targets)]
    shown = sorted(found, key=lambda fields: (fields.get("model", ""), fields.get("created", "")))
    if as_json:
        print(json.dumps(shown, indent=1))
    elif quiet:
        for fields in shown:
            print(fields["path"])
    else:
        for number, fields in enumerate(shown):
            print("\n" * bool(number), end="")
            text.block(fields)


def directory(as_json: Json = False, cache_dir: CacheDir = None) -> None:
    """Print the cache's root.

    Of several, as LAZYLOAD_CACHE may name them, each on a line; the last one is written to.
    """
    cache = Cache(cache_dir)
    if as_json:
        print(json.dumps({"root": str(cache.root), "shared": [str(root) for root in cache.shared]}, indent=1))
        return
    for root in (*cache.shared, cache.root):
        print(root)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Spares the looks for circles of garbage, which take as long as reading a thousand manifests."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _list(
    cache: Cache,
    entries: Sequence[Entry],
    superseded: Mapping[Path, Superseded],
    problems: Mapping[Path, str],
    filters: Sequence[str],
    verbose: bool,
) -> None:
    """Prints a table of entries, and what cannot be used."""
    if not entries:
        among = f" that is {' and '.join(filters)}" if filters else " that can be used" if problems else ""
        print(f"nothing in {cache.root}{among}")
    else:
        is_marked = any(entry.folder in superseded for entry in entries)
        columns, rows = _columns(verbose, is_marked), [_row(e, superseded, verbose, is_marked) for e in entries]
        text.table(columns, rows)
        stale = [entry for entry in entries if entry.folder in superseded]
        total = text.size(sum(entry.nbytes for entry in entries))
        text.remark(f"\n{len(entries)} in {cache.root}, {total}")
        if stale:
            freed = text.size(sum(entry.nbytes for entry in stale))
            text.remark(f"`lazyload cache prune --superseded` frees {freed}")
    for folder, problem in problems.items():
        print(f"{folder.name[:8]}  {folder.parent.name}: cannot be used: {text.printable(problem)}")


def _columns(verbose: bool, is_marked: bool) -> list[str | Column]:
    columns = [
        Column("key", "cyan"),
        Column("model", "bold", least=12),
        Column("revision", least=12, optional=True),
        Column("layout", least=7, optional=True),
        Column("dtype", least=8, optional=True),
        Column("storage", optional=True),
        Column("size", "green", right=True),
        Column("last used"),
    ]
    if verbose:
        columns += [Column("layers"), Column("made", least=10), Column("path", least=20)]
    return [*columns, *([Column("", "yellow", least=10)] if is_marked else [])]


def _row(entry: Entry, superseded: Mapping[Path, Superseded], verbose: bool, is_marked: bool) -> list[str]:
    fields = entry.manifest.fields
    row = [
        entry.key if verbose else entry.key[:8],
        entry.model,
        _revision(entry, 40 if verbose else 7),
        str(fields.get("layout", "")),
        text.dtypes(fields.get("dtype", "")),
        text.flags(fields.get("storage")),
        text.size(entry.nbytes),
        text.age(time.time() - entry.last_used),
    ]
    if verbose:
        row += [entry.layers, entry.manifest.created, str(entry.path)]
    if is_marked:
        row.append("superseded" if entry.folder in superseded else "")
    return row


def _revision(entry: Entry, digits: int) -> str:
    """What was asked for of a hub model, and the commit that it was at: `main@b968826`."""
    commit = (entry.commit or "")[:digits]
    return commit if entry.is_pinned or not commit else f"{entry.revision}@{commit}"


def _require_sound(filters: Sequence[str] | None) -> None:
    with values.as_usage("--filter"):
        filtered([], filters or (), [])


def _remove(
    cache: Cache,
    remove: Callable[[bool], list[Removal]],
    yes: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Shows what would be removed, asks, and removes it."""
    planned = remove(True)
    is_told = not as_json and not quiet
    if is_told:
        _show_removals(cache, planned, verbose)
    total = text.size(sum(removal.nbytes for removal in planned))
    if planned and not dry_run and not yes:
        _confirm(f"Remove {len(planned)} and free {total}?")
    removed = planned if dry_run else remove(False) if planned else []
    if as_json:
        print(json.dumps(_removal_fields(planned, removed, dry_run=dry_run), indent=1))
    elif quiet:
        for removal in removed:
            print(removal.path)
    elif not planned:
        print("nothing to remove")
    else:
        freed = text.size(sum(removal.nbytes for removal in removed))
        print(f"would free {freed}" if dry_run else f"freed {freed}")
    paths = {removal.path for removal in removed}
    if kept := [removal for removal in planned if removal.path not in paths]:
        print(f"kept {len(kept)} that somebody uses by now, such as {kept[0].path}", file=sys.stderr)
        raise typer.Exit(1)


def _confirm(question: str) -> None:
    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort as abort:
        # Ctrl-C is no answer.
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def _show_removals(cache: Cache, removals: Sequence[Removal], verbose: bool) -> None:
    if not removals:
        return
    rows = [
        (
            text.size(removal.nbytes),
            str(removal.path if verbose else removal.path.relative_to(cache.root)),
            removal.reason,
        )
        for removal in removals
    ]
    columns = (Column("size", "green", right=True), Column("what", least=24), Column("why", least=16))
    text.table(columns, rows)


def _removal_fields(planned: Sequence[Removal], removed: Sequence[Removal], *, dry_run: bool) -> list[dict[str, Any]]:
    paths = {removal.path for removal in removed} if not dry_run else set()
    return [
        {
            "path": str(removal.path),
            "nbytes": removal.nbytes,
            "reason": removal.reason,
            "removed": removal.path in paths,
        }
        for removal in planned
    ]


def _repair_fields(each: Any, *, told: bool) -> dict[str, Any]:
    found = each.verification
    fields = {"key": found.key, "model": found.model, "problems": found.problems}
    return fields | ({"outcome": each.outcome, "reason": each.reason} if told else {})


def _tell(each: Any, *, told: bool, quiet: bool, verbose: bool, dry_run: bool) -> None:
    """Prints what was found of an entry, and what became of it."""
    found = each.verification
    if quiet:
        if found.problems:
            print(found.key)
        return
    print(f"{found.key[:8]}  {text.printable(found.model)}: {text.printable('; '.join(found.problems)) or 'ok'}")
    if verbose:
        print(f"          {found.folder}, {text.size(size(found.folder))}")
    if told and found.problems:
        would = "would be " if dry_run else ""
        said = {"converted": f"{would}converted again", "removed": f"{would}removed", "kept": "kept"}[each.outcome]
        print(f"          {said}{f': {text.printable(each.reason)}' if each.reason else ''}")


def _fields(entry: Entry, superseded: Mapping[Path, Superseded]) -> dict[str, Any]:
    """An entry as JSON values."""
    manifest = entry.manifest
    return {
        "key": entry.key,
        "model": entry.model,
        "revision": entry.revision,
        "commit": entry.commit,
        "path": str(entry.path),
        "nbytes": entry.nbytes,
        "created": manifest.created,
        "last_used": text.moment(entry.last_used),
        "seconds": manifest.seconds,
        "superseded_by": superseded[entry.folder].by.key if entry.folder in superseded else None,
        "source": manifest.source,
        "fields": manifest.fields,
    }


def _write_csv(entries: Sequence[Entry], superseded: Mapping[Path, Superseded]) -> None:
    names = ("key", "model", "revision", "commit", "nbytes", "created", "last_used", "superseded_by", "path")
    of_key = ("layout", "dtype", "storage")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*names, *of_key, "layers"])
    for entry in entries:
        fields = _fields(entry, superseded)
        key = fields["fields"]
        stored = (str(key.get("layout", "")), text.dtypes(key.get("dtype", "")), text.flags(key.get("storage")))
        writer.writerow([*(fields[name] for name in names), *stored, entry.layers])


def _described(folder: Path, superseded: Mapping[Path, Superseded], *, verbose: bool) -> dict[str, Any]:
    """All that is known of what is in an entry's folder, as JSON values."""
    try:
        entry = read_entry(folder)
    except UnreadableManifestError as error:
        return {"key": folder.name, "path": str(folder), "size_on_disk": size(folder), "problem": str(error)}
    manifest = entry.manifest
    described = {
        **{
            name: value
            for name, value in _fields(entry, superseded).items()
            if name not in ("seconds", "superseded_by")
        },
        "size_on_disk": size(folder),
        "arrays": len(manifest.arrays),
        "files": len(manifest.files),
        "conversion_seconds": manifest.seconds,
        "versions": manifest.versions,
        "writer": manifest.writer,
        "used_by": entry.user(),
        "superseded": _said(superseded.get(folder)),
        "problems": _lost(entry),
    }
    return described | ({"arrays": manifest.arrays, "files": manifest.files} if verbose else {})


def _said(found: Superseded | None) -> str | None:
    return None if found is None else f"by {found.by.key}: newer {' and '.join(found.changes)}"


def _lost(entry: Entry) -> list[str]:
    try:
        return entry.lost_files()
    except UnreadableManifestError as error:
        return [str(error)]
