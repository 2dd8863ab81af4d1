"""`lazyload cache ls`: entries as a table, as CSV or JSON, or only their keys."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lazyload.bucket.path import Folder
from lazyload.cache.cache import Cache
from lazyload.cache.entry import Listed
from lazyload.cache.superseded import Superseded, find_superseded
from lazyload.cli import options, text, values
from lazyload.cli.command import command
from lazyload.cli.text import Column


@command(
    "lazyload cache ls",
    "lazyload cache ls --filter 'size>1GB' --sort accessed --limit 20",
    "lazyload cache ls --format json",
)
@options.filters
@click.option(
    "--sort",
    metavar="ORDER",
    help="accessed, modified, name or size, with :asc or :desc; by itself the newest and largest first.",
    show_default="name",
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="List only the first N.")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "csv", "json", "quiet"]),
    default="table",
    help="How they are listed.",
)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--quiet", "-q", is_flag=True, help="Print only keys; the same as --format quiet.")
@options.verbose
@options.cache_dir
def ls(
    filters: Sequence[str],
    sort: str | None,
    limit: int | None,
    output: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    cache_dir: str | None,
) -> None:
    """List converted checkpoints."""
    cache = Cache(cache_dir)
    entries, problems = cache.look()
    superseded = find_superseded(entries)
    chosen = entries
    if filters:
        # What a plain list does without is imported where it is used.
        from lazyload.cache.filters import filtered

        with values.as_usage("--filter"):
            chosen = filtered(chosen, filters, entries)
    if sort:
        from lazyload.cache.order import ordered

        with values.as_usage("--sort"):
            chosen = ordered(chosen, sort)
    chosen = chosen[:limit]
    # What cannot be used fulfils no condition.
    problems = {} if filters or limit is not None else problems
    match "json" if as_json else "quiet" if quiet else output:
        case "json":
            damaged = [{"key": path.name, "path": str(path), "problem": why} for path, why in problems.items()]
            print(json.dumps([*(fields_of(entry, superseded) for entry in chosen), *damaged], indent=1))
        case "csv":
            _write_csv(chosen, superseded)
        case "quiet":
            for entry in chosen:
                print(entry.key)
        case _:
            _list(cache, chosen, superseded, problems, filters, verbose)


def _list(
    cache: Cache,
    entries: Sequence[Listed],
    superseded: Mapping[Folder, Superseded],
    problems: Mapping[Folder, str],
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


def _row(entry: Listed, superseded: Mapping[Folder, Superseded], verbose: bool, is_marked: bool) -> list[str]:
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


def _revision(entry: Listed, digits: int) -> str:
    """What was asked for of a hub model, and the commit that it was at: `main@b968826`."""
    if (commit := entry.commit) is None:
        return ""
    revision, shown = entry.revision, commit[:digits]
    return shown if revision == commit else f"{revision}@{shown}"


def _write_csv(entries: Sequence[Listed], superseded: Mapping[Folder, Superseded]) -> None:
    import csv

    names = ("key", "model", "revision", "commit", "nbytes", "created", "last_used", "superseded_by", "path")
    of_key = ("layout", "dtype", "storage")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*names, *of_key, "layers"])
    for entry in entries:
        fields = fields_of(entry, superseded)
        key = fields["fields"]
        stored = (str(key.get("layout", "")), text.dtypes(key.get("dtype", "")), text.flags(key.get("storage")))
        writer.writerow([*(fields[name] for name in names), *stored, entry.layers])


def fields_of(entry: Listed, superseded: Mapping[Folder, Superseded]) -> dict[str, Any]:
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
