"""The commands that look after the cache: `lazyload cache ...`."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from lazyload.cli import text, values
from lazyload.cli.options import CacheDir, DryRun, Json, Targets, Yes


def ls(
    cache_dir: CacheDir = None, as_json: Json = False, quiet: Annotated[bool, typer.Option("--quiet", "-q")] = False
) -> None:
    """List the converted checkpoints."""
    from lazyload.cache.cache import Cache

    cache = Cache(cache_dir)
    entries, problems = cache.entries(), cache.problems()
    if as_json:
        damaged = [
            {"key": folder.name, "path": str(folder), "problem": problem} for folder, problem in problems.items()
        ]
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
                text.dtypes(entry.manifest.fields.get("dtype", "")),
                text.flags(entry.manifest.fields.get("storage")),
                text.size(entry.nbytes),
                datetime.fromtimestamp(entry.last_used).strftime("%Y-%m-%d %H:%M"),
            )
            for entry in entries
        ]
        text.table(("key", "model", "layout", "dtype", "storage", "size", "last used"), rows)
        print(f"\n{len(entries)} in {cache.root}, {text.size(sum(entry.nbytes for entry in entries))}")
    if not as_json and not quiet:
        for folder, problem in problems.items():
            print(f"{folder.name[:8]}  {folder.parent.name}: cannot be used: {problem}")


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
    seconds = values.quantity(older_than, "--older-than", {"d": 86400, "h": 3600, "m": 60, "s": 1})
    limit = values.quantity(max_size, "--max-size", {"TB": 1e12, "GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1})
    nbytes = None if limit is None else int(limit)
    _remove(lambda dry: cache.prune(older_than=seconds, max_bytes=nbytes, dry_run=dry), yes, dry_run)


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
        print(f"{text.size(removal.nbytes):>10}  {removal.path}  ({removal.reason})")
    total = text.size(sum(removal.nbytes for removal in planned))
    if not planned:
        print("nothing to remove")
    elif dry_run:
        print(f"would free {total}")
    elif yes or typer.confirm(f"Remove {len(planned)} and free {total}?"):
        removed = remove(False)
        print(f"freed {text.size(sum(removal.nbytes for removal in removed))}")
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
