"""`lazyload cache rm` and `lazyload cache prune`: what would be removed is shown, asked about, and removed."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from lazyload.cache.cache import Cache
from lazyload.cache.filters import filtered
from lazyload.cache.quantities import parse_duration, parse_size
from lazyload.cache.removal import Removal
from lazyload.cli import options, text, values
from lazyload.cli.command import command
from lazyload.cli.text import Column


@command(
    "lazyload cache rm Qwen/Qwen3-8B",
    "lazyload cache rm 1a2b3c4d --dry-run",
    "lazyload cache rm --filter 'accessed>30d' --yes",
)
@options.some_targets
@options.filters
@click.option("--force", is_flag=True, help="Remove also what somebody writes or reads.")
@options.yes
@options.dry_run
@options.as_json
@options.quiet
@options.verbose
@options.cache_dir
def rm(
    targets: Sequence[str],
    filters: Sequence[str],
    force: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    cache_dir: str | None,
) -> None:
    """Remove converted checkpoints.

    What somebody writes or reads stays, and makes the exit code 1, unless --force is given.
    """
    if not targets and not filters:
        raise click.BadParameter("give models or keys, or conditions with --filter", param_hint="TARGET")
    cache = Cache(cache_dir)
    _require_sound(filters)

    def remove(dry: bool) -> list[Removal]:
        return cache.remove(*targets, filters=filters, dry_run=dry, force=force)

    _remove(cache, remove, yes, dry_run, as_json, quiet, verbose)


@command(
    "lazyload cache prune",
    "lazyload cache prune --superseded --keep-last 2",
    "lazyload cache prune --older-than 2w --max-size 100GiB --dry-run",
)
@click.option("--older-than", metavar="AGE", help="Also what has not been used for so long: 12h, 30d, 2w.")
@click.option("--max-size", metavar="SIZE", help="Also what was used longest ago, beyond so much: 100GB, 1GiB.")
@click.option(
    "--superseded",
    is_flag=True,
    help="Also what a later entry has taken the place of, because the model's commit or files, or the way in "
    "which it is converted, are newer.",
)
@click.option(
    "--keep-last",
    type=click.IntRange(min=1),
    metavar="N",
    help="Never the N entries of each model that were used last; without another rule, all the others.",
)
@click.option("--incomplete", is_flag=True, help="Only what unfinished conversions and removals left behind.")
@click.option("--all", "everything", is_flag=True, help="Everything that nobody uses.")
@options.yes
@options.dry_run
@options.as_json
@options.quiet
@options.verbose
@options.cache_dir
def prune(
    older_than: str | None,
    max_size: str | None,
    superseded: bool,
    keep_last: int | None,
    incomplete: bool,
    everything: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    cache_dir: str | None,
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


def _require_sound(filters: Sequence[str]) -> None:
    with values.as_usage("--filter"):
        filtered([], filters, [])


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
        raise click.exceptions.Exit(1)


def _confirm(question: str) -> None:
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as abort:
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
            str(removal.path) if verbose else str(removal.path).removeprefix(f"{cache.root}/"),
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
